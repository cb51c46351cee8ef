"""Plans and their targets: their keys, the refusals at once, and that a plan makes its split again."""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import TOY, TOY_MANIFEST
from test_construction import invented

from meidbench.checks import parse_settings
from meidbench.construction import EXACT_PRESETS, PRESETS, ExactTargets, Targets, construct, default_targets
from meidbench.construction.plans import (
    SplitPlan,
    check_settings,
    is_plan,
    make_split,
    plan_for_benchmark,
    read_plan,
    read_videos,
    render_plan,
    resolve_targets,
)
from meidbench.errors import MeidbenchError, SplitError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY = """
name = "filmlt"
table = "data/videos.csv"
class_names = "names.txt"
variant = "grouped"
seed = 7

[targets]
most_frequent = 90
least_frequent = 4
alpha = 6
head_above = 40
tail_up_to = 9
test_positives = 6
val_positives = 3
test_videos = 60
val_videos = "none"
least_seconds = 8.5
group_by = ["pair", "subject"]
"""


PLAIN = {"example": "alpha=6", "dotted": False, "error": SplitError}


def plan_of(tmp_path: Path, text: str, name: str = "mine.toml") -> SplitPlan:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_plan(tmp_path / name)


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_plan_says_every_field_of_the_targets(tmp_path):
    plan = plan_of(tmp_path, EVERY)
    assert plan.stem == "filmlt-grouped-7"
    assert (plan.table, plan.class_names) == (tmp_path / "data" / "videos.csv", tmp_path / "names.txt")
    assert set(plan.targets) == {entry.name for entry in fields(Targets)}
    annotations = invented()
    annotations.lengths = [9.0] * len(annotations.lengths)
    assert resolve_targets(annotations, "grouped", plan.targets, dataset="filmlt") == Targets(
        90, 4, 6, 40, 9, 6, 3, 60, None, 8.5, ("pair", "subject")
    )


@pytest.mark.parametrize(("targets", "variant"), [("", "pareto"), ('[targets]\ngroup_by = ["pair"]\n', "grouped")])
def test_the_variant_follows_from_the_groups(tmp_path, targets, variant):
    assert plan_of(tmp_path, f'name = "a"\ntable = "t.csv"\n{targets}').variant == variant


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "p.toml").write_bytes(b'\xef\xbb\xbfname = "a"\ntable = "t.csv"\n')
    assert read_plan(tmp_path / "p.toml").name == "a" and is_plan(tmp_path / "p.toml")


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    text = """
name = "a/b"
tabel = "t.csv"
format = "csv"
files = ["x", 3]
variant = "fair"
seed = true
class_names = "n.txt"
targets = { alpha = "6" }
"""
    with pytest.raises(SplitError) as refusal:
        plan_of(tmp_path, text)
    for part in (
        "7 problem(s) with the plan", "mine.toml", "name 'a/b' is not",
        f"unknown key tabel (did you mean table?); known: {', '.join(entry.name for entry in fields(SplitPlan))}",
        "unknown format 'csv'; known: activitynet, youtube8m", "files must be a list of file names, got ['x', 3]",
        "unknown variant 'fair'; known: pareto, grouped, exact", "seed must be a whole number, got True",
        "class_names goes with table",
    ):  # fmt: skip
        assert part in str(refusal.value), part


@pytest.mark.parametrize(("text", "complaint"), [
    ('name = "a"', "one of benchmark, table, format must give the videos, got none of them\nA manifest of a published"),
    ('name = "a"\ntable = "t"\nbenchmark = "videolt"', "got benchmark and table"),
    ('table = "t"', "table needs name"),
    ('name = "a"\nformat = "activitynet"', "format needs files"),
    ('name = "a"\nformat = "activitynet"\nfiles = []', "files must be a list of file names, got []"),
    ('name = "a"\nformat = "activitynet"\nfiles = "x.json"', "files must be a list of file names, got 'x.json'"),
    ('name = "a"\ntable = "t"\nfiles = ["x"]', "files goes with format"),
    ('name = "charadeslt"\ntable = "t"', "name 'charadeslt' is that of a published benchmark"),
    ('name = "epic100-verbs"\ntable = "t"', "name 'epic100-verbs' is that of a published benchmark"),
    ('name = ""\ntable = "t"', "name must be text, got ''"),
    ('name = "../a"\ntable = "t"', "name '../a' is not of letters"),
    ('name = "a"\ntable = "t"\nseed = -1', "seed must be at least 0, got -1"),
    ('name = "a"\ntable = "t"\nseed = 1.0', "seed must be a whole number, got 1.0"),
    ('name = "a"\ntable = "t"\ntargets = 3', "targets must be a table, got 3"),
    ('name = "a"\nbenchmark = "videolt"', "a benchmark has its name: leave name out"),
    ('name = "a"\ntable = "t"\n[targets]\nalfa = 3\nbeta = 1', "alfa, beta: no target of pareto; known: most_frequent"),
    ('name = "a"\ntable = "t"\n[targets]\nmost_frequent = 3.5', "most_frequent must be a whole number, got 3.5"),
    ('name = "a"\ntable = "t"\n[targets]\nmost_frequent = "none"', "most_frequent must be a whole number, got 'none'"),
    ('name = "a"\ntable = "t"\n[targets]\ngroup_by = "pair"', "group_by must be a list of pair, subject, got 'pair'"),
    ('name = "a"\ntable = "t"\n[targets]\ngroup_by = ["film"]', "group_by must be a list of pair, subject"),
    ('name = "a"\ntable = "t"\nvariant = "pareto"\n[targets]\ngroup_by = ["pair"]', "pareto keeps no groups together"),
    ('name = "a"\ntable = "t"\nvariant = "exact"\n[targets]\nalpha = 2', "alpha: no target of exact; known: train_vid"),
    ("name = ", "is not a readable TOML file"),
])  # fmt: skip
def test_a_plan_that_cannot_be_meant_is_refused(tmp_path, text, complaint):
    with pytest.raises(SplitError) as refusal:
        plan_of(tmp_path, text)
    assert complaint in str(refusal.value) and "mine.toml" in str(refusal.value)


def test_a_plan_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SplitError, match=r"cannot read .*nowhere.toml"):
        read_plan(tmp_path / "nowhere.toml")


def test_plans_are_told_from_manifests(tmp_path):
    assert not is_plan(Path(TOY_MANIFEST))
    (tmp_path / "p.toml").write_text('name = "a"\n')
    assert is_plan(tmp_path / "p.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    assert is_plan(tmp_path / "broken.toml")
    (tmp_path / "broken.assignment.json").write_text("{}")
    assert not is_plan(tmp_path / "broken.toml")
    (tmp_path / "p.toml").write_text('name = "a"\ntable = "t.csv"\nreader = "lists"\n')
    assert is_plan(tmp_path / "p.toml")


# --- settings ---------------------------------------------------------------------------------------------------


def test_settings_are_read_as_toml_and_else_as_text():
    read = parse_settings(["alpha = 2.5", "seed=0x10", "name=two words", "a=[1, 2]", "b=1\nc = 2", "d=true"], **PLAIN)
    assert read == {"alpha": 2.5, "seed": 16, "name": "two words", "a": [1, 2], "b": "1\nc = 2", "d": True}
    for wrong in ("alpha", "=3", "alpha=", ""):
        with pytest.raises(SplitError, match="is not a setting; expected KEY=VALUE"):
            parse_settings([wrong], **PLAIN)
    with pytest.raises(SplitError, match="alpha is set twice"):
        parse_settings(["alpha=1", "alpha=1"], **PLAIN)


@pytest.mark.parametrize("value", [True, "3", None, [3], 3.5, {}])
def test_only_whole_numbers_are_whole_numbers(value):
    names = [entry.name for entry in fields(ExactTargets) if entry.name not in ("least_seconds", "group_by")]
    assert len(check_settings("exact", dict.fromkeys(names, value))) == len(names) == 13


def test_settings_go_before_a_preset():
    changed = resolve_targets(
        invented(), "pareto", {"alpha": 3, "test_videos": "none"}, dataset="charadeslt", benchmark="charadeslt"
    )
    assert asdict(changed) == {**asdict(PRESETS["charadeslt"]), "alpha": 3, "test_videos": None}
    exact = resolve_targets(invented(), "exact", {}, dataset="charadesegolt", benchmark="charadesegolt")
    assert exact == EXACT_PRESETS["charadesegolt"]


def test_without_a_preset_the_videos_suggest_what_is_not_said():
    annotations = invented()
    suggested = default_targets(annotations, alpha=5)
    found = resolve_targets(annotations, "pareto", {"alpha": 5, "val_positives": 1}, dataset="mine")
    assert asdict(found) == {**asdict(suggested), "val_positives": 1}


def test_a_benchmarks_thresholds_count_only_where_they_leave_no_group_empty():
    annotations = invented(videos=6000)
    most = default_targets(annotations).most_frequent
    near = resolve_targets(annotations, "pareto", {}, dataset="mine", thresholds=(most // 2, 40))
    assert (near.head_above, near.tail_up_to) == (most // 2, 40)
    far = resolve_targets(annotations, "pareto", {}, dataset="mine", thresholds=(5 * most, 4 * most))
    assert far.head_above < most


def test_an_exact_split_wants_its_numbers():
    with pytest.raises(SplitError, match="needs these numbers too: train_videos, head, medium, most_frequent, least"):
        resolve_targets(invented(), "exact", {"tail": 3}, dataset="mine")


# --- from a plan to a split and back ----------------------------------------------------------------------------

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9
)


@settings(max_examples=60, deadline=None)
@given(TEXT.filter(lambda text: text not in (".", "..")), st.integers(0, 2**40), st.floats(0.5, 40))
def test_any_text_and_number_comes_back_from_a_plan(tmp_path_factory, name, seed, alpha):
    folder = tmp_path_factory.mktemp("plan")
    made = construct(invented(60), Targets(9, 2, alpha, 6, 3, 2, 1), dataset="mine", seed=seed)
    plan = SplitPlan("mine", table=folder / name, seed=seed, targets={"alpha": alpha})
    text = render_plan(plan, made, folder)
    facts = tomllib.loads(text)
    assert (facts["table"], facts["seed"], facts["targets"]["alpha"]) == (name, seed, alpha)
    again = plan_of(folder, text)
    assert again.table == folder / name and again.digest == made.split.plan_digest
    assert resolve_targets(invented(60), "pareto", again.targets, dataset="mine") == made.targets


def test_paths_in_a_plan_are_relative_where_they_move_along(tmp_path):
    made = construct(invented(60), Targets(9, 2, 3, 6, 3, 2, 1), dataset="mine", seed=0)
    for table, told in (("work/t.csv", "../t.csv"), ("work/out/t.csv", "t.csv"), ("t.csv", str(tmp_path / "t.csv"))):
        text = render_plan(SplitPlan("mine", table=tmp_path / table), made, tmp_path / "work" / "out")
        assert tomllib.loads(text)["table"] == told


def test_a_benchmarks_plan_reads_its_annotations():
    plan = plan_for_benchmark(TOY_MANIFEST, "grouped")
    assert plan.stem == "toylt-grouped-0"
    made = make_split(plan, read_videos(plan, TOY).annotations)
    assert made.targets.group_by == ("pair",) and made.split.dataset == "toylt"
    facts = tomllib.loads(render_plan(plan, made, TOY))
    assert facts["benchmark"] == "toylt.toml" and "name" not in facts


def test_a_plan_of_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(MeidbenchError, match="gone.toml"):
        plan_of(tmp_path, 'benchmark = "gone.toml"\n')


def activitynet(folder: Path) -> str:
    database = {
        f"v{number:03d}": {
            "subset": "training", "duration": 20.0,
            "annotations": [{"label": "run" if number % 3 else "jump", "segment": [1.0, 5.0]}],
        }
        for number in range(90)
    }  # fmt: skip
    (folder / "activity_net.json").write_text(json.dumps({"database": database}))
    return 'format = "activitynet"\nfiles = ["activity_net.json"]\n'


def youtube8m(folder: Path) -> str:
    (folder / "vocabulary.csv").write_text("Index,Name\n0,jump\n1,run\n")
    lines = [f"v{number:03d},{int(number % 3 > 0)}\n" for number in range(90)]
    (folder / "train_labels.csv").write_text("".join(lines))
    return 'format = "youtube8m"\nfiles = ["vocabulary.csv", "train_labels.csv"]\n'


@pytest.mark.parametrize("write", [activitynet, youtube8m])
def test_official_formats_become_splits(tmp_path, run, write):
    (tmp_path / "mine.toml").write_text('name = "mine"\nseed = 3\n' + write(tmp_path))
    outcome = run("build-splits", tmp_path / "mine.toml", "--format", "parquet", "--format", "lst", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["available"] == [30, 60]
    for subset in ("train", "val", "test"):
        for line in (tmp_path / f"mine-pareto-3_{subset}.txt").read_text().splitlines():
            video, label = line.split()
            assert int(label) == int(int(video[1:]) % 3 > 0)


def test_both_formats_give_the_same_split_of_the_same_labels(tmp_path):
    digests = set()
    for write in (activitynet, youtube8m):
        plan = plan_of(tmp_path, 'name = "mine"\n' + write(tmp_path))
        digests.add(make_split(plan, read_videos(plan).annotations).split.digest)
    assert len(digests) == 1
