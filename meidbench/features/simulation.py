"""Simulated frame features, made from a split's segments, so that methods can be run end to end without videos.

What this is for: trying a whole pipeline, tests, benchmarks of speed, teaching, and finding the bugs of a method.

What it is *not* good for:

- claims about real data: nobody has seen a video here. Labels, lengths and segments are the split's own, so its
  long tail and its co-occurrence are real; what a frame looks like is a formula below;
- absolute numbers: the default difficulty is chosen so that a plain baseline on CharadesLT lands near the
  published rows. That is how it was set, not a finding;
- ranking methods in a paper: which method gains follows from the formula (from how many classes show as motion,
  for one), and another formula would give another order.

The formula. Classes share structure by a random tree, drawn from the seed and never from their names: a few places,
objects that belong to a place, and actions that cut across; a prototype is the sum of the class's object, its action
and a part of its own. A frame is ``ReLU(base + scene + sum of amplitude * prototype over the segments that cover it +
noise)``, as penultimate features of a network are not negative. The scene (a mixture of places, and a part that is
random) is drawn once a video; noise is autoregressive from frame to frame. Most segments do not show at all, which
bounds what any method can reach; the amplitude of the others is log-normal. Some classes show as motion instead: they
scale the frame by ``1 + sign * amplitude * pattern`` (from 0 to 2), and the sign turns from each frame to the next, so
that they are not in a video's mean but in the differences of neighbouring frames.
"""

import hashlib
import operator
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from meidbench.annotations import Annotations
from meidbench.errors import FeatureError, SplitError, first_few
from meidbench.features.feature_file import Layout, Recipe
from meidbench.features.records import VideoRows
from meidbench.features.source import Unusable, check_id
from meidbench.features.store import feature_writer
from meidbench.names import SUBSETS
from meidbench.splits.split import Split, load_split

FRAMES, DIM, DIFFICULTY = 60, 256, 1.0
_HARDEST = 100  # beyond, features leave the range of float16
# Goes up whenever the same arguments would give other features.
FORMULA = 1

# The scales of the formula, set on CharadesLT; a difficulty multiplies the scene and the noise.
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
MOTION_STRENGTH = 0.7  # of the share by which a feature goes up and down, at most all of it

Reals = npt.NDArray[np.float32]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class World:
    """What all videos of one simulation share.

    Attributes
    ----------
    prototypes : (C, D) float32
        How a class looks; root mean square of about 1. Rows of motion classes are not used.
    patterns : (C, D) float32
        How a class moves: the share by which each feature goes up and down. Zero for the others.
    is_motion : (C,) bool
        Which classes show as motion.
    places : (P, D) float32
        Where a video can be set.
    base : (D,) float32
        The mean of a frame before all else.
    """

    prototypes: Reals
    patterns: Reals
    is_motion: npt.NDArray[np.bool_]
    places: Reals
    base: Reals


@dataclass(frozen=True)
class Moment:
    """A class and the frames ``first`` to ``last`` (included) in which it shows."""

    label: int
    first: int
    last: int


def make_world(num_classes: int, dim: int = DIM, seed: int = 0) -> World:
    """Draw what all videos share.

    Parameters
    ----------
    num_classes : int
        C.
    dim : int
        D, width of a frame's features.
    seed : int

    Examples
    --------
    >>> world = make_world(num_classes=12, dim=32, seed=0)
    >>> world.prototypes.shape, int(world.is_motion.sum())
    ((12, 32), 2)
    """
    return _world(_whole("num_classes", num_classes), _whole("dim", dim), _whole("seed", seed, 0))


@lru_cache(maxsize=4)
def _world(num_classes: int, dim: int, seed: int) -> World:
    generator = np.random.default_rng(np.random.SeedSequence([seed, num_classes, dim]))

    def vectors(count: int) -> npt.NDArray[np.float64]:
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
    return World(shared[0], shared[1], is_motion, shared[2], shared[3])


def frame_features(
    split: Split,
    video_id: str,
    *,
    frames: int = FRAMES,
    dim: int = DIM,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
) -> Reals:
    """Simulate the frame features of one video.

    They depend on the arguments and on the video's own row of the split, not on any other video. They say nothing
    about real videos (see the module).

    Parameters
    ----------
    split : Split
        Gives the video's length and segments, and the number of classes.
    video_id : str
    frames : int
        T, evenly spaced over the video: frame ``t`` stands for its moment ``(t + 1/2) / T``.
    dim : int
        D.
    seed : int
        Of the shared structure and, with the id, of the video.
    difficulty : float
        How well hidden the classes are: it scales scene and noise, and is the power of the share of segments that
        show. At 0 all show, and nothing else does.

    Returns
    -------
    (frames, dim) float32 array, not negative.

    Raises
    ------
    SplitError
        The split has no such video.
    FeatureError
        A size or the difficulty makes no sense.
    """
    row = split.table.filter(pc.equal(split.table.column("video_id"), video_id))
    if not len(row):
        raise SplitError(f"{split.dataset} has no video {video_id!r}; its ids are in split.video_ids(subset)")
    frames, difficulty = _whole("frames", frames), _checked_difficulty(difficulty)
    return _video_features(make_world(split.num_classes, dim, seed), row.to_pylist()[0], frames, seed, difficulty)


def simulate_features(
    split: Split | str | Path,
    out: str | os.PathLike[str],
    *,
    frames: int = FRAMES,
    dim: int = DIM,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
    subset: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Simulate the frame features of a split's videos, each as ``frame_features`` gives it, into a feature file.

    They say nothing about real videos (see the module). Measured on CharadesLT's test set with seeds 0 to 2 and the
    other defaults: ``Nonlinear`` (BCE, Adam at 2e-3, batches of 64) reaches an mAP of 0.095 to 0.098 after 5 epochs and
    0.114 to 0.116 after 10; at 1e-3 in batches of 128, 0.115 to 0.121 after 20 (head 0.20 to 0.22, medium 0.10 to 0.11,
    tail 0.04 to 0.05). Random scores give 0.059; whoever knew which segments show at all would reach 0.17.

    Parameters
    ----------
    split : Split, str or Path
        A split, its file, or its name.
    out : path
        The file, float16. A run that was cut off is gone on with; a file made with other arguments is refused.
    frames, dim, seed, difficulty
        As in ``frame_features``.
    subset : str, optional
        ``train``, ``val`` or ``test``; all three where left out.
    progress : callable, optional
        Called with a title and the number of videos; gives a context manager whose value is called with steps done.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    SplitError
        There is no such split or subset.
    FeatureError
        An argument makes no sense, an id cannot name features, or the file cannot be written.
    """
    split = split if isinstance(split, Split) else load_split(split)
    frames, difficulty = _whole("frames", frames), _checked_difficulty(difficulty)
    world = make_world(split.num_classes, dim, seed)
    table = split.table if subset is None else split.rows(subset)
    recipe = {
        "backbone": "simulation",
        "formula": FORMULA,
        "split": split.digest,
        "frames": frames,
        "seed": int(seed),
        "difficulty": difficulty,
    }
    start = progress or (lambda title, total: nullcontext(lambda steps: None))
    with start("simulating features", len(table)) as advance:

        def render(position: int) -> Reals:
            advance(1)
            return _video_features(world, rows.slice(position, 1).to_pylist()[0], frames, seed, difficulty)

        rows = table.sort_by("video_id").combine_chunks()
        write(Path(out), rows.column("video_id").to_pylist(), (frames, dim), recipe, render)
    return Path(out)


def write(
    path: Path, video_ids: list[str], shape: tuple[int, int], recipe: Recipe, render: Callable[[int], Reals]
) -> None:
    """Write a feature file, asking for each video (by its position) that an earlier run has not written."""
    wrong = [repr(video_id) for video_id in video_ids if not _is_usable(video_id)]
    if wrong:
        raise FeatureError(f"these ids cannot name features in a file: {first_few(wrong)}; rename these videos")
    layout = Layout(
        video_ids=tuple(video_ids),
        rows=np.full(len(video_ids), shape[0], dtype=np.int64),
        fixed=True,
        dim=shape[1],
        dtype="float16",
        timed=False,
        source_sizes=np.zeros(len(video_ids), dtype=np.int64),
    )
    with feature_writer(path, layout, recipe) as writer:
        for position in writer.pending.tolist():
            writer.put(position, VideoRows(render(position).astype(np.float16)))
        writer.finish()


def _is_usable(video_id: str) -> bool:
    try:
        check_id(video_id)
    except Unusable:
        return False
    return True


def _video_features(world: World, row: dict[str, Any], frames: int, seed: int, difficulty: float) -> Reals:
    generator = video_generator(row["video_id"], seed)
    return _render(world, draw_moments(row, frames, generator), frames, difficulty, generator)


def video_generator(video_id: str, seed: int) -> np.random.Generator:
    """Return the generator of one video's draws: of the seed and the id's sha256, so of no order and no other video."""
    words = np.frombuffer(hashlib.sha256(video_id.encode()).digest(), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence([_whole("seed", seed, 0), *words.tolist()]))


def draw_moments(row: dict[str, Any], frames: int, generator: np.random.Generator) -> list[Moment]:
    """Return in which frames the labels of a video show.

    Parameters
    ----------
    row : dict
        ``labels``, ``segments`` and ``length_s`` of a row of ``split.table``.
    frames : int
        T.
    generator : numpy.random.Generator
        Draws a segment, of 0.2 to 0.9 of the video, for each label that has none.

    Returns
    -------
    list of Moment
        Segments in the split's order, then labels without one. Each has a frame at least: official segments can be
        shorter than the distance of two frames, end before they begin, or lie past the end of the video; they are
        taken as what lies between both ends, and cut to the video.
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
    moments = []
    for label, start, end in spans:
        first, last = int(np.ceil(start * frames - 0.5)), int(np.floor(end * frames - 0.5))
        if last < first:
            first = last = min(int((start + end) / 2 * frames), frames - 1)
        moments.append(Moment(label, first, last))
    return moments


def _render(
    world: World, moments: list[Moment], frames: int, difficulty: float, generator: np.random.Generator
) -> Reals:
    """Return a video's (frames, D) features; all draws are made whatever the difficulty, and in the same order."""
    num_places, dim = world.places.shape
    amplitudes = np.exp(AMPLITUDE_SPREAD * generator.standard_normal(len(moments)))
    amplitudes *= generator.random(len(moments)) < SHOWN_SHARE**difficulty
    signs = generator.choice((-1.0, 1.0), size=len(moments))
    envelope = np.zeros((frames, len(moments)), dtype=np.float32)
    turns = np.where(np.arange(frames) % 2, -1.0, 1.0)
    for column, moment in enumerate(moments):
        shown = slice(moment.first, moment.last + 1)
        moves = world.is_motion[moment.label]
        envelope[shown, column] = (signs[column] * turns[shown] if moves else 1.0) * amplitudes[column]
    labels = np.array([moment.label for moment in moments], dtype=np.intp)
    moving = world.is_motion[labels]

    scene = SCENE_PLACES * generator.standard_normal(num_places, dtype=np.float32) @ world.places
    # More features of independent noise would tell classes apart ever better: hold that fixed as D grows.
    spread = np.float32(np.sqrt(dim / DIM))
    scene += SCENE_OWN * spread * generator.standard_normal(dim, dtype=np.float32)
    noise = generator.standard_normal((frames, dim), dtype=np.float32)
    noise[1:] *= np.float32(np.sqrt(1.0 - NOISE_MEMORY**2))
    for frame in range(1, frames):
        noise[frame] += np.float32(NOISE_MEMORY) * noise[frame - 1]

    features = noise
    features *= np.float32(difficulty * NOISE) * spread
    features += world.base + np.float32(difficulty) * scene
    features += np.float32(SIGNAL) * (envelope[:, ~moving] @ world.prototypes[labels[~moving]])
    np.maximum(features, 0.0, out=features)
    if moving.any():
        # Cut alike on both sides, so that the mean stays: never below nothing, never above twice.
        features *= 1.0 + np.clip(envelope[:, moving] @ world.patterns[labels[moving]], -1.0, 1.0)
    return features


def _whole(name: str, value: int, least: int = 1) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if whole < least:
        raise FeatureError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return whole


def _checked_difficulty(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= _HARDEST:
        raise FeatureError(f"difficulty must be a number from 0 to {_HARDEST} (default {DIFFICULTY}), got {value!r}")
    return float(value)


DATASET = "simulatedlt"

_LABELS = 5.0  # a video beyond the first, on average
_LEAST_POSITIVES = 4  # of a class in a subset that is evaluated on
_SECONDS = (20.0, 40.0)  # of a video
_SHARE = (0.1, 0.5)  # of a video that a segment takes
# The most frequent class is as many times as frequent as the rarest; val and test are drawn towards uniform.
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
    """Draw a split with Pareto-like class frequencies, several labels a video and temporal segments.

    Parameters
    ----------
    videos : (int, int, int)
        Of train, val and test, at least 1 each.
    num_classes : int
        C, at least 3.
    head_above, tail_up_to : int
        Thresholds of the groups, in training videos of a class.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    Split
        Of the dataset ``simulatedlt``, variant ``simulated``. Nothing in it is real.

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
        raise SplitError(f"a split needs 3 classes and 1 video a subset at least, got {num_classes} and {videos}")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    rarity = np.linspace(0, 1, num_classes)
    weights = _IMBALANCE**-rarity
    annotations = Annotations(class_names=tuple(f"class {index:03d}" for index in range(num_classes)))
    placed: list[str] = []
    for subset, count in zip(SUBSETS, videos, strict=True):
        labels = _draw_labels(
            generator, weights if subset == "train" else weights**_EVALUATED_POWER, count,
            1 if subset == "train" else _LEAST_POSITIVES,
        )  # fmt: skip
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
            annotations.subjects.append("")
            annotations.views.append("")
            annotations.pair_ids.append("")
            placed.append(subset)
    return Split.from_annotations(
        annotations,
        placed,
        dataset=DATASET,
        variant="simulated",
        seed=seed,
        head_above=head_above,
        tail_up_to=tail_up_to,
    )


def _draw_labels(
    generator: np.random.Generator, weights: npt.NDArray[np.float64], videos: int, least: int
) -> npt.NDArray[np.bool_]:
    """Draw a (videos, C) label matrix: classes by weight without replacement, each class ``least`` times at least."""
    wanted = np.minimum(1 + generator.poisson(_LABELS, videos), len(weights))
    # The k largest of log-weight plus Gumbel noise are a draw without replacement.
    keys = np.log(weights) + generator.gumbel(size=(videos, len(weights)))
    ranks = np.argsort(np.argsort(-keys, axis=1), axis=1)
    labels: npt.NDArray[np.bool_] = ranks < wanted[:, None]
    for label in np.flatnonzero(labels.sum(axis=0) < min(least, videos)):
        absent = np.flatnonzero(~labels[:, label])
        missing = min(least, videos) - int(labels[:, label].sum())
        labels[generator.choice(absent, missing, replace=False), label] = True
    return labels
