"""Statistics and audit against plain loops over the rows, and against the known facts about the released splits."""

import json
import math
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from material import released_split

from meidbench.errors import MeidbenchError
from meidbench.names import SUBSETS
from meidbench.report.plots import plot_class_frequencies
from meidbench.report.text import statistics_table
from meidbench.splits.split import Split, write_split
from meidbench.splits.statistics import Finding, audit_split, split_statistics


def test_statistics_equal_plain_counting(toy_split):
    rows = toy_split.table.to_pylist()
    got = split_statistics(toy_split)
    counts = [sum(c in row["labels"] for row in rows if row["subset"] == "train") for c in range(12)]
    labels = {s: [len(row["labels"]) for row in rows if row["subset"] == s] for s in SUBSETS}
    assert (got.train, got.val, got.test) == tuple(len(labels[s]) for s in SUBSETS)
    assert (got.most_frequent, got.least_frequent) == (max(counts), min(counts))
    assert got.imbalance_ratio == max(counts) / min(counts)
    assert got.labels_per_video == pytest.approx(np.mean(labels["train"] + labels["test"]))
    assert got.labels_per_video_val == pytest.approx(np.mean(labels["val"]))
    assert got.least_positives_val == min(
        sum(c in row["labels"] for row in rows if row["subset"] == "val") for c in range(12)
    )


def test_an_empty_subset_has_no_average(toy_split):
    train = Split(toy_split.rows("train"), toy_split.metadata)
    got = split_statistics(train)
    assert got.test == 0 and np.isnan(got.labels_per_video_test) and got.least_positives_test == 0


def counts_by_sentence(split: Split) -> dict[str, int]:
    return {finding.what: finding.count for finding in found_by(split)}


def found_by(split: Split) -> list[Finding]:
    return [finding for finding in audit_split(split) if finding.severity != "not-checked"]


def not_checked(split: Split) -> dict[str, int]:
    return {finding.check: finding.count for finding in audit_split(split) if finding.severity == "not-checked"}


def test_the_audit_finds_the_known_defects_of_charadesegolt():
    split = released_split("charadesegolt")
    assert counts_by_sentence(split) == {
        "groups (takes of one script, parts of one film) in both train and val": 93,
        "groups (takes of one script, parts of one film) in both train and test": 109,
        "groups (takes of one script, parts of one film) in both val and test": 114,
        "videos of val and test with one of their group in train": 202,
        "subjects in both train (of 79) and val (of 72)": 63,
        "subjects in both train (of 79) and test (of 69)": 64,
        "subjects in both val (of 72) and test (of 69)": 65,
    }


def test_the_audit_finds_the_known_defects_of_charadeslt():
    split = released_split("charadeslt")
    found = counts_by_sentence(split)
    assert found["subjects in both train (of 177) and test (of 139)"] == 124
    assert {what.split()[0] for what in found} == {"subjects"}

    assert not_checked(split) == {"pair-leakage": 3694}


def test_the_audit_finds_nothing_in_videolt_but_tells_what_it_could_not_check():
    split = released_split("videolt")
    assert found_by(split) == []
    assert not_checked(split) == dict.fromkeys(("pair-leakage", "subject-overlap", "short-videos"), 256192)


def test_what_lacks_its_data_is_not_called_clean(toy_split, tmp_path, run):
    bare = changed(toy_split, "pair_id", lambda rows: [""] * len(rows))
    bare = changed(bare, "length_s", lambda rows: [math.nan, *rows[1:]])
    assert not_checked(toy_split) == {} and not_checked(bare) == {"pair-leakage": 213, "short-videos": 1}
    bare = changed(bare, "subject", lambda rows: [f"s{row}" for row in range(len(rows))])
    bare = changed(bare, "length_s", lambda rows: [math.nan, *[20.0] * (len(rows) - 1)])
    path = write_split(bare, tmp_path / "bare.parquet")
    outcome = run("audit", path)
    lines = outcome.stdout.splitlines()
    assert "not checked (no data): pair-leakage, short-videos (1 of 213 videos)" in lines
    clean = next(line for line in lines if line.startswith("nothing found by:"))
    assert "pair-leakage" not in clean and "short-videos" in clean and "subject-overlap" in clean
    findings = json.loads(run("audit", path, "--json").stdout)
    assert {entry["check"]: entry["count"] for entry in findings if entry["severity"] == "not-checked"} == {
        "pair-leakage": 213, "short-videos": 1,
    }  # fmt: skip
    everywhere = changed(bare, "labels", lambda rows: [list(range(12))] * len(rows))
    counts = tuple(everywhere.positives("train").tolist())
    facts = replace(bare.metadata, train_counts=counts, digest=everywhere.computed_digest, content_digest="")
    path = write_split(Split(everywhere.table, facts), tmp_path / "clean.parquet")
    assert run("audit", path, "--strict").exit_code == 0  # what was not checked was not found


def test_classes_without_a_video_are_told_from_the_tail(toy_split):
    plain = split_statistics(toy_split)
    names = (*toy_split.class_names, "nothing", "never")
    facts = replace(toy_split.metadata, num_classes=14, class_names=names, content_digest="")
    more = Split(toy_split.table, replace(facts, train_counts=(*facts.train_counts, 0, 0)))
    got = split_statistics(more)
    assert (got.classes, got.tail, got.classes_without_videos) == (14, plain.tail, 2)
    assert plain.classes_without_videos == 0 and got.least_positives_test == plain.least_positives_test
    assert "2 of the classes have no video" in statistics_table([got])


def test_the_audit_of_toylt_equals_plain_loops(toy_split):
    rows = toy_split.table.to_pylist()
    found = counts_by_sentence(toy_split)
    for a, b in combinations(SUBSETS, 2):
        bases = [{re.sub("EGO$", "", row["video_id"]) for row in rows if row["subset"] == s} for s in (a, b)]
        assert found[f"groups (takes of one script, parts of one film) in both {a} and {b}"] == len(bases[0] & bases[1])
    short = [row for row in rows if row["length_s"] * 24 < 200]
    assert found["videos of fewer than 200 frames at 24 frames per second"] == len(short) > 0


def test_each_finding_says_which_check_made_it(toy_split):
    split = changed(toy_split, "labels", lambda rows: [[], *rows[1:]])
    checks = {finding.check for finding in audit_split(split)}
    assert checks == {
        "consistency", "missing-classes", "pair-leakage", "subject-overlap", "short-videos", "unlabelled-videos",
    }  # fmt: skip
    (unlabelled,) = (finding for finding in audit_split(split) if finding.check == "unlabelled-videos")
    assert unlabelled.examples == (split.table.column("video_id")[0].as_py(),)


def test_exactly_200_frames_are_not_too_few(toy_split):
    split = changed(toy_split, "length_s", lambda lengths: [200 / 24] * len(lengths))
    assert "short-videos" not in {finding.check for finding in audit_split(split)}
    split = changed(toy_split, "length_s", lambda lengths: [199.9 / 24] * len(lengths))
    (short,) = (finding for finding in audit_split(split) if finding.check == "short-videos")
    assert short.count == split.table.num_rows and len(short.examples) == 5


def changed(split: Split, column: str, change) -> Split:
    values = change(split.table.column(column).to_pylist())
    place = split.table.column_names.index(column)
    table = split.table.set_column(place, column, pa.array(values, split.table.schema.field(column).type))
    return Split(table, split.metadata)


def test_repeated_ids_are_found(toy_split):
    split = changed(toy_split, "video_id", lambda ids: [ids[0], ids[0], *ids[2:]])
    first = audit_split(split)[0]
    assert (first.check, first.severity, first.count) == ("duplicate-ids", "error", 1)
    assert first.examples == (toy_split.table.column("video_id")[0].as_py(),)


def test_a_class_that_is_missing_from_a_subset_is_found(toy_split):
    subsets = toy_split.table.column("subset").to_pylist()
    split = changed(
        toy_split, "labels", lambda rows: [
            [label for label in row if label != 5 or subset != "test"]
            for row, subset in zip(rows, subsets, strict=True)
        ]
    )  # fmt: skip
    found = {finding.what: finding for finding in audit_split(split)}
    assert found["class(es) without a video in test"].examples == ("5 Doing thing 5",)
    assert any(finding.check == "consistency" for finding in found.values())  # the digest no longer fits


def test_changed_rows_are_found(toy_split):
    split = changed(toy_split, "subset", lambda subsets: ["val" if s == "train" else s for s in subsets])
    first = audit_split(split)[0]
    assert (first.check, first.severity) == ("consistency", "error")


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_plot_is_drawn_and_the_same_every_time(toy_split, tmp_path, ending):
    a = plot_class_frequencies([toy_split], tmp_path / f"a{ending}").read_bytes()
    b = plot_class_frequencies([toy_split], tmp_path / f"b{ending}").read_bytes()
    assert a == b
    assert a.startswith(b"\x89PNG") if ending == ".png" else b"<svg" in a


def test_the_svg_has_a_bar_a_class_in_its_groups_colour(toy_split, tmp_path):
    text = plot_class_frequencies([toy_split], tmp_path / "a.svg").read_text()
    for name, colour in (("head", "#0072b2"), ("medium", "#e69f00"), ("tail", "#d55e00")):
        bars = text.count(f"fill: {colour}")
        assert bars == len(getattr(toy_split.groups, name)) + 1  # and the legend's patch


def test_an_unknown_plot_format_is_refused(toy_split, tmp_path):
    with pytest.raises(MeidbenchError, match="known formats are .png, .svg, .pdf"):
        plot_class_frequencies([toy_split], tmp_path / "a.gif")
