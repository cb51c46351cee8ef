"""The candidates, which are the videos that a split can be drawn from, as arrays; and the subset of each group."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from meidbench.annotations import Annotations
from meidbench.annotations.base import MOST_CLASSES, find_repeated
from meidbench.errors import SplitError, bullet_list, first_few, write_count
from meidbench.splits.split import Split

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pool:
    """Candidates in the order of their ids, so that nothing depends on the order of a table's rows.

    ``rows``, (m,), are the places of the candidates among the annotated videos. The classes of candidate v, ascending,
    are ``classes[bounds[v] : bounds[v + 1]]``, of shapes (L,) and (m + 1,). ``groups``, (m,), has the group of each
    candidate; every video is its own group where nothing groups them. All are int64.
    """

    rows: Integers
    bounds: Integers
    classes: Integers
    groups: Integers
    num_classes: int

    @classmethod
    def from_annotations(
        cls, annotations: Annotations, least_seconds: float | None = None, group_by: Sequence[str] = ()
    ) -> "Pool":
        """Gather the labelled videos that are long enough; those of unknown length count as long enough.

        With ``group_by`` (``pair``, ``subject``), videos that share either, directly or through others, form one group;
        a video without both is a group of its own. ``SplitError`` if the annotations contradict themselves, or no video
        can be used.
        """
        _check_annotations(annotations)
        ids, labels = annotations.video_ids, annotations.labels
        ordered = np.asarray(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
        counts = np.fromiter(map(len, labels), np.int64, len(labels))
        usable = counts > 0
        if least_seconds is not None:
            usable &= ~(np.asarray(annotations.lengths, dtype=np.float64) < least_seconds)
        rows = ordered[usable[ordered]]
        if not len(rows):
            few = "" if least_seconds is None else f" and lasts {least_seconds:g} seconds"
            raise SplitError(
                f"none of {write_count(len(ids), 'video')} has a label{few}: there is nothing to draw a split from"
            )
        counts = counts[rows]
        flat = np.fromiter(chain.from_iterable(labels[row] for row in rows), np.int64, int(counts.sum()))
        flat = flat[np.lexsort((flat, np.repeat(np.arange(len(rows)), counts)))]
        columns = [{"pair": annotations.pair_ids, "subject": annotations.subjects}[name] for name in group_by]
        groups = _components([[column[row] for row in rows] for column in columns], len(rows))
        bounds = np.concatenate([[0], np.cumsum(counts)])
        return cls(rows, bounds, flat, groups, len(annotations.class_names))

    @classmethod
    def from_split(cls, split: Split, subset: str, group_columns: Sequence[str] = ()) -> "Pool":
        """Gather all videos of a subset of a split, also those without a label; ``rows`` are places in its table.

        Videos with the same text in one of the columns form one group, directly or through others.
        """
        ids = split.table.column("video_id").to_pylist()
        is_in_subset = np.asarray(pc.equal(split.table.column("subset"), subset))
        rows = np.asarray(sorted(np.flatnonzero(is_in_subset).tolist(), key=ids.__getitem__), dtype=np.int64)
        table = split.table.take(rows)
        labels = table.column("labels").combine_chunks()
        bounds = np.concatenate([[0], np.cumsum(np.asarray(pc.list_value_length(labels)))]).astype(np.int64)
        groups = _components([table.column(name).to_pylist() for name in group_columns], len(rows))
        return cls(rows, bounds, np.asarray(labels.flatten()).astype(np.int64), groups, split.num_classes)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sizes(self) -> Integers:
        """(m,) labels of each candidate."""
        return np.diff(self.bounds)

    @cached_property
    def owners(self) -> Integers:
        """(L,) candidate of each label."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @cached_property
    def available(self) -> Integers:
        """(C,) candidates of each class."""
        return np.bincount(self.classes, minlength=self.num_classes)

    @property
    def present(self) -> int:
        """Number of classes that have a candidate."""
        return int((self.available > 0).sum())

    @cached_property
    def _by_class(self) -> tuple[Integers, Integers]:
        order = np.argsort(self.classes, kind="stable")
        return np.concatenate([[0], np.cumsum(self.available)]), self.owners[order]

    def videos_of_class(self, index: int) -> Integers:
        """Return the candidates with a class, ascending."""
        bounds, videos = self._by_class
        return videos[bounds[index] : bounds[index + 1]]

    def classes_of_video(self, video: int) -> Integers:
        """Return the classes of a candidate, ascending."""
        return self.classes[self.bounds[video] : self.bounds[video + 1]]

    def positives(self, chosen: Flags) -> Integers:
        """Return the (C,) videos of each class among the chosen, an (m,) mask."""
        return np.bincount(self.classes[chosen[self.owners]], minlength=self.num_classes)

    def positives_among(self, videos: Integers) -> Integers:
        """Return the (C,) videos of each class among a few candidates; faster for them than ``positives``."""
        sizes = self.sizes[videos]
        shift = np.repeat(self.bounds[videos] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        return np.bincount(self.classes[np.arange(len(shift)) + shift], minlength=self.num_classes)


def shuffled(values: Integers, generator: np.random.Generator) -> Integers:
    """Return values in a random order that is the same with every version of NumPy.

    It uses only ``Generator.random``, which takes 53 bits of the generator's stream per number.
    """
    return values[np.argsort(generator.random(len(values)), kind="stable")]


def _check_annotations(annotations: Annotations) -> None:
    num_classes, videos = len(annotations.class_names), len(annotations.video_ids)
    columns = ("sources", "labels", "lengths", "subjects", "views", "pair_ids", "segments")
    lengths = {name: len(getattr(annotations, name)) for name in columns}
    problems = [
        f"{write_count(n, 'entry', 'entries')} in {name} for {write_count(videos, 'video')}"
        for name, n in lengths.items()
        if n != videos
    ]
    if repeated := sorted(find_repeated(annotations.video_ids)):
        problems.append(f"{len(repeated):,} video id(s) occur more than once: {first_few(repeated)}")
    if num_classes > MOST_CLASSES:
        problems.append(f"{num_classes:,} classes are more than a split file can hold ({MOST_CLASSES:,})")
    if not problems:
        pairs = list(zip(annotations.video_ids, annotations.labels, strict=True))
        outside = [name for name, row in pairs if row and not (min(row) >= 0 and max(row) < num_classes)]
        twice = [name for name, row in pairs if len(set(row)) < len(row)]
        if outside:
            problems.append(f"labels outside the {write_count(num_classes, 'class', 'classes')}: {first_few(outside)}")
        if twice:
            problems.append(f"a label occurs twice: {first_few(twice)}")
    if problems:
        raise SplitError(f"no split can be drawn from these annotations:\n{bullet_list(problems)}")


def _components(columns: list[list[str]], videos: int) -> Integers:
    """Return the group of each video: a shared non-empty value joins two; numbered in the order of first videos."""
    if not columns:
        return np.arange(videos, dtype=np.int64)
    node_of: dict[tuple[int, str], int] = {}
    rows, nodes = [], []
    for number, column in enumerate(columns):
        for row, value in enumerate(column):
            if value:
                rows.append(row)
                nodes.append(node_of.setdefault((number, value), videos + len(node_of)))
    size = videos + len(node_of)
    # Older versions of SciPy take only 32-bit indices here.
    places = (np.asarray(rows, dtype=np.int32), np.asarray(nodes, dtype=np.int32))
    graph = coo_array((np.ones(len(rows), dtype=np.int8), places), shape=(size, size))
    _, found = connected_components(graph.tocsr(), directed=False)
    _, first, groups = np.unique(found[:videos], return_index=True, return_inverse=True)
    number_of = np.empty(len(first), dtype=np.int64)
    number_of[np.argsort(first)] = np.arange(len(first))
    return number_of[groups]


_MARGIN = 2.0  # val and test may take this many times their need: room to choose, at the cost of training
_SWEEPS = 20
_URGENT = 10.0  # weight of the needs of val and test, and of training in rare classes, beside 1 for training


def assign_groups(pool: Pool, needs: Integers, generator: np.random.Generator) -> Integers:
    """Give every group of videos to one subset, so that each subset gets its share of every class.

    Iterative stratification (Sechidis et al., ECML 2011) with different shares for each class: the classes with the
    fewest videos come first, and a group goes to the subset that lacks most videos of the class. Then groups are moved
    while this lowers the number of lacking videos. Training gets at least one group.

    ``needs``, (3, C), are the videos of each class that train, val and test need. The available ones are shared out in
    proportion, but val and test get at most twice their need. The result, (m,), is the subset that may draw each
    candidate: 0 train, 1 val, 2 test.
    """
    lacking = needs * (pool.available / np.maximum(needs.sum(axis=0), 1))
    lacking[1:] = np.minimum(lacking[1:], needs[1:] * _MARGIN)
    lacking[0] = pool.available - lacking[1:].sum(axis=0)
    order = np.argsort(pool.groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(pool.groups[order])) + 1)
    owner_of = np.full(len(members), -1, dtype=np.int64)
    for index in np.argsort(pool.available, kind="stable").tolist():
        groups = np.unique(pool.groups[pool.videos_of_class(index)])
        for group in shuffled(groups[owner_of[groups] < 0], generator).tolist():
            owner = int(lacking[:, index].argmax())
            owner_of[group] = owner
            for video in members[group].tolist():
                lacking[owner, pool.classes_of_video(video)] -= 1
    _move_groups(pool, needs, owner_of, members, generator)
    if not (owner_of == 0).any():
        owner_of[int(np.argmax([len(videos) for videos in members]))] = 0
    return owner_of[pool.groups]


def _move_groups(
    pool: Pool, needs: Integers, owner_of: Integers, members: list[Integers], generator: np.random.Generator
) -> None:
    """Move groups to other subsets while fewer videos lack then; ``owner_of`` is changed."""
    have = np.stack([pool.positives(owner_of[pool.groups] == owner) for owner in range(3)])
    urgent = np.stack([needs[0] < needs[1:].sum(axis=0), *np.ones_like(needs[1:], dtype=bool)])
    weights = np.where(needs > 0, 1 / np.maximum(needs, 1), 0) * np.where(urgent, _URGENT, 1)
    for _ in range(_SWEEPS):
        short = np.flatnonzero((have < needs).any(axis=0))
        if not len(short):
            return
        groups = np.unique(pool.groups[np.concatenate([pool.videos_of_class(index) for index in short.tolist()])])
        moved = False
        for group in shuffled(groups, generator).tolist():
            counts = pool.positives_among(members[group])
            classes = np.flatnonzero(counts)
            here, now = owner_of[group], have[:, classes]
            lack = weights[:, classes] * np.maximum(needs[:, classes] - now, 0)
            fuller = weights[:, classes] * np.maximum(needs[:, classes] - now - counts[classes], 0)
            left = weights[here, classes] * np.maximum(needs[here, classes] - now[here] + counts[classes], 0)
            # Rounded, because the last bits may differ between machines and must not decide.
            costs = np.round((fuller - lack).sum(axis=1) + (left - lack[here]).sum(), 9)
            costs[here] = 0.0
            best = int(costs.argmin())
            if costs[best] < 0:
                owner_of[group] = best
                have[here] -= counts
                have[best] += counts
                moved = True
        if not moved:
            return
