"""Groups by list: in split files, from users, in every output; an empty group is said to be empty everywhere."""

import csv
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from material import TOY, TOY_MANIFEST

import meidbench as mb
from meidbench.annotations import FORMATS, read_annotations
from meidbench.annotations.groups import check_grouping, read_groups, resolve_groups
from meidbench.baselines import resolve
from meidbench.baselines.inference import Trained
from meidbench.baselines.losses.eql import EQL
from meidbench.baselines.reproduction.materials import stand_in
from meidbench.baselines.tuning import check_val
from meidbench.cli.training import describe_trained
from meidbench.construction.plans import make_split, read_plan, read_videos, render_plan
from meidbench.errors import AnnotationError, MeidbenchError, RequestError, SplitError
from meidbench.evaluation.results import GROUPS_SHOWN, MeanAP
from meidbench.report.html import comparison_html
from meidbench.report.latex import comparison_latex
from meidbench.report.plots import plot_class_frequencies, write_per_class
from meidbench.report.text import comparison_table, evaluation_table, statistics_table
from meidbench.splits.groups import BY_LIST, Groups, Thresholds, find_group_problems, read_group_names
from meidbench.splits.make import make_assignment, to_json
from meidbench.splits.manifests import PAPER_FACTS, load_assignment, load_manifest
from meidbench.splits.metadata import FORMAT_VERSION, SplitMetadata
from meidbench.splits.released import build_released, check_pool
from meidbench.splits.split import METADATA_KEY, Split, read_split, released_content, write_split
from meidbench.splits.statistics import split_statistics

# No medium class, as EPIC-KITCHENS-100 has it: a list of tail classes, and all others are head.
NO_MEDIUM = ("head", "tail") * 6
NO_TAIL = ("head", "medium") * 6
MIDDLE = {"medium": "middle"}


def by_list(split: Split, groups: tuple[str, ...] = NO_MEDIUM, names: dict[str, str] | None = None) -> Split:
    """Return the same videos with groups by a list."""
    facts = replace(
        split.metadata, groups=groups, group_names=names or {}, head_above=None, tail_up_to=None, variant="listed",
        content_digest="",
    )  # fmt: skip
    return Split(split.table, facts)


def scores(split: Split, seed: int = 0, subset: str = "test") -> pd.DataFrame:
    """Return random scores of a subset."""
    ids = split.video_ids(subset)
    values = np.random.default_rng(seed).normal(size=(len(ids), split.num_classes))
    return pd.DataFrame(values, index=ids, columns=list(split.class_names))


def words_of(text: str) -> str:
    """Return the words of a page that a reader or a screen reader meets."""
    visible = re.sub(r"<(style|script|template)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", visible).split())


# --- the split and its file -------------------------------------------------------------------------------------


def test_the_groups_of_a_list_are_those_of_a_loop(toy_split):
    split = by_list(toy_split)
    for name in ("head", "medium", "tail"):
        expected = [index for index, group in enumerate(NO_MEDIUM) if group == name]
        assert getattr(split.groups, name).tolist() == expected
    assert split.groups.names(12) == list(NO_MEDIUM)
    assert split.groups.empty == ("medium",) and toy_split.groups.empty == ()
    assert (split.thresholds, str(toy_split.thresholds)) == (None, str(Thresholds(30, 12)))
    assert Thresholds.from_numbers(None, 3) is None
    assert split.notes == (f"groups: {BY_LIST}; no classes in medium",)
    assert by_list(toy_split, NO_TAIL, MIDDLE).notes[0].endswith("medium is called middle; no classes in tail")
    assert by_list(toy_split, ("head",) * 12, MIDDLE).notes[0].endswith("no classes in middle and tail")


def test_the_content_digest_covers_the_list(toy_split):
    same = by_list(toy_split, tuple(toy_split.groups.names(12)))
    assert same.content_digest == toy_split.content_digest  # the same groups, however they were found
    assert same.plan_digest != toy_split.plan_digest
    others = {by_list(toy_split, groups).content_digest for groups in (NO_MEDIUM, NO_TAIL)}
    assert len(others | {same.content_digest}) == 3


def test_a_file_with_a_list_is_of_version_3_and_others_keep_theirs(toy_split, tmp_path):
    split = by_list(toy_split, NO_TAIL, MIDDLE)
    again = read_split(write_split(split, tmp_path / "s.parquet"))
    assert (again.metadata.groups, again.group_names, again.thresholds) == (NO_TAIL, MIDDLE, None)
    assert (again.metadata.format_version, again.content_digest) == (FORMAT_VERSION, split.content_digest)
    facts = json.loads(pq.read_schema(tmp_path / "s.parquet").metadata[METADATA_KEY])
    assert facts["head_above"] is None and facts["tail_up_to"] is None and facts["groups"] == list(NO_TAIL)
    old = json.loads(pq.read_schema(write_split(toy_split, tmp_path / "t.parquet")).metadata[METADATA_KEY])
    assert old["format_version"] == toy_split.metadata.written_version == 2
    assert not {"groups", "group_names"} & set(old)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"groups": ["head"]}, "there are 1 group for 12 classes"),
    ({"groups": ["head"] * 11 + ["middle"]}, "has the group 'middle'; known: head, medium, tail"),
    ({"groups": []}, "either groups or both head_above and tail_up_to"),
    ({"head_above": 3}, "either groups or both head_above and tail_up_to"),
    ({"head_above": 3, "tail_up_to": 1}, "either groups or both head_above and tail_up_to"),
    ({"format_version": 2}, "need the format version 3"),
    ({"group_names": {"mid": "middle"}}, "unknown groups 'mid'"),
    ({"group_names": {"medium": "overall"}}, "must be three different texts"),
    ({"group_names": {"medium": "a\nb"}}, "must be three different texts in one line"),
    ({"group_names": ["middle"]}, "group_names must be a table of texts"),
])  # fmt: skip
def test_metadata_with_a_wrong_list_are_refused(toy_split, changes, complaint):
    split = by_list(toy_split, NO_TAIL, MIDDLE)
    facts = json.loads(replace(split.metadata, content_digest="0", format_version=3).to_json())
    assert SplitMetadata.from_json(json.dumps(facts)).groups == NO_TAIL
    with pytest.raises(SplitError, match=re.escape(complaint)):
        SplitMetadata.from_json(json.dumps({**facts, **changes}))


def test_problems_of_lists_and_names():
    assert find_group_problems(NO_TAIL, [f"c{n}" for n in range(12)]) == []
    problems: list[str] = []
    assert read_group_names("names", MIDDLE, {}, "", problems) == MIDDLE and not problems
    assert read_group_names("names", {"Medium": "m"}, {}, "x.", problems) == {}
    assert problems == ["x.names has unknown groups 'Medium' (did you mean medium?); known: head, medium, tail"]


def test_without_thresholds_and_list_no_split_is_made(toy_split):
    annotations = read_annotations(load_manifest(TOY_MANIFEST), TOY)
    with pytest.raises(SplitError, match="without thresholds, a list must have the group of each class"):
        Split.from_annotations(annotations, ["train"] * len(annotations.video_ids), dataset="x", variant="y")


# --- a benchmark by list ----------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path, monkeypatch) -> str:
    """Return the manifest of a benchmark whose annotations have the groups."""
    manifest = tmp_path / "listed.toml"
    text = (TOY / "toylt.toml").read_text()
    text = text.replace("head_above = 30\ntail_up_to = 12\n", 'groups = "list"\n').replace('"toylt"', '"listed"')
    text = text.replace('reader = "charadesego"', 'reader = "listed"').partition("[expected]")[0]
    paper = "\n".join(
        f"{name} = {value}" for name, value in zip(PAPER_FACTS, (6, 6, 0, 114, 50, 49, 2.5, 9.0), strict=True)
    )
    tables = f'[group_names]\nmedium = "middle"\n\n[paper]\n{paper}\n\n[licence]'
    manifest.write_text(text.replace("[licence]", tables, 1))

    def read(paths, facts):
        annotations = FORMATS["charadesego"].read(paths, facts)
        annotations.groups = GROUPS_READ[0]
        return annotations

    monkeypatch.setitem(FORMATS, "listed", replace(FORMATS["charadesego"], read=read))
    monkeypatch.setitem(globals(), "GROUPS_READ", [NO_TAIL])
    loaded = load_manifest(str(manifest))
    annotations = read_annotations(loaded, TOY)
    toy = build_released(TOY_MANIFEST, TOY)
    subset_of = dict(zip(toy.table["video_id"].to_pylist(), toy.table["subset"].to_pylist(), strict=True))
    content = to_json(make_assignment(loaded, annotations, subset_of))
    manifest.with_suffix(".assignment.json").write_text(content)
    yield str(manifest)
    load_manifest.cache_clear()
    load_assignment.cache_clear()


GROUPS_READ = [NO_TAIL]


def test_a_benchmark_by_list_is_built_and_other_lists_are_refused(listed, monkeypatch, tmp_path):
    split = build_released(listed, TOY)
    assert (split.metadata.groups, split.group_names) == (NO_TAIL, MIDDLE)
    assert split.content_digest == load_assignment(listed).content_digest == released_content(listed)
    manifest = load_manifest(listed)
    assert (manifest.groups, manifest.thresholds) == ("list", None)
    assert check_pool(listed, read_annotations(manifest, TOY), TOY)
    GROUPS_READ[0] = NO_MEDIUM
    with pytest.raises(
        AnnotationError, match=r"the groups of the classes \(6 head, 0 medium, 6 tail\) are not the off"
    ):
        build_released(listed, TOY)
    with pytest.raises(AnnotationError, match="the groups of the classes"):
        check_pool(listed, read_annotations(manifest, TOY), TOY)
    GROUPS_READ[0] = ()
    with pytest.raises(AnnotationError, match="its manifest has groups by list, its reader gives no list"):
        build_released(listed, TOY)


def test_a_drawn_split_of_a_benchmark_by_list_keeps_the_list(listed, run, tmp_path):
    assert run("build-splits", listed, "--annotations", TOY, "--variant", "pareto", "--out", tmp_path).exit_code == 0
    split = read_split(tmp_path / "listed-pareto-0.parquet")
    assert (split.metadata.groups, split.group_names) == (NO_TAIL, MIDDLE)
    exact = run("build-splits", listed, "--annotations", TOY, "--variant", "exact", "--out", tmp_path)
    assert "the groups of listed are by list" in exact.stderr


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ('groups = "list"', 'groups = "lists"', "groups must be one of thresholds, list"),
    ('groups = "list"', 'groups = "list"\nhead_above = 3', "head_above must be left out: the annotations have"),
    ('groups = "list"', "head_above = 3", "tail_up_to is missing"),
    ('"middle"', '"tail"', "must be three different texts"),
    ('"middle"', "3", "group_names must be a table of texts"),
])  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(listed, tmp_path, old, new, complaint):
    path = tmp_path / "wrong.toml"
    path.write_text(Path(listed).read_text().replace(old, new, 1))
    with pytest.raises(MeidbenchError, match=re.escape(complaint)):
        load_manifest(str(path))


def test_an_assignment_by_list_needs_the_content_digest(listed, tmp_path):
    for suffix in (".toml", ".assignment.json"):
        shutil.copy(Path(listed).with_suffix(suffix), tmp_path / f"older{suffix}")
    facts = json.loads((tmp_path / "older.assignment.json").read_text())
    del facts["content_digest"]
    (tmp_path / "older.assignment.json").write_text(json.dumps(facts))
    with pytest.raises(MeidbenchError, match="it needs the content digest"):
        load_assignment(str(tmp_path / "older.toml"))


def test_the_stand_in_of_a_benchmark_by_list_has_its_groups(listed):
    manifest = load_manifest(listed)
    split = stand_in(listed)
    counts = [len(getattr(split.groups, name)) for name in ("head", "medium", "tail")]
    assert counts == [manifest.paper[name] for name in ("head", "medium", "tail")] and split.thresholds is None


# --- the user's list --------------------------------------------------------------------------------------------

CLASSES = ("run", "swim", "dive, deep")
FORMS = {
    "a.csv": 'class,group\nswim,tail\nrun,head\n"dive, deep",tail\n',
    "b.csv": "\ufeffGroup;note;Class\r\nhead;x;0\r\ntail;;2\r\ntail;y;swim\r\n\r\n",
    "c.tsv": "class\tgroup\n0\thead\n1\ttail\n2\ttail\n",
    "d.json": '{"run": "head", "1": "tail", "dive, deep": "tail"}',
    "e.json": '[{"class": 2, "group": "tail"}, {"class": "run", "group": "head"}, {"class": 1, "group": "tail"}]',
}


@pytest.mark.parametrize("name", list(FORMS))
def test_every_form_of_a_list_gives_the_same_groups(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert read_groups(tmp_path / name, CLASSES) == ("head", "tail", "tail")


def test_every_problem_of_a_list_is_named_at_once(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("class,group\nrun,middle\nRun,tail\n1,head\nswim,head\n7,tail\n,tail\n")
    with pytest.raises(SplitError) as caught:
        read_groups(path, CLASSES)
    for problem in (
        "6 problem(s)", "line 2: unknown group 'middle'; known: head, medium, tail",
        "line 3: no class 'Run' (did you mean run?)", "line 5: class 1 'swim' has a group already",
        "line 6: no class '7'", "line 7: no class ''", "1 class(es) without a group: 2 'dive, deep'",
    ):  # fmt: skip
        assert problem in str(caught.value)


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "has no column class and no column group; its columns are none"),
    ("video,group\na,head\n", "has no column class; its columns are video, group"),
    ('{"run": "head"', "is damaged"),
    ("[1, 2]", "neither an object of class and group"),
    ('{"run": "head", "run": "tail", "swim": 3, "2": "tail"}', "class 'run': class 0 'run' has a group already"),
    ('[{"class": "run"}]', "entry 1: unknown group None"),
    ('[{"class": true, "group": "head"}]', "entry 1: no class True"),
    ("[" * 5000, "is damaged"),
    (b"class,group\nr\xff,head\n", "is not UTF-8 text"),
])  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused(tmp_path, text, complaint):
    path = tmp_path / "g.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SplitError, match=re.escape(complaint)):
        read_groups(path, CLASSES)


def test_a_list_that_is_missing_is_refused(tmp_path):
    with pytest.raises(SplitError, match="cannot read the groups in"):
        read_groups(tmp_path / "none.csv", CLASSES)


def test_python_values_are_groups():
    assert resolve_groups(["head", "tail", "tail"], CLASSES) == ("head", "tail", "tail")
    assert resolve_groups(pd.Series(["head", "tail", "tail"]), CLASSES) == ("head", "tail", "tail")
    assert resolve_groups({0: "head", "swim": "tail", "2": "tail"}, CLASSES) == ("head", "tail", "tail")
    for wrong in ("head", 3, ["head"], {"run": "middle"}):
        with pytest.raises(RequestError, match="groups|problem"):
            resolve_groups(wrong, CLASSES)


@pytest.mark.parametrize(("given", "found"), [
    ((None, None, None), "none of them"), ((1, None, None), "got head_above"),
    ((1, 0, "g"), "tail_up_to=... and groups"), ((1, 2, None), "tail_up_to 2 lies above head_above 1"),
])  # fmt: skip
def test_a_split_has_either_thresholds_or_a_list(given, found):
    check_grouping(2, 1, None)
    check_grouping(None, None, NO_TAIL)
    with pytest.raises(RequestError, match=found):
        check_grouping(*given)


def test_a_data_frame_with_groups_makes_the_split_again(toy_split):
    split = by_list(toy_split)
    names = {"dataset": "toylt", "class_names": split.class_names}
    again = mb.split_from_pandas(split.to_pandas(), groups=split.groups.names(12), **names)
    assert again.content_digest == split.content_digest
    mapped = dict(zip(split.class_names, NO_MEDIUM, strict=True))
    assert mb.split_from_pandas(split.to_pandas(), groups=mapped, **names).plan_digest == again.plan_digest


def write_table(split: Split, folder: Path) -> Path:
    frame = split.to_pandas()
    frame["labels"] = [";".join(labels) for labels in frame["labels"]]
    frame[["video_id", "labels", "subset"]].to_csv(folder / "t.csv", index=False)
    (folder / "names.txt").write_text("\n".join(split.class_names))
    rows = [f"{index},{group}" for index, group in enumerate(NO_MEDIUM)]
    (folder / "groups.csv").write_text("\n".join(["class,group", *rows]))
    return folder / "t.csv"


def test_the_import_takes_a_list(toy_split, run, tmp_path):
    table, out = write_table(toy_split, tmp_path), tmp_path / "out.parquet"
    rest = ["--class-names", tmp_path / "names.txt", "--groups", tmp_path / "groups.csv"]
    outcome = run("import-split", table, "--out", out, *rest)
    assert outcome.exit_code == 0 and "groups: by list; no classes in medium" in outcome.stdout
    split = read_split(out)
    assert split.groups.names(12) == list(NO_MEDIUM) and split.metadata.sources[-1].name == "groups.csv"
    both = run("import-split", table, "--out", out, *rest, "--head-above", 3)
    neither = run("import-split", table, "--out", out)
    assert both.exit_code == neither.exit_code == 2
    assert "got --head-above and --groups" in both.stderr and "got none of them" in neither.stderr


def test_a_plan_takes_a_list(toy_split, run, tmp_path):
    table = write_table(toy_split, tmp_path)
    plan = tmp_path / "mine.toml"
    plan.write_text(f'name = "mine"\ntable = "{table.name}"\nclass_names = "names.txt"\ngroups = "groups.csv"\n')
    outcome = run("build-splits", plan)
    assert outcome.exit_code == 0, outcome.stderr
    assert "no class is in medium (by list)" in outcome.stderr and "head_above" not in outcome.stdout + outcome.stderr
    split = read_split(tmp_path / "mine-pareto-0.parquet")
    assert split.metadata.groups == NO_MEDIUM
    written = tmp_path / "mine-pareto-0.plan.toml"
    assert 'groups = "groups.csv"' in written.read_text()
    given = read_plan(written)
    made = make_split(given, read_videos(given).annotations)  # its digest is checked
    assert made.split.content_digest == split.content_digest
    assert render_plan(given, made, tmp_path) == written.read_text()
    (tmp_path / "groups.csv").write_text((tmp_path / "groups.csv").read_text().replace("0,head", "0,tail"))
    assert "the plan of mine-pareto-0 gave the split" in run("build-splits", written).stderr


# --- outputs ----------------------------------------------------------------------------------------------------


def test_a_result_tells_the_groups_and_the_empty_one(toy_split, tmp_path):
    split = by_list(toy_split)
    result = mb.evaluate(scores(split), split=split, bootstrap=10)
    content = json.loads(result.to_json())
    assert content["thresholds"] is None and content["notes"] == list(split.notes) and "group_names" not in content
    assert content["groups"]["medium"] == {"classes": 0, "positives": 0} and content["mAP"]["medium"] is None
    text = evaluation_table(result)
    assert re.search(r"^medium +no classes +- +0 +0$", text, re.MULTILINE) and "nan" not in text.lower()
    assert "no classes" in repr(result) and "no classes" in result._repr_html_() and "groups: by list" in repr(result)
    rows = list(csv.DictReader(write_per_class(result, tmp_path / "c.csv").read_text().splitlines()))
    assert {row["groups"] for row in rows} == {BY_LIST} and [row["group"] for row in rows] == list(NO_MEDIUM)
    metric = mb.MeanAveragePrecision(split, bootstrap=10)
    frame = scores(split)
    metric.update(list(frame.index), frame.to_numpy())
    assert metric.compute().to_json() == result.to_json()


def test_a_group_without_positives_is_told_apart_from_one_without_classes(toy_split):
    absent = int(np.argmin(toy_split.positives("val")))
    split = by_list(toy_split, tuple("tail" if index == absent else "head" for index in range(12)))
    rows = split.table.to_pylist()
    for row in rows:
        row["labels"] = [label for label in row["labels"] if label != absent or row["subset"] != "val"]
    split = Split(split.table.from_pylist(rows, split.table.schema), split.metadata)
    result = mb.evaluate(scores(split, subset="val"), split=split, subset="val")
    assert result.absent_groups == ["medium: no classes", "tail: no class with a positive"]
    assert result.groups_shown == ("overall", "head") and result.describe_absence("head") == ""
    assert re.search("tail +no class with a positive", evaluation_table(result))


def test_the_table_of_a_run_has_the_groups_own_names_and_tells_why_a_mean_is_missing(toy_split):
    split = by_list(toy_split, NO_TAIL, MIDDLE)
    means = {"val": MeanAP(0.25, 0.25, float("nan"), float("nan")), "test": MeanAP(0.2, 0.3, 0.1, float("nan"))}
    head, _, val, test, *_ = describe_trained(Trained(Path("run"), means, (), False), split).splitlines()
    assert head.split() == ["mAP", "overall", "head", "middle", "tail"]
    assert words_of(val).strip() == "val 0.2500 0.2500 no class with a positive no classes"
    assert words_of(test).strip() == "test 0.2000 0.3000 0.1000 no classes"


def test_a_comparison_tells_the_groups_and_the_empty_one(toy_split):
    split = by_list(toy_split)
    compared = mb.compare({"one": scores(split), "two": scores(split, 1)}, split, replicates=20)
    text = comparison_table(compared)
    assert "\nmedium: no classes\n" in text and "nan" not in text
    assert re.search(r"win/tie/loss +overall +head +tail\n", text)
    assert "medium: no classes" in repr(compared) and not re.search(r"mAP .*medium", repr(compared))
    assert "nan" not in repr(compared) and json.loads(compared.to_json())["thresholds"] is None
    latex = comparison_latex(compared)
    assert "The groups of the classes are by list. medium: no classes." in latex and "--" not in latex
    assert "Method & overall & head & tail & overall & head & tail" in latex
    assert "overall and over the head (6) and tail (6) classes" in latex
    frame = compared.to_pandas().set_index(["method", "group"])
    assert frame["classes"]["one"].tolist() == [12, 6, 0, 6]
    page = comparison_html(compared)
    assert "<b>groups: by list; no classes in medium</b>" in page
    assert "medium<small>no classes</small>" in page and 'class="key medium"><i' in page
    assert '<p class="soft">no classes</p>' in page and "nan" not in words_of(page).split()


def test_tables_and_pages_have_the_names_of_the_benchmark(toy_split):
    split = by_list(toy_split, ("head", "medium", "tail") * 4, MIDDLE)
    result = mb.evaluate(scores(split), split=split)
    assert re.search("^middle +0", evaluation_table(result), re.MULTILINE) and "\nmedium" not in evaluation_table(
        result
    )
    content = json.loads(result.to_json())
    assert content["group_names"] == MIDDLE and set(content["mAP"]) == set(GROUPS_SHOWN)
    assert set(result.to_pandas()["group"]) == {"head", "medium", "tail"}
    runs = {"one@1": scores(split), "one@2": scores(split, 2), "two": scores(split, 1)}
    compared = mb.compare(runs, split, replicates=9)
    assert json.loads(compared.to_json())["group_names"] == MIDDLE
    note = split.notes[0]
    for text in (comparison_table(compared), comparison_latex(compared), words_of(comparison_html(compared))):
        assert "middle" in text and "medium" not in text.replace(note, "").replace("% " + note, "")


def test_statistics_audit_and_plots_tell_the_empty_group(toy_split, run, tmp_path, monkeypatch):
    split = by_list(toy_split)
    statistics = split_statistics(split)
    assert (statistics.head, statistics.medium, statistics.tail) == (6, 0, 6) and statistics.head_above is None
    assert "toylt listed: groups: by list; no classes in medium" in statistics_table([statistics])
    audit = run("audit", write_split(split, tmp_path / "s.parquet"))
    assert audit.exit_code == 0 and "groups: by list; no classes in medium" in audit.stdout + audit.stderr
    empty = Split(split.table.slice(0, 0), replace(split.metadata, train_counts=(0,) * 12))
    assert "no videos in train: nothing can be trained" in statistics_table([split_statistics(empty)])
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_class_frequencies([split, by_list(toy_split, NO_TAIL, MIDDLE)], tmp_path / "p.svg")
    labels = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in drawn[0].axes]
    assert labels[0] == ["head (6)", "medium (no classes)", "tail (6)"] and labels[1][1] == "middle (6)"
    assert drawn[0].axes[0].get_legend().get_title().get_text() == "classes, by list"


# --- training ---------------------------------------------------------------------------------------------------


def test_the_equalisation_loss_takes_its_rare_classes_from_the_list(toy_split):
    config = resolve("eql", by_list(toy_split))
    assert config.loss.options["tail_classes"] == (1, 3, 5, 7, 9, 11) and "tail_up_to" not in config.loss.options
    loss = EQL([9, 9, 9], 20, tail_classes=(1,))
    assert loss.tail.tolist() == [0, 1, 0]
    assert EQL([9, 9], 20, tail_classes=()).tail.tolist() == [0, 0]  # a split with an empty tail
    with pytest.raises(MeidbenchError, match="tail_classes holds no class indices below 3: 7"):
        EQL([9, 9, 9], 20, tail_classes=(1, 7))
    with pytest.raises(MeidbenchError, match="either tail_up_to"):
        EQL([9, 9, 9], 20, tail_classes=(1,), tail_up_to=3)


def test_the_tail_cannot_be_the_objective_where_it_is_empty(toy_split):
    split = by_list(toy_split, NO_TAIL)
    with pytest.raises(MeidbenchError, match="toylt has no classes in the tail"):
        check_val(split, resolve("bce", split), "tail")
    check_val(split, resolve("bce", split), "overall")
    absent = int(np.argmin(toy_split.positives("val")))
    rows = toy_split.table.to_pylist()
    for row in rows:
        row["labels"] = [label for label in row["labels"] if label != absent]
    groups = tuple("tail" if index == absent else "head" for index in range(12))
    bare = Split(split.table.from_pylist(rows, split.table.schema), by_list(toy_split, groups).metadata)
    with pytest.raises(MeidbenchError, match="no video in val of toylt has a label of the tail"):
        check_val(bare, resolve("bce", bare), "tail")


def test_a_run_tells_the_empty_group(toy_split, run, tmp_path):
    from meidbench.features.simulation import simulate_features

    split = write_split(by_list(toy_split), tmp_path / "s.parquet")
    simulate_features(read_split(split), tmp_path / "f.h5", dim=4)
    options = ["--method", "bce", "--epochs", 1, "--out", tmp_path / "run", "--device", "cpu"]
    outcome = run("train", "--split", split, "--features", tmp_path / "f.h5", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert re.search(r"val +0\.\d+ +0\.\d+ +no classes +0\.\d+", outcome.stdout), outcome.stdout
    assert "note: toylt has no classes in medium: these have no mAP in the log" in outcome.stderr
    assert asdict(Thresholds(3, 1)) == {"head_above": 3, "tail_up_to": 1} and Groups.from_names([]).empty
