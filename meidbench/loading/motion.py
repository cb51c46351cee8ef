"""MEID's motion stream: the differences of neighbouring feature rows, and one static row at the end."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from meidbench.checks import one_of
from meidbench.errors import FeatureError, write_count

WHEN = ("full", "sampled")
STATIC = ("mean", "sum", "none")
STATIC_ROWS = ("last", "drawn")

# Number of partial sums per video, each of every eighth row, which are added in pairs at the end: this is fast, the
# order is fixed, and rounding errors stay small.
_LANES = 8

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Motion:
    """Settings of the motion stream X_M of a video (Eq 10 of MEID).

    For rows x_1 to x_T, the stream has T rows: x_2 - x_1, ..., x_T - x_(T-1), and the mean of all rows as the last one.
    A video of one row has only the static row. The script that is named below is ``data/charadesego/diff.py`` of the
    authors' release (github.com/abcdvzz/MEID).

    Parameters
    ----------
    when : str
        ``full`` makes the stream from all rows of a video, and then takes rows of it; ``sampled`` makes it from the
        rows that were taken. A random row that was taken twice then has a difference of zero.
    same_index : bool
        For ``full``: take the same rows of X_M as of X. False draws them independently, as the authors' code does;
        that changes random sampling only.
    static : str
        The last row: ``mean``, ``sum`` or ``none`` (zeros).
    static_row : str
        For ``full``, the place of the static row among N rows that are taken. ``last``: it is always the last one of
        them, and no other, so that N frames have N - 1 differences and one static row, as in Eq 10. The last stored
        row has no next one; where it is taken before, it has the difference of the row before it, x_T - x_(T-1) (0 in
        a video of one row). ``drawn``: it is wherever the last stored row is taken, as in the authors' code; a random
        draw has it never or several times.
    release_bug : bool
        The output of the authors' script, which sums into a row that it still needs: the first row is
        x_2 - (x_1 + x_2), which is -x_1 except for rounding. It needs ``static="sum"`` and ``when="full"``, the
        settings of the script.

    Raises
    ------
    FeatureError
        A value is unknown, or two contradict each other.

    Examples
    --------
    >>> Motion()
    Motion(when='full', same_index=True, static='mean', release_bug=False, static_row='last')
    >>> released = Motion(same_index=False, static="sum", release_bug=True, static_row="drawn")
    """

    when: str = "full"
    same_index: bool = True
    static: str = "mean"
    release_bug: bool = False
    static_row: str = "last"

    def __post_init__(self) -> None:
        one_of("when of motion", self.when, WHEN, FeatureError)
        one_of("static of motion", self.static, STATIC, FeatureError)
        one_of("static_row of motion", self.static_row, STATIC_ROWS, FeatureError)
        for name, flag in (("same_index", self.same_index), ("release_bug", self.release_bug)):
            if not isinstance(flag, bool):
                raise FeatureError(f"{name} of motion must be True or False, got {flag!r}")
        if self.when == "sampled" and not self.same_index:
            raise FeatureError(
                "motion of sampled rows has no other rows to draw: same_index=False needs when='full', got 'sampled'"
            )
        if self.release_bug and (self.when, self.static) != ("full", "sum"):
            raise FeatureError(
                "release_bug is the output of the authors' script: it needs when='full' and static='sum', "
                f"got {self.when!r} and {self.static!r}"
            )


def motion_rows(
    rows: torch.Tensor,
    motion: Motion | None = None,
    *,
    counts: npt.ArrayLike | None = None,
    indices: npt.ArrayLike | None = None,
    taken: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return rows of the motion streams of videos (Eq 10 of MEID).

    The bits of a row depend neither on other videos nor on the other rows that are taken.

    Parameters
    ----------
    rows : (R, D) float32 tensor
        All rows of one video, or of several end to end.
    motion : Motion, optional
        By default Eq 10 as in the paper; only ``static``, ``static_row`` and ``release_bug`` are used.
    counts, indices : (V,) and (V, F) integers, optional
        Rows of each video, R in sum (one video by default), and rows to take, counted from 0 in each video.
    taken : (V * F, D) tensor, optional
        The rows ``indices`` of ``rows``, if the caller has them; it saves time.
    out : (R, D) or, with ``indices``, (V * F, D) float32 tensor, optional
        Contiguous; receives the result, which is returned.

    Raises
    ------
    FeatureError
        Rows are not (R, D) of float32, counts are not theirs, or a row to take is outside its video.

    Examples
    --------
    >>> import torch
    >>> video = torch.tensor([[1.0, 0.0], [4.0, 1.0], [4.0, 5.0]])
    >>> motion_rows(video).tolist()
    [[3.0, 1.0], [0.0, 4.0], [3.0, 2.0]]
    >>> motion_rows(video, counts=[1, 2], indices=[[0, 0], [0, 1]]).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 4.0], [4.0, 3.0]]
    >>> motion_rows(video, indices=[[0, 2, 2, 2]]).tolist()
    [[3.0, 1.0], [0.0, 4.0], [0.0, 4.0], [3.0, 2.0]]
    """
    motion = motion or Motion()
    if rows.ndim != 2 or rows.dtype != torch.float32:
        raise FeatureError(f"motion needs float32 rows (R, D), got {rows.dtype} of shape {tuple(rows.shape)}")
    lengths = np.array([len(rows)] if counts is None else counts, np.int64)
    if lengths.ndim != 1 or (lengths < 1).any() or lengths.sum() != len(rows):
        raise FeatureError(
            f"counts of at least 1 must sum to the {write_count(len(rows), 'row')}, got {lengths.tolist()[:5]}"
        )
    starts = np.cumsum(lengths) - lengths
    if indices is None:
        out = torch.empty_like(rows) if out is None else out.view(rows.shape)
        torch.sub(rows[1:], rows[:-1], out=out[:-1])
        last, last_videos = starts + lengths - 1, np.arange(len(lengths))
        first, first_videos = starts[lengths > 1], np.flatnonzero(lengths > 1)
    else:
        wanted = np.array(indices, np.int64)
        if wanted.ndim != 2 or len(wanted) != len(lengths) or ((wanted < 0) | (wanted >= lengths[:, None])).any():
            raise FeatureError(
                f"rows to take must be (V, F), each inside its video, "
                f"got {wanted.shape} for {write_count(len(lengths), 'video')}"
            )
        out = rows.new_empty(wanted.size, rows.shape[1]) if out is None else out.view(wanted.size, rows.shape[1])
        is_last = wanted == lengths[:, None] - 1
        joint = starts[:, None] + wanted
        torch.index_select(rows, 0, _index(joint + ~is_last, rows), out=out)
        out.sub_(rows.index_select(0, _index(joint, rows)) if taken is None else taken)
        is_static, is_first = is_last, (wanted == 0) & ~is_last
        if motion.static_row == "last":
            is_static, is_end = _move_static_to_end(out, rows, joint, is_last & (lengths[:, None] > 1))
            is_first = (is_first | (is_end & (lengths[:, None] == 2))) & ~is_static
        last, last_videos = np.flatnonzero(is_static), np.nonzero(is_static)[0]
        first, first_videos = np.flatnonzero(is_first), np.nonzero(is_first)[0]
    _put(out, last, last_videos, _static(rows, starts, lengths, motion.static))
    if motion.release_bug:
        # A video of one row has no second row, and no row in ``first``.
        one, two = (rows.index_select(0, _index(np.minimum(starts + step, len(rows) - 1), rows)) for step in (0, 1))
        _put(out, first, first_videos, two - (one + two))
    return out


def independent_seed(seed: int) -> int:
    """Return another seed, whose draws are independent of those of ``seed``."""
    words = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(4).tolist()
    return sum(int(word) << 32 * place for place, word in enumerate(words))


def _move_static_to_end(
    out: torch.Tensor, rows: torch.Tensor, joint: Indices, is_last: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Put the difference from the row before where a last row is not taken last; return the masks of both, (V, F)."""
    is_static = np.zeros_like(is_last)
    is_static[:, -1:] = True
    is_end = is_last & ~is_static
    end = joint[is_end]
    differences = rows.index_select(0, _index(end, rows)) - rows.index_select(0, _index(end - 1, rows))
    out.index_copy_(0, _index(np.flatnonzero(is_end), out), differences)
    return is_static, is_end


def _static(rows: torch.Tensor, starts: Indices, counts: Indices, static: str) -> torch.Tensor:
    """Return the static rows, (V, D)."""
    if static == "none":
        return rows.new_zeros(len(starts), rows.shape[1])
    sums = _sums(rows, starts, counts)
    if static == "mean":
        # A tensor, because a CUDA device multiplies with the inverse of a number, which rounds differently.
        sums.div_(torch.from_numpy(counts).to(rows.device, torch.float32)[:, None])
    return sums


def _sums(rows: torch.Tensor, starts: Indices, counts: Indices) -> torch.Tensor:
    """Sum the rows of each video, (V, D), in an order that depends only on their number, unlike torch.sum."""
    sums = rows.new_zeros(len(counts), _LANES, rows.shape[1])
    if (counts == counts[:1]).all():
        videos = rows.view(len(counts), -1, rows.shape[1])
        for begin in range(0, videos.shape[1], _LANES):
            block = videos[:, begin : begin + _LANES]
            sums[:, : block.shape[1]].add_(block)
    else:
        # Longest first, so that the lanes that still have rows are always the first ones.
        lanes = np.arange(_LANES)
        lengths, begins = (np.ravel(-((lanes - counts[:, None]) // _LANES)), np.ravel(starts[:, None] + lanes))
        order = np.argsort(-lengths, kind="stable")
        left = np.searchsorted(-lengths[order], -np.arange(lengths.max()), side="left")
        steps = [begins[order[:some]] + _LANES * step for step, some in enumerate(left.tolist())]
        # One copy: each copy to a CUDA device waits for its running work.
        table, begin = _index(np.concatenate(steps), rows), 0
        sorted_sums = sums.view(-1, rows.shape[1])
        for some in left.tolist():
            sorted_sums[:some].add_(rows.index_select(0, table[begin : begin + some]))
            begin += some
        sums = sorted_sums.index_select(0, _index(np.argsort(order), rows)).view_as(sums)
    width = _LANES
    while width > 1:
        width //= 2
        sums[:, :width].add_(sums[:, width : 2 * width])
    return sums[:, 0]


def _put(out: torch.Tensor, at: Indices, videos: Indices, rows: torch.Tensor) -> None:
    """Put the row of each of these videos at its position in ``out``."""
    out.index_copy_(0, _index(at, out), rows.index_select(0, _index(videos, out)))


def _index(positions: Indices, rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(positions, np.int64).reshape(-1)).to(rows.device)
