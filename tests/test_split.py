"""Split files: the format of the contract, the same bytes every time, and every contradiction is found."""

import hashlib
import json
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from material import TOY, TOY_MANIFEST

from meidbench.errors import OutputError, SplitError
from meidbench.names import SUBSETS
from meidbench.predictions.values import write_predictions
from meidbench.splits.groups import GROUP_NAMES, Groups
from meidbench.splits.manifests import load_manifest, split_path
from meidbench.splits.released import build_released, write_csv, write_lists
from meidbench.splits.split import (
    METADATA_KEY,
    SCHEMA,
    Split,
    SplitMetadata,
    load_split,
    read_split,
    released_content,
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
    "content_digest", "sources", "format_version",
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
    with pytest.raises(
        SplitError, match=r"unknown subset 'validation' \(did you mean val\?\); known: train, val, test"
    ):
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


# --- what numbers depend on -------------------------------------------------------------------------------------


def naive_content_digest(split: Split) -> str:
    """Digest by the words of docs/splits.md, from the rows and the thresholds alone."""
    rows = split.table.to_pylist()
    counts = [sum(index in row["labels"] for row in rows if row["subset"] == "train") for index in range(12)]
    above, up_to = split.metadata.head_above, split.metadata.tail_up_to
    groups = ["head" if count > above else "tail" if count <= up_to else "medium" for count in counts]
    names = hashlib.sha256("".join(f"{name}\n" for name in split.metadata.class_names).encode()).hexdigest()
    return hashlib.sha256("\n".join([naive_digest(split), names, *groups, ""]).encode()).hexdigest()


def with_facts(split: Split, **facts) -> Split:
    return Split(split.table, replace(split.metadata, **facts))


def test_the_content_digest_covers_names_and_groups(toy_split, toy_split_file):
    assert toy_split.content_digest == naive_content_digest(toy_split)
    assert read_split(toy_split_file).metadata.content_digest == toy_split.content_digest
    names = tuple(f"other {index}" for index in range(12))
    others = (with_facts(toy_split, head_above=60), with_facts(toy_split, class_names=names))
    assert all(other.digest == toy_split.digest for other in others)
    assert len({split.content_digest for split in (toy_split, *others)}) == 3
    for other in others:
        assert other.content_digest == naive_content_digest(other)
        assert other.variant == "changed" and "calls itself the published one" in other.notes[0]
        with pytest.raises(SplitError, match="class names, groups or training counts were changed"):
            write_split(other, toy_split_file.with_name("never.parquet"))


def test_the_published_splits_are_known_by_their_content(real_split):
    assert real_split.variant == "released" and real_split.notes == ()
    assert real_split.content_digest == released_content(real_split.dataset)
    official = real_split.thresholds
    assert astuple(official) == ((500, 100) if real_split.dataset == "videolt" else (100, 20))
    changed = with_facts(real_split, head_above=official.head_above + 60, content_digest="")
    digest = changed.content_digest
    changed = with_facts(changed, content_digest=digest)  # whoever changed it also changed its own digest
    assert changed.variant == "changed" and f"({real_split.dataset} has head above" in changed.notes[1]
    assert with_facts(real_split, head_above=official.head_above + 1).variant == "changed"


def test_files_of_version_1_are_read_but_not_called_released(toy_split, tmp_path):
    old = {"format_version": 1, "content_digest": "-"}
    split = read_split(rewritten(toy_split, tmp_path / "old.parquet", **old))
    assert split.content_digest == toy_split.content_digest and split.variant == "unverified"
    assert "no content digest" in split.notes[0]
    assert read_split(rewritten(toy_split, tmp_path / "mine.parquet", variant="table", **old)).variant == "table"
    again = read_split(write_split(split, tmp_path / "again.parquet"))
    assert (again.variant, again.metadata.format_version) == ("unverified", 2)
    assert again.notes[:1] == split.notes[:1]


def test_plans_keep_the_digest_that_they_had_before_version_2(toy_split):
    assert toy_split.plan_digest[:16] == "7688923c1663732d"


@pytest.mark.parametrize("command", ["evaluate", "compare", "stats"])
def test_other_thresholds_are_shown_with_every_number(toy_split, tmp_path, run, command):
    other = {"head_above": 60, "tail_up_to": 8, "format_version": 1, "content_digest": "-"}
    path = rewritten(toy_split, tmp_path / "other.parquet", **other)
    ids = toy_split.video_ids("test")
    np.savez(tmp_path / "p.npz", video_ids=np.array(ids), scores=np.random.default_rng(0).random((len(ids), 12)))
    outputs = [] if command != "compare" else ["--html", tmp_path / "c.html", "--latex", tmp_path / "c.tex"]
    arguments = [path] if command == "stats" else [tmp_path / "p.npz", "--split", path]
    outcome = run(command, *arguments, *outputs)
    assert outcome.exit_code == 0, outcome.stderr
    texts = [outcome.stdout, *(file.read_text() for file in outputs[1::2])]
    for text in texts:
        assert "groups: head above 60 training videos, tail up to 8" in text and "released" not in text
    content = json.loads(run(command, *arguments, "--json", *(["-"] if command != "stats" else [])).stdout)
    facts = content[0] if command == "stats" else content
    thresholds = facts if command == "stats" else facts["thresholds"]
    assert (thresholds["head_above"], thresholds["tail_up_to"]) == (60, 8)
    assert facts["variant"] == "unverified" and "groups: head above 60" in facts["notes"][1]


def test_a_flipped_bit_in_a_split_file_is_refused(toy_split_file, tmp_path):
    raw = bytearray(toy_split_file.read_bytes())
    refused = 0
    places = range(4, len(raw) - 8, max(len(raw) // 40, 1))
    for place in places:
        raw[place] ^= 1
        (tmp_path / "flipped.parquet").write_bytes(raw)
        raw[place] ^= 1
        try:
            again = read_split(tmp_path / "flipped.parquet")
        except SplitError:
            refused += 1
        else:  # the footer has no checksum, and holds facts that nothing depends on
            assert again.table.equals(read_split(toy_split_file).table)
    assert refused > len(places) / 2


def test_a_page_is_checked_by_its_checksum(toy_split, tmp_path):
    """Lengths are in no digest, so only the checksum of their page finds a changed one."""
    path = write_split(toy_split, tmp_path / "s.parquet")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.names.index("labels") + 2)
    assert chunk.path_in_schema == "length_s"
    raw = bytearray(path.read_bytes())
    raw[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SplitError, match="is not a readable Parquet file"):
        read_split(path)


def test_all_splits_that_cannot_be_read_are_named(run, tmp_path):
    (tmp_path / "text.parquet").write_text("hello")
    outcome = run("stats", "charadeslt", tmp_path / "text.parquet")
    assert outcome.exit_code == 1
    assert all(name in outcome.stderr for name in ("charadeslt is not built", "text.parquet"))


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
    (with_column("video_id", ["a\ttrain\t0\nb"]), {}, "an id with a tab or newline"),
    (with_column("video_id", ["A", "A"]), {}, "1 video id\\(s\\) occur more than once: A"),
    (with_column("video_id", [None]), {}, "column 'video_id' has empty cells"),
    (with_column("video_id", ["renamed"]), {}, "rows were changed"),
    (lambda t: t.drop_columns(["subject"]), {}, "no column 'subject'"),
    (lambda t: t, {"num_classes": 13}, "num_classes is 13, but there are 12 class names"),
    (lambda t: t, {"train_counts": [1] * 12}, "the training counts in its metadata are not those of its rows"),
    (lambda t: t, {"digest": "0" * 64}, "rows were changed"),
    (lambda t: t, {"tail_up_to": 99}, "tail_up_to 99 is above head_above 30"),
    (lambda t: t, {"format_version": 4, "new": 1}, "format version 4, this meidbench reads 1, 2 and 3: upgrade it"),
    (lambda t: t, {"format_version": 0}, "format version 0, this meidbench reads 1, 2 and 3"),
    (lambda t: t, {"format_version": "-"}, "format_version is missing"),
    (lambda t: t, {"content_digest": "-"}, "content_digest is missing"),
    (lambda t: t, {"head_above": 60, "tail_up_to": 8}, "class names, groups or training counts were changed"),
    (lambda t: t, {"class_names": [f"other {n}" for n in range(12)]}, "class names, groups or training counts"),
    (lambda t: t, {"class_names": ["a\nb", *map(str, range(11))]}, "class names must be text in one line"),
    (with_column("length_s", [-1.0]), {}, "1 video\\(s\\) have negative or infinite times in length_s: "),
    (with_column("length_s", [float("inf")]), {}, "infinite times in length_s"),
    (with_column("segments", [[{"label": 1, "start_s": -1, "end_s": 2}]]), {}, "infinite times in segments"),
    (with_column("segments", [[{"label": 1, "start_s": 1, "end_s": float("nan")}]]), {}, "infinite times in segments"),
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
    pickled = b"\x80\x04]\x94."
    for content, kind in ((b"", "empty"), (b"video_id,labels\n", "text, or of an unknown kind"), (pickled, "a pickle"),
                          (b"\x89HDF\r\n\x1a\n", "an HDF5 file"), (b'{"a": 1}', "JSON")):  # fmt: skip
        (tmp_path / "text.parquet").write_bytes(content)
        with pytest.raises(SplitError) as caught:
            read_split(tmp_path / "text.parquet")
        told, remedy = str(caught.value).splitlines()
        assert told.endswith(f"text.parquet is {kind}; expected a split file")
        assert "made by meidbench build-splits, or of a table by meidbench import-split" in remedy
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(SplitError, match="is not a readable Parquet file.*\n.*of a table by meidbench import-split"):
        read_split(tmp_path / "cut.parquet")
    scores = np.zeros((2, toy_split.num_classes))
    for split in (None, toy_split):
        path = write_predictions(tmp_path / "p.parquet", ["a", "b"], scores, split)
        with pytest.raises(SplitError, match="is a prediction file; expected a split file\nName the split file in its"):
            read_split(path)
    pq.write_table(toy_split.table, tmp_path / "plain.parquet")
    with pytest.raises(SplitError, match="lacks the metadata 'meidbench'"):
        read_split(tmp_path / "plain.parquet")


def test_a_failed_write_leaves_the_old_file(toy_split, tmp_path, monkeypatch):
    path = write_split(toy_split, tmp_path / "s.parquet")
    before = path.read_bytes()
    monkeypatch.setattr(pq, "write_table", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OutputError, match="disk full"):
        write_split(toy_split, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.parquet"]
