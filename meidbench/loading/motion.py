"""MEID's motion stream: what changes from a feature row to the next, and one static row at the end."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from meidbench.errors import FeatureError

WHEN = ("full", "sampled")
STATIC = ("mean", "sum", "none")

# Of each video, so many sums run side by side, of every such row, which are added in pairs at the end: it is fast, the
# order is fixed, and rounding errors stay small.
_LANES = 8

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Motion:
    """How the motion stream X_M of a video is made (Eq 10 of MEID).

    Of rows x_1 to x_T it is x_2 - x_1, ..., x_T - x_(T-1), and as its last row the mean of all T rows: as many rows as
    X has. A video of one row has the static row alone.

    Parameters
    ----------
    when : str
        ``full`` makes it of all rows that a video has, and takes rows of it as rows are taken of X; ``sampled`` makes
        it of the rows that were taken, of which random ones may be there twice, with no difference.
    same_index : bool
        Of ``full``: take the same rows of X_M as of X. False draws them independently, as the authors' code does;
        that changes random sampling only.
    static : str
        The last row: ``mean``, ``sum`` or ``none`` (zeros).
    release_bug : bool
        What the authors' script writes, which sums into a row that it still needs: the first row is x_2 - (x_1 + x_2),
        which is -x_1 but for rounding. It needs ``static="sum"`` and ``when="full"``, as the script has them.

    Raises
    ------
    FeatureError
        A value is unknown, or two contradict each other.

    Notes
    -----
    The script is ``data/charadesego/diff.py`` of the authors' release (github.com/abcdvzz/MEID).

    Examples
    --------
    >>> Motion()
    Motion(when='full', same_index=True, static='mean', release_bug=False)
    >>> released = Motion(same_index=False, static="sum", release_bug=True)
    """

    when: str = "full"
    same_index: bool = True
    static: str = "mean"
    release_bug: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("when", self.when, WHEN), ("static", self.static, STATIC)):
            if value not in known:
                raise FeatureError(f"unknown {name} of motion {value!r}; known: {', '.join(known)}")
        for name, flag in (("same_index", self.same_index), ("release_bug", self.release_bug)):
            if not isinstance(flag, bool):
                raise FeatureError(f"{name} of motion must be True or False, got {flag!r}")
        if self.when == "sampled" and not self.same_index:
            raise FeatureError(
                "motion of sampled rows has no other rows to draw: same_index=False needs when='full', "
                f"got {self.when!r}"
            )
        if self.release_bug and (self.when, self.static) != ("full", "sum"):
            raise FeatureError(
                "release_bug is what the authors' script writes: it needs when='full' and static='sum', "
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

    The numbers of a video have the same bits alone and among others, whichever rows of it are taken.

    Parameters
    ----------
    rows : (R, D) float32 tensor
        All rows of one video, or of several end to end.
    motion : Motion, optional
        Eq 10 as the paper has it where left out. Which rows are taken is for ``indices`` to say.
    counts : (V,) integers, optional
        Rows of each video, R in sum; one video where left out.
    indices : (V, F) integers, optional
        Rows to take, counted from 0 in each video; all where left out.
    taken : (V * F, D) tensor, optional
        What ``indices`` take of ``rows``, where that is at hand; it saves time.
    out : tensor, optional
        Where to put them: float32, contiguous, of as many rows.

    Returns
    -------
    (R, D) float32 tensor; with ``indices`` (V * F, D).

    Raises
    ------
    FeatureError
        Rows are not (R, D) of float32, counts are not theirs, or a row to take is outside its video.

    Notes
    -----
    Rows are summed in float32, in an order that depends on their number alone; the bits of ``torch.sum`` depend on what
    else is summed.

    Examples
    --------
    >>> import torch
    >>> video = torch.tensor([[1.0, 0.0], [4.0, 1.0], [4.0, 5.0]])
    >>> motion_rows(video).tolist()
    [[3.0, 1.0], [0.0, 4.0], [3.0, 2.0]]
    >>> motion_rows(video, counts=[1, 2], indices=[[0, 0], [0, 1]]).tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.0, 4.0], [4.0, 3.0]]
    """
    motion = motion or Motion()
    if rows.ndim != 2 or rows.dtype != torch.float32:
        raise FeatureError(f"motion needs float32 rows (R, D), got {rows.dtype} of shape {tuple(rows.shape)}")
    lengths = np.array([len(rows)] if counts is None else counts, np.int64)
    if lengths.ndim != 1 or (lengths < 1).any() or lengths.sum() != len(rows):
        raise FeatureError(f"counts of at least 1 must sum to the {len(rows):,} rows, got {lengths.tolist()[:5]}")
    starts = np.cumsum(lengths) - lengths
    if indices is None:
        out = torch.empty_like(rows) if out is None else out.view(rows.shape)
        torch.sub(rows[1:], rows[:-1], out=out[:-1])
        videos = np.arange(len(lengths))
        _put(out, starts + lengths - 1, videos, _static(rows, starts, lengths, motion.static))
        first, holders = starts[lengths > 1], videos[lengths > 1]
    else:
        wanted = np.array(indices, np.int64)
        if wanted.ndim != 2 or len(wanted) != len(lengths) or ((wanted < 0) | (wanted >= lengths[:, None])).any():
            raise FeatureError(
                f"rows to take must be (V, F), each inside its video, got {wanted.shape} for {len(lengths):,} videos"
            )
        out = rows.new_empty(wanted.size, rows.shape[1]) if out is None else out.view(wanted.size, rows.shape[1])
        static = wanted == lengths[:, None] - 1
        joint = starts[:, None] + wanted
        torch.index_select(rows, 0, _index(joint + ~static, rows), out=out)
        out.sub_(rows.index_select(0, _index(joint, rows)) if taken is None else taken)
        at, holders = np.flatnonzero(static), np.nonzero(static)[0]
        _put(out, at, holders, _static(rows, starts, lengths, motion.static))
        begins = (wanted == 0) & ~static
        first, holders = np.flatnonzero(begins), np.nonzero(begins)[0]
    if motion.release_bug:
        # Videos of one row have no row that follows; nothing is taken of theirs.
        one, two = (rows.index_select(0, _index(np.minimum(starts + step, len(rows) - 1), rows)) for step in (0, 1))
        _put(out, first, holders, two - (one + two))
    return out


def independent_seed(seed: int) -> int:
    """Return the seed of rows that are drawn independently of those that ``seed`` draws."""
    words = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(4).tolist()
    return sum(int(word) << 32 * place for place, word in enumerate(words))


def _static(rows: torch.Tensor, starts: Indices, counts: Indices, static: str) -> torch.Tensor:
    """Return the static rows, (V, D)."""
    if static == "none":
        return rows.new_zeros(len(starts), rows.shape[1])
    sums = _sums(rows, starts, counts)
    if static == "mean":
        # By a tensor: a CUDA device multiplies with the inverse of a number, which rounds differently.
        sums.div_(torch.from_numpy(counts).to(rows.device, torch.float32)[:, None])
    return sums


def _sums(rows: torch.Tensor, starts: Indices, counts: Indices) -> torch.Tensor:
    """Sum the rows of each video, those of all videos side by side; (V, D)."""
    sums = rows.new_zeros(len(counts), _LANES, rows.shape[1])
    if (counts == counts[:1]).all():
        videos = rows.view(len(counts), -1, rows.shape[1])
        for begin in range(0, videos.shape[1], _LANES):
            block = videos[:, begin : begin + _LANES]
            sums[:, : block.shape[1]].add_(block)
    else:
        # Longest first, so that the lanes which have a row left are always the first few.
        lanes = np.arange(_LANES)
        lengths, begins = (np.ravel(-((lanes - counts[:, None]) // _LANES)), np.ravel(starts[:, None] + lanes))
        order = np.argsort(-lengths, kind="stable")
        left = np.searchsorted(-lengths[order], -np.arange(lengths.max()), side="left")
        steps = [begins[order[:some]] + _LANES * step for step, some in enumerate(left.tolist())]
        # At once: each copy to a CUDA device waits for what is under way there.
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


def _put(out: torch.Tensor, at: Indices, holders: Indices, of_videos: torch.Tensor) -> None:
    """Put the row of each holder's video where it belongs."""
    out.index_copy_(0, _index(at, out), of_videos.index_select(0, _index(holders, out)))


def _index(positions: Indices, rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(positions, np.int64).reshape(-1)).to(rows.device)
