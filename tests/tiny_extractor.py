"""An extractor whose backbone is a few averages: for tests of what lies around it. As a script, it extracts."""

import sys
import time
from pathlib import Path
from types import ModuleType

import torch

from meidbench.extraction.encoders.backbones import BACKBONES
from meidbench.extraction.encoders.extractor import Extractor
from meidbench.extraction.encoders.preprocessing import Preprocessor
from meidbench.extraction.extraction import extract_features
from meidbench.extraction.frames import FrameRule
from meidbench.extraction.videos import find_videos
from meidbench.features import store


class TinyExtractor(Extractor):
    """Averages over an 8 x 8 grid of each channel, 192 numbers a row, spread over the width of a real backbone."""

    def __init__(self, rule="uniform", frames=6, batch_size=4, dtype="float32", delay=0.0):
        self.backbone = BACKBONES["resnet50"]
        self.rule = FrameRule.from_text(rule, frames=frames)
        self.folder_fps = 24.0
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.batch_size = batch_size
        self.delay = delay
        self.batches = []
        self._preprocessor = Preprocessor("cpu")
        self.recipe = {"backbone": "tiny", "sampling": str(self.rule), "dtype": dtype, "libraries": {"torch": "any"}}

    def encode(self, crops):
        time.sleep(self.delay)
        self.batches.append(len(crops))
        grid = torch.nn.functional.avg_pool2d(crops.float(), 28).flatten(1)
        return torch.nn.functional.pad(grid, (0, self.backbone.dim - grid.shape[1]))


def extract_again(folder: str, out: str, rule: str, delay: float, commit_every: float) -> None:
    store._COMMIT_EVERY = commit_every
    # Decoding processes would import the test runner, which takes longer than the work.
    sys.modules["__main__"] = ModuleType("__main__")
    extract_features(find_videos(folder).videos, Path(out), TinyExtractor(rule, delay=delay), workers=2)


if __name__ == "__main__":
    extract_again(*sys.argv[1:4], *map(float, sys.argv[4:]))
