"""An extractor whose backbone is a few averages, decoding without processes, and runs that end in the middle."""

import io
import itertools
import os
import resource
import signal
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from meidbench.extraction import extraction
from meidbench.extraction.decoder_pool import FrameBatch, RowsCounted, VideoFinished, VideoRestarted
from meidbench.extraction.decoding import count_rows, read_frames
from meidbench.extraction.encoders.backbones import BACKBONES, ResNet
from meidbench.extraction.encoders.encoder import Encoder
from meidbench.extraction.encoders.extractor import Extractor
from meidbench.extraction.encoders.preprocessing import IMAGENET, Preprocessing, Preprocessor
from meidbench.extraction.frames import FrameRule, Restart, find_crop_window
from meidbench.extraction.videos import find_videos
from meidbench.features import store

SMALL_RESNET = replace(
    BACKBONES["resnet50"], make_network=partial(ResNet, (1, 1, 1, 1)), preprocessing=Preprocessing(64, 56)
)


class TinyExtractor(Extractor):
    """Averages over an 8 x 8 grid of each channel, 192 numbers per row, padded to the width of a real backbone."""

    def __init__(self, rule="uniform", frames=6, batch_size=4, dtype="float32"):
        self.encoder = Encoder(torch.nn.Identity(), BACKBONES["resnet50"].dim, IMAGENET)
        self.rule = FrameRule.from_text(rule, frames=frames)
        self.folder_fps = 24.0
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.batch_size = batch_size
        self.batches = []
        self._preprocessor = Preprocessor("cpu")
        self.recipe = {"backbone": "tiny", "sampling": str(self.rule), "dtype": dtype, "libraries": {"torch": "any"}}

    def encode(self, crops):
        self.batches.append(len(crops))
        grid = torch.nn.functional.avg_pool2d(crops.float(), 28).flatten(1)
        return torch.nn.functional.pad(grid, (0, self.encoder.dim - grid.shape[1]))


class PoolInThisProcess:
    """Gives the events of a ``DecoderPool`` without its processes, whose start takes longer than small clips do."""

    shared_memories = ()

    def __init__(self, videos, settings, processes=1, *, counting=False):
        self.videos, self.settings, self.counting = list(videos), settings, counting

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        for job, video in enumerate(self.videos):
            if self.counting:
                yield RowsCounted(job, count_rows(video, self.settings.rule, folder_fps=self.settings.folder_fps))
            else:
                yield VideoFinished(job, (yield from self._read(job, video)))

    def _read(self, job, video):
        stream = read_frames(video, self.settings.rule, folder_fps=self.settings.folder_fps)
        while True:
            try:
                frame = next(stream)
            except StopIteration as end:
                return end.value
            if isinstance(frame, Restart):
                yield VideoRestarted(job)
                continue
            window = find_crop_window(*frame.image.shape[:2], self.settings.geometry)
            pixels = frame.image[None, window.top : window.bottom, window.left : window.right]
            yield FrameBatch(((job,),), np.array([frame.index]), pixels, window, lambda: None)


def die_at(number: int, calls: tuple[str, ...]) -> None:
    """Let this process send itself SIGKILL at the given number of calls that change files.

    Python's calls of these names count, in every thread: twice each, before and after.
    """
    counted = itertools.count(1)

    def count(frame, event, function):
        if event not in ("c_call", "c_return") or function.__name__ not in calls:
            return
        # Functions of os and methods of files, but not str.replace.
        if isinstance(function.__self__, ModuleType | io.FileIO) and next(counted) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)


def extract_until(folder, out, commit_every, number, calls, in_this_process):
    """Extract in a process of its own, which dies at the given number of calls."""
    store._COMMIT_EVERY = commit_every
    # Decoding processes would import the test runner, which takes longer than the work.
    sys.modules["__main__"] = ModuleType("__main__")
    if in_this_process:
        extraction.DecoderPool = PoolInThisProcess
    torch.set_num_threads(1)
    videos, extractor = find_videos(folder).videos, TinyExtractor(frames=3)
    die_at(number, calls)
    extraction.extract_features(videos, Path(out), extractor, workers=2)


def extract_on_full_disk(folder: str, out: str, limit: int) -> None:
    """Extract where no file may grow beyond a limit; the error goes to a file as well."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    store._COMMIT_EVERY = 0.0
    extraction.DecoderPool = PoolInThisProcess
    torch.set_num_threads(1)
    try:
        extraction.extract_features(find_videos(folder).videos, Path(out), TinyExtractor())
    except Exception as error:
        Path(f"{out}.error").write_text(str(error))
        raise SystemExit(1) from None
