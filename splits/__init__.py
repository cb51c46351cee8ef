"""Facts about the benchmarks: one manifest (``NAME.toml``) and one assignment (``NAME.assignment.json``) each.

Neither holds a video id or a label; ``meidbench.splits.manifests`` reads them.
"""
