"""Reference baselines of long-tailed multi-label video recognition, imported as ``meidbench.baselines``.

No baseline is part of this version: it builds splits, loads features and scores predictions.
"""
