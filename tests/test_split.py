"""Split files: the format of the contract, the same bytes every time, and every contradiction is found."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from material import TOY, TOY_MANIFEST

from meidbench.errors import SplitError
from meidbench.names import SUBSETS
from meidbench.splits.manifests import load_manifest, split_path
from meidbench.splits.released import build_released, write_csv, write_lists
from meidbench.splits.split import (
    GROUP_NAMES,
    METADATA_KEY,
    Groups,
    Split,
    SplitMetadata,
    load_split,
    read_split,
    rows_digest,
    write_split,
)

COLUMNS = {
    "video_id": pa.string(),
    "subset": pa.string(),
    "labels": pa.list_(pa.int16()),
    "source": pa.string(),
    "length_s": pa.float32(),
    "subject": pa.string(),
    "view": pa.string(),
    "pair_id": pa.string(),
    "segments": pa.list_(pa.struct([("label", pa.int16()), ("start_s", pa.float32()), ("end_s", pa.float32())])),
}
KEYS = {
    "dataset", "variant", "seed", "num_classes", "class_names", "head_above", "tail_up_to", "train_counts", "digest",
    "sources", "format_version",
}  # fmt: skip


def test_the_file_is_as_the_contract_says(toy_split_file):
    table = pq.read_table(toy_split_file)
    assert {field.name: field.type for field in table.schema} == COLUMNS
    metadata = json.loads(table.schema.metadata[b"meidbench"])
    assert set(metadata) == KEYS
    assert metadata["dataset"] == "toylt" and metadata["variant"] == "released" and metadata["seed"] is None
    for row in table.to_pylist():
        assert row["labels"] == sorted({segment["label"] for segment in row["segments"]})
        assert row["subset"] in SUBSETS


def naive_digest(split: Split) -> str:
    lines = sorted(
        f"{row['video_id']}\t{row['subset']}\t{','.join(map(str, sorted(row['labels'])))}\n"
        for row in split.table.to_pylist()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_digest_is_that_of_the_contract(toy_split):
    assert toy_split.digest == naive_digest(toy_split)
    backwards = toy_split.table.take(list(range(toy_split.table.num_rows))[::-1])
    assert rows_digest(backwards) == toy_split.digest
    assert rows_digest(toy_split.table.slice(5, 20)) == naive_digest(Split(toy_split.table.slice(5, 20), None))


def test_the_same_split_gives_the_same_bytes(toy_split, tmp_path):
    again = build_released(TOY_MANIFEST, TOY)
    a, b = write_split(toy_split, tmp_path / "a.parquet"), write_split(again, tmp_path / "b.parquet")
    assert a.read_bytes() == b.read_bytes()


def test_what_is_written_is_read_back(toy_split, toy_split_file):
    again = read_split(toy_split_file)
    assert again.table.equals(toy_split.table)
    assert again.metadata == toy_split.metadata


def test_groups_and_labels(toy_split):
    counts = np.zeros(toy_split.num_classes, int)
    for labels in (row["labels"] for row in toy_split.table.to_pylist() if row["subset"] == "train"):
        counts[labels] += 1
    assert toy_split.train_counts.tolist() == counts.tolist()
    assert toy_split.groups.head.tolist() == [c for c in range(12) if counts[c] > 30]
    assert toy_split.groups.tail.tolist() == [c for c in range(12) if counts[c] <= 12]
    names = toy_split.groups.names(12)
    assert [names[c] == "medium" for c in range(12)] == [12 < counts[c] <= 30 for c in range(12)]
    matrix = toy_split.labels("val")
    rows = [row for row in toy_split.table.to_pylist() if row["subset"] == "val"]
    assert matrix.dtype == bool and matrix.shape == (len(rows), 12)
    assert [np.flatnonzero(line).tolist() for line in matrix] == [row["labels"] for row in rows]
    assert matrix.sum(axis=0).tolist() == toy_split.positives("val").tolist()


def test_thresholds_are_exclusive_above_and_inclusive_below():
    groups = Groups.from_counts([101, 100, 21, 20, 0], head_above=100, tail_up_to=20)
    assert [getattr(groups, name).tolist() for name in GROUP_NAMES] == [[0], [1, 2], [3, 4]]


def test_an_unknown_subset_is_refused(toy_split):
    with pytest.raises(SplitError, match="unknown subset 'validation'; known: train, val, test"):
        toy_split.video_ids("validation")


def test_a_benchmark_is_loaded_by_name(toy_split):
    with pytest.raises(SplitError, match="meidbench build-splits charadeslt"):
        load_split("charadeslt")
    with pytest.raises(SplitError, match="neither a split file nor one of videolt"):
        load_split("charades")
    write_split(toy_split, split_path("charadeslt"))
    assert load_split("charadeslt").digest == toy_split.digest
    assert load_split(toy_split) is toy_split


def test_the_csv_holds_what_the_parquet_holds(toy_split, tmp_path):
    import pandas as pd

    frame = pd.read_csv(write_csv(toy_split, tmp_path / "s.csv"), keep_default_na=False)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["video_id"].tolist() == toy_split.table.column("video_id").to_pylist()
    assert [[int(x) for x in cell.split(";")] for cell in frame["labels"]] == toy_split.table.column(
        "labels"
    ).to_pylist()
    assert np.allclose(frame["length_s"].astype(float), toy_split.table.column("length_s").to_numpy())
    for cell, row in zip(frame["segments"], toy_split.table.column("segments").to_pylist(), strict=True):
        parts = [part.split() for part in cell.split(";")]
        assert [int(label) for label, _, _ in parts] == [segment["label"] for segment in row]
        assert [np.float32(start) for _, start, _ in parts] == [segment["start_s"] for segment in row]
        assert [np.float32(end) for _, _, end in parts] == [segment["end_s"] for segment in row]


def test_the_lists_of_toylt_come_out_byte_for_byte(toy_split, tmp_path):
    names = {subset: entry.file for subset, entry in load_manifest(TOY_MANIFEST).released.items()}
    for path in write_lists(toy_split, tmp_path, names).values():
        assert path.read_bytes() == (TOY / path.name).read_bytes()


# --- files that are not in order --------------------------------------------------------------------------------


def rewritten(split: Split, path: Path, change=lambda table: table, **metadata) -> Path:
    """Write a split file with other rows or other metadata than it should have."""
    facts = json.loads(split.metadata.to_json()) | metadata
    facts = {key: value for key, value in facts.items() if value != "-"}
    table = change(split.table).replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})
    pq.write_table(table, path)
    return path


def with_column(name: str, values: list) -> object:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        given = table.column(name).to_pylist()
        given[: len(values)] = values
        return table.set_column(place, name, pa.array(given, table.schema.field(name).type))

    return change


@pytest.mark.parametrize(("change", "metadata", "complaint"), [
    (lambda t: t.slice(1), {}, "training counts|digest"),
    (with_column("subset", ["testing"]), {}, "subset\\(s\\) 'testing' are not among train, val, test"),
    (with_column("labels", [[99]]), {}, "1 video\\(s\\) have labels outside the classes: "),
    (with_column("labels", [[3, 2]]), {}, "labels not ascending"),
    (with_column("labels", [[3, 3]]), {}, "labels not ascending"),
    (with_column("video_id", ["A", "A"]), {}, "1 video id\\(s\\) occur more than once: A"),
    (with_column("video_id", [None]), {}, "column 'video_id' has empty cells"),
    (with_column("video_id", ["renamed"]), {}, "rows were changed"),
    (lambda t: t.drop_columns(["subject"]), {}, "no column 'subject'"),
    (lambda t: t, {"num_classes": 13}, "num_classes is 13, but there are 12 class names"),
    (lambda t: t, {"train_counts": [1] * 12}, "the training counts in its metadata are not those of its rows"),
    (lambda t: t, {"digest": "0" * 64}, "rows were changed"),
    (lambda t: t, {"tail_up_to": 99}, "tail_up_to 99 is above head_above 30"),
    (lambda t: t, {"format_version": 2}, "format version 2, this meidbench reads up to 1: upgrade it"),
    (lambda t: t, {"class_names": "-"}, "its metadata is not that of a split file"),
    (lambda t: t, {"sources": "x"}, "sources must be a list of tables, got 'x'"),
    (lambda t: t, {"head_above": "many"}, "must be a (list of )?whole number"),
    (lambda t: t, {"surprise": 1}, "surprise"),
    (lambda t: t, {"num_classes": True}, "must be a (list of )?whole number"),
    (lambda t: t, {"num_classes": -1}, "num_classes must be at least 0"),
    (lambda t: t, {"train_counts": [1e999] * 12}, "must be a (list of )?whole number"),
    (lambda t: t, {"dataset": ["toylt"]}, "dataset must be a string"),
    (lambda t: t, {"class_names": "abcdefghijkl"}, "class_names must be a list of strings"),
    (lambda t: t, {"class_names": ["\ud800"] * 12}, "surrogates not allowed"),
    (with_column("labels", [[None]]), {}, "column 'labels' has empty cells"),
    (with_column("segments", [[{"label": None, "start_s": 1, "end_s": 2}]]), {}, "column 'segments' has empty cells"),
])  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(toy_split, tmp_path, change, metadata, complaint):
    path = rewritten(toy_split, tmp_path / "bad.parquet", change, **metadata)
    with pytest.raises(SplitError, match=complaint) as caught:
        read_split(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("text", "complaint"), [("{", "file: Expecting[^;]*$"), ("[1]", "file: it must be a table")])
def test_metadata_that_are_no_table_have_one_problem(text, complaint):
    with pytest.raises(SplitError, match=complaint):
        SplitMetadata.from_json(text)


@pytest.mark.parametrize(
    "change", [with_column("labels", [[99]]), with_column("subset", ["x"]), with_column("labels", [[None]])]
)
def test_what_makes_no_sense_is_refused_even_for_the_audit(toy_split, tmp_path, run, change):
    path = rewritten(toy_split, tmp_path / "bad.parquet", change)
    with pytest.raises(SplitError):
        read_split(path, check=False)
    outcome = run("audit", path)
    assert outcome.exit_code == 1 and outcome.stderr.startswith("Error: cannot use")


def test_a_split_that_could_not_be_read_back_is_not_written(toy_split, tmp_path):
    split = Split(toy_split.table.slice(1), toy_split.metadata)
    with pytest.raises(SplitError, match="contradicts itself"):
        write_split(split, tmp_path / "s.parquet")
    assert not list(tmp_path.iterdir())


def test_home_and_split_paths(monkeypatch, tmp_path):
    from meidbench.errors import MeidbenchError
    from meidbench.splits.manifests import home

    monkeypatch.setenv("MEIDBENCH_HOME", "~nosuchuser/x")
    with pytest.raises(MeidbenchError, match="MEIDBENCH_HOME is '~nosuchuser/x'"):
        home()
    monkeypatch.setenv("MEIDBENCH_HOME", "~/there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / "there"
    assert split_path("videolt", "grouped").name == "videolt-grouped.parquet"
    monkeypatch.delenv("MEIDBENCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "meidbench"


def test_files_of_another_kind_are_refused(tmp_path, toy_split):
    with pytest.raises(SplitError, match="there is no split file"):
        read_split(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(SplitError, match="is not a readable Parquet file"):
        read_split(tmp_path / "text.parquet")
    pq.write_table(toy_split.table, tmp_path / "plain.parquet")
    with pytest.raises(SplitError, match="lacks the metadata 'meidbench'"):
        read_split(tmp_path / "plain.parquet")


def test_a_failed_write_leaves_the_old_file(toy_split, tmp_path, monkeypatch):
    path = write_split(toy_split, tmp_path / "s.parquet")
    before = path.read_bytes()
    monkeypatch.setattr(pq, "write_table", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_split(toy_split, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.parquet"]
