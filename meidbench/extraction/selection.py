"""The frames that the samples of one video take: of the whole video, or of a part of it each."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meidbench.errors import write_count
from meidbench.extraction.frames import DecodingResult, Frame, FrameRule, Restart, join_lines
from meidbench.splits.rows import Span

# A span may end this much later than the last frame, in seconds: annotators round, and the last frame is shown on.
_TOLERANCE = 1.0


@dataclass(frozen=True)
class SampleResult:
    """The result of one of the samples that are read in one pass over their video; none of its frames comes later."""

    sample: int  # its position among them
    result: DecodingResult


SampleStream = Generator[Frame | Restart | SampleResult, None, None]


def find_range(times: npt.NDArray[np.float64], span: Span | None) -> tuple[int, int]:
    """Return the first frame of a span and the one after its last, of frames shown at these times.

    A span between two frames has the frame that is shown then. One after the last frame has none: both are equal.

    >>> times = np.array([0.0, 0.5, 1.0, 1.5])
    >>> find_range(times, Span("a", 0.5, 1.5)), find_range(times, Span("a", 0.6, 0.9)), find_range(times, None)
    ((1, 3), (1, 2), (0, 4))
    """
    if span is None:
        return 0, len(times)
    first, end = (int(place) for place in np.searchsorted(times, [span.start_s, span.end_s]))
    if first == end and 0 < first < len(times):
        first -= 1
    return first, end


class FrameSelection:
    """The samples of a video that wait for frames.

    ``choose`` chooses their frames, ``take`` gives a frame to those that take it, and the result of each with its last
    frame. A sample with a result waits no longer, so damage further back in the video does not concern it.
    """

    def __init__(self, spans: Sequence[Span | None], rule: FrameRule) -> None:
        self._spans, self._rule = spans, rule
        self._waiting = dict.fromkeys(range(len(spans)))
        self._results: dict[int, DecodingResult] = {}
        self._takers: dict[int, list[int]] = {}
        self._missing: dict[int, int] = {}  # of each sample, the number of frames that are still to be taken
        self._given = False  # whether a sample that waits has been given a frame

    def __bool__(self) -> bool:
        """Whether a sample waits."""
        return bool(self._waiting)

    @property
    def frames(self) -> list[int]:
        """The frames that are still to be taken, ascending."""
        return sorted(self._takers)

    def choose(
        self,
        times: npt.NDArray[np.float64],
        reason: str = "",
        *,
        damaged_from: int = 0,
        numbers: npt.NDArray[np.int64] | None = None,
        cut: str = "",
        num_frames: int = 0,
        corrupt_frames: int = 0,
    ) -> Iterator[Restart | SampleResult]:
        """Choose frames for every sample that waits; samples that were chosen for before begin again.

        Parameters
        ----------
        times : (n,) float64
            When each frame is shown, in seconds since the first frame of the video.
        reason, cut : str
            Damage of the video, and the early end of its file, which concerns samples at the end only.
        damaged_from : int
            The first frame that the damage may concern; samples that end before it are undamaged.
        numbers : (n,) int64, optional
            The frame's number in the video; by default 0 to n - 1.
        num_frames, corrupt_frames : int
            As in ``DecodingResult``, for a sample that is the whole video; n by default.
        """
        if self._given:
            yield Restart()
        self._takers, self._given = {}, False
        for sample in list(self._waiting):
            span = self._spans[sample]
            first, end = find_range(times, span)
            if first == end:
                what = f"the part begins at {span.start_s:g} s, the last frame is at {times[-1]:g} s" if span else ""
                yield self._close(sample, DecodingResult.from_failure(what))
                continue
            rows = first + self._rule.choose(times[first:end])
            is_damaged = span is None or end > damaged_from
            reasons = [reason] if is_damaged else []
            if span is None or span.end_s > times[-1] + _TOLERANCE:
                reasons.append(cut)
            if span and not cut and span.end_s > times[-1] + _TOLERANCE:
                reasons.append(f"the part ends at {span.end_s:g} s, the last frame is at {times[-1]:g} s")
            # The feature file has space for the rows that were counted from the packets.
            if sample in self._results and (surplus := len(rows) - len(self._results[sample].indices)) > 0:
                rows = rows[:-surplus]
                reasons.append(f"more frames than packets, {write_count(surplus, 'row')} left out")
            told = join_lines("; ".join(filter(None, reasons)))
            indices = rows if numbers is None else numbers[rows]
            self._results[sample] = DecodingResult(
                indices.astype(np.int32),
                times[rows],
                "salvaged" if told else "ok",
                told,
                (num_frames or len(times)) if span is None else end - first,
                corrupt_frames if is_damaged else 0,
            )
            wanted = np.unique(indices).tolist()
            self._missing[sample] = len(wanted)
            for index in wanted:
                self._takers.setdefault(index, []).append(sample)

    def take(self, frame: Frame) -> Iterator[Frame | SampleResult]:
        """Give a chosen frame to its samples, and the result of each that has all its frames now."""
        takers = self._takers.pop(frame.index)
        self._given = True
        yield Frame(frame.index, frame.image, tuple(takers))
        for sample in takers:
            self._missing[sample] -= 1
            if not self._missing[sample]:
                yield self._close(sample, self._results[sample])

    def fail(self, reason: str, num_frames: int = 0, corrupt_frames: int = 0) -> Iterator[SampleResult]:
        """Give every sample that waits the same failure."""
        for sample in list(self._waiting):
            yield self._close(sample, DecodingResult.from_failure(reason, num_frames, corrupt_frames))

    def _close(self, sample: int, result: DecodingResult) -> SampleResult:
        del self._waiting[sample]
        return SampleResult(sample, result)
