"""A split that was drawn, beside what it was drawn after."""

import textwrap
from dataclasses import asdict

import numpy as np

from meidbench.construction import Construction, SplitDistance
from meidbench.construction.targets import ExactTargets
from meidbench.errors import first_few
from meidbench.manifests import SUBSETS, Manifest
from meidbench.report.text import fitting_table, paper_column, statistics_column
from meidbench.split import GROUP_NAMES, Split
from meidbench.statistics import split_statistics

_KEPT = "\u00a0"  # a blank at which no line is broken


def construction_report(
    made: Construction,
    *,
    manifest: Manifest | None = None,
    released: Split | None = None,
    distance: SplitDistance | None = None,
    width: int = 100,
) -> str:
    """Lay out the statistics beside the released split's and the paper's, the targets, and how far off they are.

    Parameters
    ----------
    made : Construction
    manifest : Manifest, optional
        Of the benchmark that the videos are of.
    released : Split, optional
        Its published split.
    distance : SplitDistance, optional
        From ``made.split`` to ``released``.
    width : int
        Characters in a line.
    """
    split = made.split
    header = [manifest.title if manifest else split.dataset, f"{split.variant}, seed {made.seed}"]
    columns = [statistics_column(asdict(split_statistics(split)))]
    if released is not None:
        header.append("released")
        columns.append(statistics_column(asdict(split_statistics(released))))
    if manifest is not None and manifest.paper:
        header.append("paper")
        columns.append(paper_column(manifest))
    lines = [_targets_line(made), _candidates_line(made), _target_line(made)]
    if distance is not None:
        lines += _released_lines(distance)
    folded = [textwrap.fill(line, max(width, 40), subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join([fitting_table(header, columns, width), "", *(line.replace(_KEPT, " ") for line in folded)])


def _group_sizes(made: Construction) -> list[int]:
    return [len(getattr(made.split.groups, name)) for name in GROUP_NAMES]


def _targets_line(made: Construction) -> str:
    values = {name: value for name, value in asdict(made.targets).items() if value not in (None, ())}
    shown = {name: "+".join(value) if isinstance(value, tuple) else _number(value) for name, value in values.items()}
    return f"targets: {', '.join(f'{name} {value}' for name, value in shown.items())}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _candidates_line(made: Construction) -> str:
    least = made.targets.least_seconds
    lasting = "" if least is None else f", of {least:.3g} s or more or of unknown length"
    return f"candidates: {made.candidates:,} video{'s' * (made.candidates != 1)} with a label{lasting}"


def _target_line(made: Construction) -> str:
    if isinstance(made.targets, ExactTargets):
        return "every number is as the targets have it"
    if not made.total_deviation:
        return "every class has as many training videos as the target says"
    far = int(np.abs(made.deviations).argmax())
    return (
        f"distance to the target: {made.total_deviation:,} training video{'s' * (made.total_deviation != 1)}, "
        f"summed over the classes; at most {made.largest_deviation:,} (class {far} {made.split.class_names[far]!r}: "
        f"{made.split.train_counts[far]:,} for {made.target_counts[far]:,})"
    )


def _released_lines(distance: SplitDistance) -> list[str]:
    shared = [f"{share:.0%}" if share == share else "-" for share in distance.shared_videos.values()]
    return [
        f"distance to the released split: {distance.mean_count_difference:.1f} training videos a class, "
        f"{distance.mean_curve_difference:.1f} with the classes sorted; {distance.same_group:.0%} of the classes in "
        "the same group",
        f"videos in both, of those in either: {' / '.join(shared)} ({' / '.join(SUBSETS)})",
    ]


def construction_warnings(made: Construction) -> list[str]:
    """Return a sentence for each empty frequency group, and each subset in which classes have too few videos."""
    targets = made.targets
    empty = [name for name, size in zip(GROUP_NAMES, _group_sizes(made), strict=True) if not size]
    warnings = []
    if empty:
        warnings.append(
            f"no class is in {' or '.join(empty)} (head above {targets.head_above:,} training videos, tail up to "
            f"{targets.tail_up_to:,}); head_above and tail_up_to can be set"
        )
    for subset, wanted in (("val", targets.val_videos), ("test", targets.test_videos)):
        if wanted is not None and (size := len(made.split.rows(subset))) != wanted:
            warnings.append(f"{subset} has {size:,} videos, {wanted:,} were aimed at")
    for subset in SUBSETS:
        short = [entry for entry in made.shortfalls if entry.subset == subset]
        if short:
            named = first_few(
                f"{entry.class_index} {entry.class_name!r} ({entry.got} for {entry.wanted}; {entry.available:,} "
                "candidates in all)"
                for entry in short
            )
            warnings.append(f"{len(short):,} class(es) with too few videos in {subset}: {named}")
    return warnings
