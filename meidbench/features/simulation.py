"""Simulated frame features, made from a split's segments, so that methods can be run end to end without videos.

They are for trying a whole pipeline, for tests, for benchmarks of speed, for teaching, and for finding bugs.

They are *not* good for:

- claims about real data: no video is seen here. Labels, lengths and segments are the split's own, so its long tail and
  its co-occurrence are real; the look of a frame follows from the formula below;
- absolute numbers: the default difficulty was chosen so that a plain baseline on CharadesLT comes near the published
  rows. That is a setting, not a result;
- ranking methods in a paper: the formula decides which method gains (for example by the share of classes that show as
  motion), and another formula would give another order.

The formula. Classes share structure by a random tree, drawn from the seed and never from their names: a few places,
objects that belong to a place, and actions that are independent of places; a prototype is the sum of the class's
object, its action and a part of its own. A frame is ``ReLU(base + scene + sum of amplitude * prototype over the
segments that cover it + noise)``, because penultimate features of a network are not negative. The scene (a mixture of
places, and a random part) is drawn once per video; noise is autoregressive from frame to frame. Most segments do not
show at all, which bounds the result of every method; the amplitude of the others is log-normal. Some classes show as
motion instead: they scale the frame by ``1 + sign * amplitude * pattern`` (from 0 to 2), and the sign turns from each
frame to the next, so that a video's mean does not contain them, but the differences of neighbouring frames do.
"""

import hashlib
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from numpy.random import Generator

from meidbench.annotations import Annotations
from meidbench.checks import whole_number
from meidbench.errors import FeatureError, SplitError, first_few
from meidbench.features.feature_file import Layout, Recipe
from meidbench.features.records import VideoRows
from meidbench.features.source import is_usable_id
from meidbench.features.store import feature_writer
from meidbench.names import SUBSETS, ProgressBar
from meidbench.splits.split import Split, load_split

FRAMES, DIM, DIFFICULTY = 60, 256, 1.0
_HARDEST = 100  # beyond it, features leave the range of float16
FORMULA = 1  # increased whenever the same arguments would give other features

# The scales of the formula, set on CharadesLT; the difficulty multiplies the scene and the noise.
BASE = 1.5
SIGNAL = 6.0
AMPLITUDE_SPREAD = 0.4  # of the logarithm
SHOWN_SHARE = 0.1  # of the segments, raised to the power of the difficulty; the others do not show at all
KINSHIP = (0.4, 0.25, 0.35)  # of a prototype's variance: its object, its action, its own
SCENE_PLACES = 0.45
SCENE_OWN = 0.75
NOISE = 0.9
NOISE_MEMORY = 0.8  # correlation of neighbouring frames
MOTION_SHARE = 0.2  # of the classes
MOTION_STRENGTH = 0.7  # standard deviation of the share by which a feature goes up and down

Reals = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SharedStructure:
    """The random structure that all videos of one simulation share: C classes, places (P, D), features of width D.

    ``prototypes`` (C, D) are the looks of classes, with a root mean square of about 1; rows of motion classes are not
    used. ``patterns`` (C, D) are the motions: the share by which each feature goes up and down, zero for other classes.
    ``is_motion`` (C,) tells which classes show as motion, ``base`` (D,) is the mean of an empty frame.
    """

    prototypes: Reals
    patterns: Reals
    is_motion: npt.NDArray[np.bool_]
    places: Reals
    base: Reals


@dataclass(frozen=True)
class Appearance:
    """A class and the frames ``first`` to ``last`` (included) in which it shows."""

    label: int
    first: int
    last: int


@lru_cache(maxsize=4)
def draw_structure(num_classes: int, dim: int = DIM, seed: int = 0) -> SharedStructure:
    """Draw the structure of C classes and features of width D = ``dim``."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, num_classes, dim]))

    def vectors(count: int) -> Doubles:
        return generator.standard_normal((count, dim))

    branches = int(np.ceil(2 * np.sqrt(num_classes)))
    places = vectors(int(np.ceil(branches / 4)))
    objects = np.sqrt(0.4) * places[generator.integers(len(places), size=branches)] + np.sqrt(0.6) * vectors(branches)
    actions = vectors(branches)
    of_object, of_action = generator.integers(branches, size=(2, num_classes))
    prototypes = (
        np.sqrt(KINSHIP[0]) * objects[of_object]
        + np.sqrt(KINSHIP[1]) * actions[of_action]
        + np.sqrt(KINSHIP[2]) * vectors(num_classes)
    )
    is_motion = np.zeros(num_classes, dtype=bool)
    is_motion[generator.permutation(num_classes)[: round(MOTION_SHARE * num_classes)]] = True
    patterns = MOTION_STRENGTH * vectors(num_classes) * is_motion[:, None]
    base = BASE * (0.5 + generator.random(dim))
    shared: list[Reals] = [array.astype(np.float32) for array in (prototypes, patterns, places, base)]
    for array in (*shared, is_motion):
        array.setflags(write=False)
    return SharedStructure(shared[0], shared[1], is_motion, shared[2], shared[3])


def frame_features(
    split: Split, video_id: str, *, frames: int = FRAMES, dim: int = DIM, seed: int = 0, difficulty: float = DIFFICULTY
) -> Reals:
    """Simulate the frame features of one video.

    They depend only on the arguments and on the video's own row of the split. They say nothing about real videos (see
    the module).

    Parameters
    ----------
    split, video_id : Split and str
        The split gives the video's length and segments, and the number of classes.
    frames, dim : int
        T, evenly spaced over the video: frame ``t`` stands for its moment ``(t + 1/2) / T``; and D.
    seed : int
        For the shared structure and, with the id, for the video.
    difficulty : float
        How well hidden the classes are: it scales scene and noise, and is the exponent of the share of segments that
        show. At 0 all segments show, without scene and noise.

    Returns
    -------
    (frames, dim) float32 array, not negative.

    Raises
    ------
    SplitError
        The split does not contain the video.
    FeatureError
        A size or the difficulty makes no sense.
    """
    row = split.table.filter(pc.equal(split.table.column("video_id"), video_id))
    if not len(row):
        raise SplitError(f"{split.dataset} has no video {video_id!r}; its ids are in split.video_ids(subset)")
    frames, difficulty, structure = _check_arguments(split, frames, dim, seed, difficulty)
    return _video_features(structure, row.to_pylist()[0], frames, seed, difficulty)


def _check_arguments(
    split: Split, frames: int, dim: int, seed: int, difficulty: float
) -> tuple[int, float, SharedStructure]:
    frames = whole_number("frames", frames, 1, FeatureError)
    dim, seed = whole_number("dim", dim, 1, FeatureError), whole_number("seed", seed, 0, FeatureError)
    is_number = isinstance(difficulty, int | float | np.number) and not isinstance(difficulty, bool)
    if not is_number or not 0 <= difficulty <= _HARDEST:
        known = f"a number from 0 to {_HARDEST} (default {DIFFICULTY})"
        raise FeatureError(f"difficulty must be {known}, got {difficulty!r}")
    return frames, float(difficulty), draw_structure(split.num_classes, dim, seed)


def simulate_features(
    split: Split | str | Path,
    out: str | os.PathLike[str],
    *,
    frames: int = FRAMES,
    dim: int = DIM,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
    subset: str | None = None,
    progress: ProgressBar | None = None,
) -> Path:
    """Simulate the features of a split's videos, each as ``frame_features`` returns it, and write a feature file.

    They say nothing about real videos (see the module). Measured on CharadesLT's test set with seeds 0 to 2 and the
    other defaults: ``Nonlinear`` (BCE, Adam at 2e-3, batches of 64) reaches an mAP of 0.095 to 0.098 after 5 epochs and
    0.114 to 0.116 after 10; at 1e-3 in batches of 128, 0.115 to 0.121 after 20 (head 0.20 to 0.22, medium 0.10 to 0.11,
    tail 0.04 to 0.05). Random scores give 0.059; knowing which segments show at all would give 0.17.

    Parameters
    ----------
    split : Split, str or Path
        A split, its file, or its name.
    out : path
        The file, float16, which is returned. An interrupted run is continued; a file made with other arguments is
        refused.
    frames, dim, seed, difficulty
        As in ``frame_features``.
    subset : str, optional
        ``train``, ``val`` or ``test``; all three by default.

    Raises
    ------
    SplitError
        The split or the subset does not exist.
    FeatureError
        An argument makes no sense, an id cannot name features, or the file cannot be written.
    """
    split = split if isinstance(split, Split) else load_split(split)
    frames, difficulty, structure = _check_arguments(split, frames, dim, seed, difficulty)
    table = (split.table if subset is None else split.rows(subset)).sort_by("video_id").combine_chunks()
    recipe: Recipe = {"backbone": "simulation", "formula": FORMULA, "split": split.digest}
    recipe |= {"frames": frames, "seed": int(seed), "difficulty": difficulty}
    video_ids = table.column("video_id").to_pylist()
    if wrong := [repr(video_id) for video_id in video_ids if not is_usable_id(video_id)]:
        raise FeatureError(f"these ids cannot name features in a file: {first_few(wrong)}; rename these videos")
    counts, sizes = np.full(len(video_ids), frames, np.int64), np.zeros(len(video_ids), np.int64)
    width = structure.base.shape[0]
    layout = Layout(tuple(video_ids), counts, fixed=True, dim=width, dtype="float16", timed=False, source_sizes=sizes)
    start = progress or (lambda title, total: nullcontext(lambda steps: None))
    with start("simulating features", len(table)) as advance, feature_writer(Path(out), layout, recipe) as writer:
        for position in writer.pending.tolist():
            rows = _video_features(structure, table.slice(position, 1).to_pylist()[0], frames, seed, difficulty)
            writer.put(position, VideoRows(rows.astype(np.float16)))
            advance(1)
        writer.finish()
    return Path(out)


def _video_features(
    structure: SharedStructure, row: dict[str, Any], frames: int, seed: int, difficulty: float
) -> Reals:
    generator = video_generator(row["video_id"], seed)
    return _render(structure, draw_appearances(row, frames, generator), frames, difficulty, generator)


def video_generator(video_id: str, seed: int) -> Generator:
    """Return the generator of one video's draws, seeded with the seed and the id's sha256 only."""
    words = np.frombuffer(hashlib.sha256(video_id.encode()).digest(), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence([seed, *words.tolist()]))


def draw_appearances(row: dict[str, Any], frames: int, generator: Generator) -> list[Appearance]:
    """Return the frames in which the labels of a video show: segments in the split's order, then labels without one.

    ``row`` has ``labels``, ``segments`` and ``length_s`` of a row of ``split.table``; labels without a segment get a
    random one, of 0.2 to 0.9 of the video. Each appearance covers at least one frame. Official segments can be shorter
    than the distance of two frames, end before they begin, or lie past the end of the video; the part between both ends
    is taken, cut to the video.
    """
    length = row["length_s"]
    segments = row["segments"] or [] if length is not None and np.isfinite(length) and length > 0 else []
    spans = [
        (segment["label"], *np.clip(sorted((segment["start_s"] / length, segment["end_s"] / length)), 0.0, 1.0))
        for segment in segments
    ]
    shown = {label for label, _, _ in spans}
    for label in row["labels"]:
        if label not in shown:
            share = generator.uniform(0.2, 0.9)
            start = generator.uniform(0.0, 1.0 - share)
            spans.append((label, start, start + share))
    appearances = []
    for label, start, end in spans:
        first, last = int(np.ceil(start * frames - 0.5)), int(np.floor(end * frames - 0.5))
        if last < first:
            first = last = min(int((start + end) / 2 * frames), frames - 1)
        appearances.append(Appearance(label, first, last))
    return appearances


def _render(
    structure: SharedStructure, appearances: list[Appearance], frames: int, difficulty: float, generator: Generator
) -> Reals:
    """Return a video's (frames, D) features; the draws and their order do not depend on the difficulty."""
    num_places, dim = structure.places.shape
    amplitudes = np.exp(AMPLITUDE_SPREAD * generator.standard_normal(len(appearances)))
    amplitudes *= generator.random(len(appearances)) < SHOWN_SHARE**difficulty
    signs = generator.choice((-1.0, 1.0), size=len(appearances))
    envelope = np.zeros((frames, len(appearances)), dtype=np.float32)
    turns = np.where(np.arange(frames) % 2, -1.0, 1.0)
    for column, appearance in enumerate(appearances):
        shown = slice(appearance.first, appearance.last + 1)
        moves = structure.is_motion[appearance.label]
        envelope[shown, column] = (signs[column] * turns[shown] if moves else 1.0) * amplitudes[column]
    labels = np.array([appearance.label for appearance in appearances], dtype=np.intp)
    moving = structure.is_motion[labels]

    scene = SCENE_PLACES * generator.standard_normal(num_places, dtype=np.float32) @ structure.places
    # With more features of independent noise, classes would be easier to tell apart: keep that fixed as D grows.
    spread = np.float32(np.sqrt(dim / DIM))
    scene += SCENE_OWN * spread * generator.standard_normal(dim, dtype=np.float32)
    noise = generator.standard_normal((frames, dim), dtype=np.float32)
    noise[1:] *= np.float32(np.sqrt(1.0 - NOISE_MEMORY**2))
    for frame in range(1, frames):
        noise[frame] += np.float32(NOISE_MEMORY) * noise[frame - 1]

    features = noise
    features *= np.float32(difficulty * NOISE) * spread
    features += structure.base + np.float32(difficulty) * scene
    features += np.float32(SIGNAL) * (envelope[:, ~moving] @ structure.prototypes[labels[~moving]])
    np.maximum(features, 0.0, out=features)
    if moving.any():
        # Clipped to the same distance on both sides, so that the mean stays.
        features *= 1.0 + np.clip(envelope[:, moving] @ structure.patterns[labels[moving]], -1.0, 1.0)
    return features


DATASET = "simulatedlt"

_LABELS = 5.0  # per video beyond the first, on average
_LEAST_POSITIVES = 4  # of a class in a subset that is evaluated on
_SECONDS = (20.0, 40.0)  # of a video
_SHARE = (0.1, 0.5)  # of a video that a segment takes
# Frequency of the most frequent class over that of the rarest; val and test are drawn closer to uniform.
_IMBALANCE = 80.0
_EVALUATED_POWER = 0.5


def simulate_split(
    videos: tuple[int, int, int] = (1200, 200, 400),
    num_classes: int = 60,
    *,
    head_above: int = 100,
    tail_up_to: int = 20,
    seed: int = 0,
) -> Split:
    """Draw a split with Pareto-like class frequencies, several labels per video, and temporal segments.

    Nothing in it is real: the dataset is ``simulatedlt``, the variant ``simulated``. A seed gives the same split.

    Parameters
    ----------
    videos, num_classes : (int, int, int) and int
        Numbers of train, val and test videos, at least 1 each, and of classes, at least 3.
    head_above, tail_up_to : int
        Thresholds of the groups, in training videos per class.

    Raises
    ------
    SplitError
        A number is too small.

    Examples
    --------
    >>> split = simulate_split((300, 40, 60), num_classes=20, head_above=50, tail_up_to=15)
    >>> split
    <Split simulatedlt (simulated): 300 / 40 / 60 videos, 20 classes>
    >>> int(split.positives("test").min()) >= 4
    True
    """
    if num_classes < 3 or min(videos) < 1:
        raise SplitError(f"a split needs 3 classes and 1 video per subset at least, got {num_classes} and {videos}")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    rarity = np.linspace(0, 1, num_classes)
    weights = _IMBALANCE**-rarity
    annotations = Annotations(class_names=tuple(f"class {index:03d}" for index in range(num_classes)))
    for subset, count in zip(SUBSETS, videos, strict=True):
        power, least = (1, 1) if subset == "train" else (_EVALUATED_POWER, _LEAST_POSITIVES)
        labels = _draw_labels(generator, weights**power, count, least)
        for position, row in enumerate(labels):
            length = generator.uniform(*_SECONDS)
            classes = generator.permutation(np.flatnonzero(row)).tolist()
            segments = []
            for label in classes:
                share = generator.uniform(*_SHARE)
                start = generator.uniform(0, 1 - share) * length
                segments.append((label, round(start, 2), round(start + share * length, 2)))
            annotations.video_ids.append(f"{subset}{position:05d}")
            annotations.sources.append(subset)
            annotations.labels.append(tuple(classes))
            annotations.lengths.append(round(length, 2))
            annotations.segments.append(tuple(segments))
    for column in (annotations.subjects, annotations.views, annotations.pair_ids):
        column.extend([""] * len(annotations.video_ids))
    return Split.from_annotations(
        annotations,
        annotations.sources,
        dataset=DATASET,
        variant="simulated",
        seed=seed,
        head_above=head_above,
        tail_up_to=tail_up_to,
    )


def _draw_labels(generator: Generator, weights: Doubles, videos: int, least: int) -> npt.NDArray[np.bool_]:
    """Draw a (videos, C) label matrix: classes by weight without replacement, each class at least ``least`` times."""
    wanted = np.minimum(1 + generator.poisson(_LABELS, videos), len(weights))
    # The k largest sums of log-weight and Gumbel noise are a draw without replacement.
    keys = np.log(weights) + generator.gumbel(size=(videos, len(weights)))
    ranks = np.argsort(np.argsort(-keys, axis=1), axis=1)
    labels: npt.NDArray[np.bool_] = ranks < wanted[:, None]
    for label in np.flatnonzero(labels.sum(axis=0) < min(least, videos)):
        absent = np.flatnonzero(~labels[:, label])
        missing = min(least, videos) - int(labels[:, label].sum())
        labels[generator.choice(absent, missing, replace=False), label] = True
    return labels
