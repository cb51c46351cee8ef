"""Encoders: networks, their weights and preprocessing, and the extractor that turns frames into rows."""
