"""MOVE (Moon, Seong, Heo; AAAI 2023): attention beside a codebook, and a wider vicinity for rare classes."""

from meidbench.baselines.models.move.model import COMPAT, Move

__all__ = ["COMPAT", "Move"]
