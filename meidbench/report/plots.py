"""The plot of class frequencies, drawn with matplotlib (the extra ``plot``), and the table of results per class."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meidbench.errors import MeidbenchError
from meidbench.evaluation.results import NO_CLASSES, Result, find_watermarks
from meidbench.files import written_whole
from meidbench.names import BENCHMARKS, PLOT_FORMATS, RELEASED
from meidbench.report.text import make_cells_safe
from meidbench.splits.groups import BY_LIST, GROUP_NAMES
from meidbench.splits.manifests import load_manifest
from meidbench.splits.split import Split

# Okabe and Ito's palette, which colour-blind readers can tell apart.
GROUP_COLOURS = {"head": "#0072B2", "medium": "#E69F00", "tail": "#D55E00"}


def plot_class_frequencies(splits: Sequence[Split], path: Path) -> Path:
    """Draw one panel per split: a dot per class at its training videos, coloured by group; as PNG, SVG or PDF.

    The logarithmic axis is the same in all panels, so the splits can be compared; it has no place for 0.
    """
    if path.suffix.lower() not in PLOT_FORMATS:
        raise MeidbenchError(f"cannot draw {path.name}: known formats are {', '.join(PLOT_FORMATS)}")
    try:
        import matplotlib
    except ImportError:
        raise MeidbenchError("plots need matplotlib: pip install 'meidbench[plot]'") from None
    # A figure without pyplot needs no display; the salt and the missing date keep the bytes the same.
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "meidbench", "font.size": 10}):
        figure = Figure(figsize=(4.6 * len(splits), 3.8), layout="constrained")
        panels = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
        for axes, split in zip(panels, splits, strict=True):
            _draw_frequencies(axes, split)
        counts = np.concatenate([split.train_counts for split in splits])
        known = counts[counts > 0] if counts.any() else np.array([1, 10])
        panels[0].set_yscale("log")
        panels[0].set_ylim(0.75 * known.min(), 1.4 * known.max())
        panels[0].yaxis.set_major_formatter("{x:,.0f}")
        panels[0].set_ylabel("training videos")
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        with written_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=160, metadata=metadata)
    return path


def _draw_frequencies(axes: Any, split: Split) -> None:
    order = np.argsort(-split.train_counts, kind="stable")
    rank_of = np.empty_like(order)
    rank_of[order] = np.arange(1, len(order) + 1)
    thresholds = () if split.thresholds is None else (split.thresholds.head_above, split.thresholds.tail_up_to)
    for threshold in thresholds:
        axes.axhline(threshold, color="0.45", linewidth=0.8, linestyle=":")
        axes.annotate(f"{threshold:,}", (1, threshold), (-2, 2), xycoords=axes.get_yaxis_transform(),
                      textcoords="offset points", color="0.35", fontsize=8, ha="right")  # fmt: skip
    for name in GROUP_NAMES:
        group = getattr(split.groups, name)
        label = f"{split.group_names.get(name, name)} ({len(group) or NO_CLASSES})"
        style = {"color": GROUP_COLOURS[name], "markersize": 4 if split.num_classes > 50 else 8}
        axes.plot(rank_of[group], split.train_counts[group], ".", label=label, **style)
    without = int((split.train_counts == 0).sum())
    margin = max(0.5, split.num_classes / 60)  # the first and the last dot are whole
    axes.set_xlim(1 - margin, max(split.num_classes, 1) + margin)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("class, by descending frequency" + (f" ({without} without a training video)" if without else ""))
    title = load_manifest(split.dataset).title if split.dataset in BENCHMARKS else split.dataset
    axes.set_title(title if split.variant == RELEASED else f"{title} ({split.variant})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="classes" if split.thresholds else "classes, by list", markerscale=1.5)


def write_per_class(result: Result, path: Path) -> Path:
    """Write the result of each class as CSV; the AP cell of a class without positives stays empty.

    Where each video has one label, a column has the recall. A column tells the watermark of the scores, another one
    that the groups of the classes are by list.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        mark = "; ".join(find_watermarks(result.notes))
        marks = {"watermark": mark} if mark else {}
        if result.thresholds is None:
            marks["groups"] = BY_LIST
        header = ("class", "name", "group", "train_count", "positives", "ap")
        recall = () if result.accuracy.class_average is None else ("recall",)
        writer.writerow((*header, *recall, *marks))
        for entry in result.per_class:
            numbers = [entry.ap, *(() if entry.recall is None else (entry.recall,))]
            cells = ("" if math.isnan(number) else repr(number) for number in numbers)
            row = (entry.index, entry.name, entry.group, entry.train_count, entry.positives, *cells, *marks.values())
            writer.writerow(make_cells_safe(row))
    return path
