"""The plot of class frequencies, drawn with matplotlib (the extra ``plot``), and the table of results per class."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meidbench.errors import MeidbenchError
from meidbench.evaluation.results import Result
from meidbench.files import written_whole
from meidbench.names import PLOT_FORMATS, RELEASED
from meidbench.report.text import make_cells_safe
from meidbench.splits.split import GROUP_NAMES, Split

# Okabe and Ito's palette, which colour-blind readers can tell apart.
GROUP_COLOURS = {"head": "#0072B2", "medium": "#E69F00", "tail": "#D55E00"}


def plot_class_frequencies(splits: Sequence[Split], path: Path) -> Path:
    """Draw one panel per split: training videos per class, descending, coloured by group; as PNG, SVG or PDF."""
    if path.suffix.lower() not in PLOT_FORMATS:
        raise MeidbenchError(f"cannot draw {path.name}: known formats are {', '.join(PLOT_FORMATS)}")
    try:
        import matplotlib
    except ImportError:
        raise MeidbenchError("plots need matplotlib: pip install 'meidbench[plot]'") from None
    # A figure without pyplot needs no display; the salt and the missing date keep the bytes the same.
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "meidbench", "font.size": 10}):
        figure = Figure(figsize=(5.0 * len(splits), 3.6), layout="constrained")
        panels = figure.subplots(1, len(splits), squeeze=False)[0]
        for axes, split in zip(panels, splits, strict=True):
            order = np.argsort(-split.train_counts, kind="stable")
            rank_of = np.empty_like(order)
            rank_of[order] = np.arange(1, len(order) + 1)
            for name in GROUP_NAMES:
                group = getattr(split.groups, name)
                label = f"{name} ({len(group)})"
                axes.bar(rank_of[group], split.train_counts[group], width=1.0, color=GROUP_COLOURS[name], label=label)
            for threshold in (split.metadata.head_above, split.metadata.tail_up_to):
                axes.axhline(threshold, color="0.45", linewidth=0.8, linestyle=":")
            axes.set_yscale("log")
            axes.set_xlim(0.5, max(split.num_classes, 1) + 0.5)
            axes.set_xlabel("class, by descending frequency")
            axes.set_ylabel("training videos")
            axes.set_title(split.dataset if split.variant == RELEASED else f"{split.dataset} ({split.variant})")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, title="classes")
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        with written_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=160, metadata=metadata)
    return path


def write_per_class(result: Result, path: Path) -> Path:
    """Write the result of each class as CSV; the AP cell of a class without positives stays empty."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("class", "name", "group", "train_count", "positives", "ap"))
        for entry in result.per_class:
            ap = "" if math.isnan(entry.ap) else repr(entry.ap)
            row = (entry.index, entry.name, entry.group, entry.train_count, entry.positives, ap)
            writer.writerow(make_cells_safe(row))
    return path
