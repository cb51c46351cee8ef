"""Splits, and the facts about the benchmarks: per benchmark a manifest (``NAME.toml``) and an assignment
(``NAME.assignment.json``), both without video ids and labels; ``meidbench.splits.manifests`` reads them.
"""
