"""The budget of a run, as its prediction file has it: steps, learning rates, trials, the choice of the checkpoint.

The facts come from files of others: numbers that make no sense are unknown, and texts are never taken over.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from meidbench.checks import is_whole_number
from meidbench.names import RECORDED_SELECTIONS

UNEQUAL = 2  # budgets whose steps differ by a larger factor are unequal
COLUMNS = ("steps", "rate", "batch", "trials", "select_on")
MEANING = "steps: of the optimiser; rate: the first; batch: videos per step; a + b: of two stages"
SELECTION_MEANING = "; select_on: the subset that chose the checkpoint, or last: the last epoch"
NO_STEPS = "no steps"
_UNKNOWN = "-"
_MOST = 1 << 53  # of a number in JSON that every reader has exactly
_MOST_STAGES = 8


@dataclass(frozen=True)
class StageBudget:
    """One training: the steps that it took to its end, the first learning rate, videos per step, epochs.

    A number that is unknown is None.
    """

    steps: int | None
    lr: float | None
    batch_size: int | None
    epochs: int | None


@dataclass(frozen=True)
class Budget:
    """The trainings behind the scores of a run, in order, and the number of trials from which it was chosen.

    A method without an optimiser has no stage; the trials are 1 for settings that were not searched. ``select_on`` is
    the subset that chose the checkpoint, ``last`` where none did, empty where it is unknown.
    """

    stages: tuple[StageBudget, ...]
    trials: int | None = 1
    select_on: str = ""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Budget | None":
        """Read ``{"run": {"budget": ..., "select_on": ...}}`` of a prediction file; None without a budget."""
        run = metadata.get("run")
        budget = cls.from_facts(run.get("budget")) if isinstance(run, dict) else None
        return budget and replace(budget, select_on=_selection(metadata["run"]))

    @classmethod
    def from_facts(cls, table: object) -> "Budget | None":
        """Read the table of ``to_facts``; None for what is no budget.

        Examples
        --------
        >>> stage = {"steps": 300, "lr": 1e-4, "batch_size": 128, "epochs": 100}
        >>> Budget.from_facts({"stages": [stage], "trials": 1}).steps
        300
        """
        stages = table.get("stages") if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(stages, list | tuple) or len(stages) > _MOST_STAGES:
            return None
        if not all(isinstance(stage, dict) for stage in stages):
            return None
        read = tuple(
            StageBudget(
                steps=_count(stage.get("steps")),
                lr=_rate(stage.get("lr")),
                batch_size=_count(stage.get("batch_size")),
                epochs=_count(stage.get("epochs")),
            )
            for stage in stages
        )
        return cls(read, _count(table.get("trials")), _selection(table))

    def to_facts(self) -> dict[str, Any]:
        """Return the table that ``from_facts`` reads."""
        known = {"select_on": self.select_on} if self.select_on else {}
        return {"stages": [asdict(stage) for stage in self.stages], "trials": self.trials, **known}

    @property
    def steps(self) -> int | None:
        """The steps of all stages together; None where one is unknown, 0 without an optimiser."""
        known = [stage.steps for stage in self.stages if stage.steps is not None]
        return sum(known) if len(known) == len(self.stages) else None


Budgets = Sequence[Budget | None]  # of the runs of one method; None is unknown


def _count(value: Any) -> int | None:
    return int(value) if is_whole_number(value, 1) and value < _MOST else None


def _rate(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value < _MOST else None


def _selection(facts: Mapping[str, Any]) -> str:
    value = facts.get("select_on")
    return value if isinstance(value, str) and value in RECORDED_SELECTIONS else ""


def describe_budgets(budgets: Budgets) -> dict[str, str]:
    """Return the budget of a method's runs as texts, by ``COLUMNS``: ``1,800 + 1,800`` for two stages.

    Numbers in which the runs differ are a range. A rate or a batch that all stages have is given once.

    Examples
    --------
    >>> stages = StageBudget(1800, 1e-3, 64, 60), StageBudget(1750, 1e-4, 64, 60)
    >>> describe_budgets([Budget(stages, 20, "val")])
    {'steps': '1,800 + 1,750', 'rate': '0.001 + 0.0001', 'batch': '64', 'trials': '20', 'select_on': 'val'}
    """
    known = [budget for budget in budgets if budget is not None]
    if not known:
        return dict.fromkeys(COLUMNS, _UNKNOWN)
    numbers = dict.fromkeys(len(budget.stages) for budget in known)
    alike = [[budget.stages for budget in known if len(budget.stages) == number] for number in numbers]
    texts = {
        "steps": _join(_over_stages(stages, lambda stage: stage.steps, ",") or NO_STEPS for stages in alike),
        "rate": _join(_shorten(_over_stages(stages, lambda stage: stage.lr, ".3g")) for stages in alike),
        "batch": _join(_shorten(_over_stages(stages, lambda stage: stage.batch_size, ",")) for stages in alike),
        "trials": _range([budget.trials for budget in known], ","),
        "select_on": _join(budget.select_on or _UNKNOWN for budget in known),
    }
    if len(known) < len(budgets):
        texts["steps"] += " or unknown"
    return texts


def describe_total(budgets: Budgets) -> str:
    """Return the steps of all stages together, a range where the runs differ; a dash where they are unknown."""
    known = [budget for budget in budgets if budget is not None]
    return _range([budget.steps for budget in known], ",") if known else _UNKNOWN


def _over_stages(
    runs: Sequence[tuple[StageBudget, ...]], value: Callable[[StageBudget], float | None], form: str
) -> str:
    """Return a number of each stage, over runs with the same number of stages."""
    return " + ".join(_range([value(stage) for stage in stages], form) for stages in zip(*runs, strict=True))


def _range(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return _UNKNOWN
    texts = [f"{value:{form}}".replace("e-0", "e-") for value in (min(known), max(known))]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def _shorten(text: str) -> str:
    """Return the text of one stage where all are the same."""
    stages = text.split(" + ")
    return stages[0] or _UNKNOWN if len(set(stages)) == 1 else text


def _join(texts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(texts))


def describe_inequality(methods: Mapping[str, Budgets]) -> str:
    """Say how the budgets of methods are unequal; empty where they are not, or are unknown.

    They are unequal where the steps of all stages together differ by more than a factor of ``UNEQUAL``, or the trials
    differ at all. Of several runs of a method the largest counts. A method without an optimiser has no steps here.

    Examples
    --------
    >>> bce, meid = Budget((StageBudget(300, 1e-4, 64, 9),)), Budget((StageBudget(900, 1e-3, 64, 30),) * 2, 20)
    >>> describe_inequality({"bce": [bce], "meid": [meid]})
    'Budgets are unequal: 300 steps (bce) to 1,800 (meid), a factor of 6; 1 trial (bce) to 20 (meid).'
    """
    steps, trials = dict[str, int](), dict[str, int]()
    for name, budgets in methods.items():
        known = [budget for budget in budgets if budget is not None]
        for found, values in ((steps, [b.steps for b in known]), (trials, [b.trials for b in known])):
            if counted := [value for value in values if value]:
                found[name] = max(counted)
    texts = []
    if steps and max(steps.values()) > UNEQUAL * min(steps.values()):
        factor = max(steps.values()) / min(steps.values())
        texts.append(f"{_from_to(steps, 'step')}, a factor of {factor:.{1 if factor < 9.95 else 0}f}".replace(".0", ""))
    if len(set(trials.values())) > 1:
        texts.append(_from_to(trials, "trial"))
    return f"Budgets are unequal: {'; '.join(texts)}." if texts else ""


def _from_to(counts: Mapping[str, int], noun: str) -> str:
    low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    least = counts[low]
    return f"{least:,} {noun}{'' if least == 1 else 's'} ({low}) to {counts[high]:,} ({high})"
