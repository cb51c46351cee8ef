"""How the draws of an epoch are divided: into steps of the optimiser, and these over processes and parts."""

from dataclasses import dataclass

from meidbench.errors import MeidbenchError


@dataclass(frozen=True)
class Part:
    """A batch as one process reads it.

    Attributes
    ----------
    videos : int
        How many of its videos count; those after them are repetitions that only make processes equally long. At
        least 1, because every process must go forward; its ``weight`` is 0 where none counts.
    weight : float
        What its mean loss is multiplied by, so that the average of the processes' summed gradients is the gradient of
        the step's mean loss.
    ends_step : bool
        Whether the optimiser moves after it.
    """

    videos: int
    weight: float
    ends_step: bool


@dataclass(frozen=True)
class EpochPlan:
    """The division of an epoch of ``draws`` videos for one process.

    Steps hold the same videos whatever ``processes`` and ``accumulate`` are: process r has the draws r, r +
    processes and so on. A last part of fewer than ``smallest`` videos is left out (batch normalisation cannot use a
    single one).

    Raises
    ------
    MeidbenchError
        A batch cannot be divided among the processes and parts, or parts are too small.

    Examples
    --------
    >>> plan = EpochPlan(draws=5, batch_size=4, accumulate=1, processes=2, rank=1)
    >>> plan.part(0), plan.part(1)
    (Part(videos=2, weight=1.0, ends_step=True), Part(videos=1, weight=0.0, ends_step=True))
    """

    draws: int
    batch_size: int
    accumulate: int = 1
    processes: int = 1
    rank: int = 0
    smallest: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.processes * self.accumulate):
            raise MeidbenchError(
                f"schedule.batch_size {self.batch_size} cannot be divided among {self.processes} process(es) with "
                f"schedule.accumulate={self.accumulate}; choose a multiple of {self.processes * self.accumulate}"
            )
        if not self.parts or self.part_size < self.smallest:
            raise MeidbenchError(
                f"{self.draws} draws an epoch in parts of {self.part_size} leave no part of at least {self.smallest} "
                f"video(s) for each of {self.processes} process(es); change schedule.batch_size or schedule.accumulate"
            )

    @property
    def part_size(self) -> int:
        """Videos of a part, but for the last."""
        return self.batch_size // (self.processes * self.accumulate)

    @property
    def parts(self) -> int:
        """Parts of this process."""
        most = -(-self.draws // self.processes)
        left_out = 0 < most % self.part_size < self.smallest
        return -(-most // self.part_size) - left_out

    @property
    def shown(self) -> int:
        """Draws of the epoch that are not left out."""
        return min(self.draws, self.parts * self.part_size * self.processes)

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return -(-self.parts // self.accumulate)

    def part(self, index: int) -> Part:
        """Return the part at ``index``, from 0."""
        step = index // self.accumulate
        own = -(-(self.shown - self.rank) // self.processes)
        counted = max(0, min(self.part_size, own - index * self.part_size))
        of_step = min(self.batch_size, self.shown - step * self.batch_size)
        ends = (index + 1) % self.accumulate == 0 or index == self.parts - 1
        return Part(max(1, counted), counted * self.processes / of_step, ends)
