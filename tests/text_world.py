"""A made-up world of images and text: orthogonal text vectors, and frames whose cosines with them are known."""

import re
from pathlib import Path

import numpy as np

from meidbench.extraction.encoders.encoder import TextEncoder
from meidbench.features.feature_file import Layout
from meidbench.features.records import VideoRows
from meidbench.features.store import feature_writer
from meidbench.names import SUBSETS
from meidbench.splits.split import Split

CLASSES = tuple(f"class {number:03d}" for number in range(8))  # as ``simulate_split`` names them
WIDTH = 16
SCALE, BIAS = 20.0, -3.0


def text_vectors() -> np.ndarray:
    """The unit text vector of each class: its own axis."""
    return np.eye(len(CLASSES), WIDTH, dtype=np.float32)


def fake_encoder(name: str = "hf:toy/clip", revision: str = "") -> TextEncoder:
    """A text encoder that finds the class in a prompt; prompts differ in length, and other texts have an axis."""

    def encode(texts):
        rows = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in zip(rows, texts, strict=True):
            found = re.search(r"class 00([0-7])", text)
            row[int(found[1]) if found else -1] = len(text)
        return rows

    return TextEncoder(encode, SCALE, BIAS, name.partition("@")[0], revision)


def make_features(path: Path, split: Split, *, frames: int = 4, noise: float = 0.0, seed: int = 0) -> Path:
    """Write a feature file of a made-up image-text model.

    A frame shows each class of its video with strength 1, and with 2 an axis that all frames share; a noise of that
    strength lies on all axes.
    """
    generator = np.random.default_rng(seed)
    video_ids = sorted(video_id for subset in SUBSETS for video_id in split.video_ids(subset))
    shown = {
        video_id: labels
        for subset in SUBSETS
        for video_id, labels in zip(split.video_ids(subset), split.labels(subset), strict=True)
    }
    counts, sizes = np.full(len(video_ids), frames), np.zeros(len(video_ids), np.int64)
    layout = Layout(tuple(video_ids), counts, fixed=True, dim=WIDTH, dtype="float16", timed=False, source_sizes=sizes)
    recipe = {"backbone": "hf:toy/clip", "revision": "abc123"}
    with feature_writer(path, layout, recipe) as writer:
        for position in writer.pending.tolist():
            rows = noise * generator.normal(size=(frames, WIDTH))
            rows[:, : len(CLASSES)] += shown[video_ids[position]]
            rows[:, len(CLASSES)] += 2.0
            writer.put(position, VideoRows(rows.astype(np.float16)))
        writer.finish()
    return path
