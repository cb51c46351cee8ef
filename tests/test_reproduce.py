"""The command ``reproduce``: what it lists, refuses, runs, shares, resumes and writes."""

import csv
import dataclasses
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import h5py
import pyarrow.compute as pc
import pytest
import torch
from click.testing import CliRunner
from material import REAL, TOY, real_data

from meidbench.baselines.configuration import flatten
from meidbench.baselines.inference import Trained
from meidbench.baselines.learner import is_out_of_memory
from meidbench.baselines.reproduction import read_table, row_names
from meidbench.baselines.reproduction.materials import InputFiles, Simulation, WordProxy, parse_substitute, renamed
from meidbench.baselines.reproduction.plan import Request, layered, make_jobs, row_config
from meidbench.cli import main
from meidbench.errors import MeidbenchError
from meidbench.evaluation.evaluate import evaluate
from meidbench.features.simulation import simulate_features
from meidbench.features.words import make_word_features
from meidbench.predictions.align import read_predictions
from meidbench.splits.split import Split, load_split, rows_digest, write_split

WATERMARK = "SIMULATED: numbers say nothing of real data"
PROXY = "PROXY: word features, no vision; numbers say nothing of video recognition"
GROUPS = ("overall", "head", "medium", "tail")
TINY = ("--set", "schedule.epochs=1", "--set", "schedule.milestones=[]", "--bootstrap", 20)
INVENTED = (*TINY, "--set", "simulation.frames=3", "--set", "simulation.dim=8", "--set", "simulation.split=invented",
            "--set", "schedule.batch_size=256")  # fmt: skip


def two_rows(out: Path) -> tuple[object, ...]:
    rows = ("--row", "eql-resnet50", "--row", "mixup-resnet50")
    return ("reproduce", "table2", "--simulate", *rows, "--out", out, *INVENTED)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two rows of Table 2 on simulated features, and the output of the command."""
    out = tmp_path_factory.mktemp("made") / "out"
    outcome = CliRunner().invoke(main, [str(argument) for argument in two_rows(out)])
    assert outcome.exit_code == 0, outcome.output
    return outcome, out


@pytest.fixture
def simulated(made, tmp_path):
    """A copy of these rows, which a test may change."""
    outcome, out = made
    copied = Path(shutil.copytree(out, tmp_path / "out"))
    return outcome, copied, two_rows(copied)


@pytest.fixture
def toy_videolt(toy_split, tmp_path):
    """The toy split under VideoLT's name with features, which can be run like a real benchmark."""
    split = write_split(renamed(toy_split, "videolt", "subset"), tmp_path / "videolt.parquet")
    features = simulate_features(toy_split, tmp_path / "features.h5", frames=4, dim=8)
    with h5py.File(features, "r+") as file:
        file.attrs["recipe"] = json.dumps({"backbone": "resnet18"})
    return ("--split", split, "--features", f"videolt:resnet50={features}")


def real_arguments(toy_videolt, out):
    return (*toy_videolt, "--out", out, *TINY, "--device", "cpu", "--set", "frames.train=4", "--set", "frames.test=4",
            "--set", "schedule.batch_size=16")  # fmt: skip


@pytest.fixture
def toy_kingdom(toy_split, tmp_path):
    """The toy split under Animal Kingdom's name, without val, with features of its I3D."""
    table = toy_split.table.filter(pc.not_equal(toy_split.table.column("subset"), "val"))
    without_val = Split(table, dataclasses.replace(toy_split.metadata, digest=rows_digest(table), content_digest=""))
    split = write_split(renamed(without_val, "animalkingdom", "subset"), tmp_path / "animalkingdom.parquet")
    features = simulate_features(toy_split, tmp_path / "i3d.h5", frames=4, dim=8)
    with h5py.File(features, "r+") as file:
        file.attrs["recipe"] = json.dumps({"backbone": "i3d"})
    return ("--split", split, "--features", f"animalkingdom:i3d={features}")


def test_published_rows_that_contradict_their_groups_are_marked(run, toy_kingdom, toy_videolt, tmp_path):
    out = tmp_path / "kingdom"
    rows = ("--row", "bce-i3d", "--row", "focal-i3d")
    outcome = run("reproduce", "animalkingdom", *rows, *real_arguments(toy_kingdom, out))
    assert outcome.exit_code == 0, outcome.stderr
    assert re.search(r"bce-i3d +overall +0\.165! ", outcome.stdout) and "head          0.464 " in outcome.stdout
    assert "! Published overall values that are not the mean of their groups" in outcome.stdout
    assert "- bce-i3d: 0.165 is published, its groups imply 0.188" in outcome.stdout
    written = table_of(out, "animalkingdom")
    assert all(row["implied_overall"] > row["published"]["overall"] for row in written["rows"])
    page = (out / "animalkingdom.md").read_text()
    assert "0.165!" in page and "0.165!" not in (out / "animalkingdom.csv").read_text()
    assert "| middle |" in page and " middle " in outcome.stdout and "| medium |" not in page
    config = {row["name"]: row["config"] for row in written["rows"]}
    assert config["focal-i3d"]["loss"]["gamma"] == 0 and config["bce-i3d"]["aggregator"]["name"] == "mean"
    # A table whose rows agree with their groups has no mark.
    out = tmp_path / "videolt"
    outcome = run("reproduce", "table2", "--row", "eql-resnet50", *real_arguments(toy_videolt, out))
    assert outcome.exit_code == 0 and "!" not in outcome.stdout
    marked = {row["name"] for row in table_of(out)["rows"] if row["implied_overall"] is not None}
    assert marked == {"medc-resnet50", "medc-resnet101"}


def test_the_plan_of_animal_kingdom_needs_the_users_features_and_tells_the_contradictions(run):
    outcome = run("reproduce", "animalkingdom", "--plan")
    assert outcome.exit_code == 0, outcome.stderr
    assert "meidbench pack-features FOLDER --split animalkingdom" in outcome.stdout
    assert outcome.stdout.count("its groups imply") == 12


@pytest.fixture(scope="module")
def toy_charades(toy_split, tmp_path_factory):
    """A split under CharadesLT's name, and invented annotations of its videos in the official form."""
    folder = tmp_path_factory.mktemp("charades")
    for subset in ("train", "test"):
        shutil.copy(TOY / f"Toy_v1_{subset}.csv", folder / f"Charades_v1_{subset}.csv")
    names = [f"c{index:03d} class {index}" for index in range(157)]
    (folder / "Charades_v1_classes.txt").write_text("\n".join(names) + "\n")
    split = write_split(renamed(toy_split, "charadeslt", "subset"), folder / "charadeslt.parquet")
    return split, folder


def on_words(toy_charades, out, *rows):
    split, folder = toy_charades
    asked = [text for row in rows or ["eql-charadeslt"] for text in ("--row", row)]
    return ("reproduce", "table3", "--proxy", "words", "--split", split, "--annotations", folder, *asked, "--out", out,
            *TINY, "--device", "cpu", "--set", "proxy.frames=3", "--set", "proxy.dim=16",
            "--set", "schedule.batch_size=64")  # fmt: skip


@pytest.fixture(scope="module")
def proxy(toy_charades, tmp_path_factory):
    """A row of each benchmark on words, where only CharadesLT has annotations, and the output of the command."""
    out = tmp_path_factory.mktemp("proxy") / "out"
    arguments = on_words(toy_charades, out, "eql-charadeslt", "eql-charadesegolt")
    outcome = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome, out


def table_of(out: Path, name: str = "table2"):
    return json.loads((out / f"{name}.json").read_text())


def rows_of(out: Path, name: str = "table2"):
    """The rows that were asked for, in the table's order."""
    return [row for row in table_of(out, name)["rows"] if row["status"] not in ("not asked for", "quoted")]


def test_simulated_tables_are_marked_everywhere(simulated):
    outcome, out, _ = simulated
    assert outcome.stdout.splitlines()[0] == WATERMARK == (out / "SIMULATED.txt").read_text().strip()
    rows = re.findall(r"^(\S+) (\S+) +overall", outcome.stdout, re.MULTILINE)
    assert rows == [("SIMULATED", "eql-resnet50"), ("SIMULATED", "mixup-resnet50")]
    page = (out / "table2.md").read_text()
    assert page.startswith("# SIMULATED") and WATERMARK in page
    assert all("| SIMULATED |" in line for line in page.splitlines() if line.startswith(("| eql", "| mixup")))
    lines = list(csv.DictReader(io.StringIO((out / "table2.csv").read_text())))
    assert {line["data"] for line in lines} == {"SIMULATED"}
    content = table_of(out)
    assert content["simulated"] and content["watermark"] == WATERMARK
    assert all(row["watermark"] == WATERMARK for row in content["rows"])
    runs = [entry.name for entry in (out / "runs").iterdir()]
    assert len(runs) == 2 and all(name.startswith("simulated-videolt-") for name in runs)


def test_simulated_tables_compare_nothing_with_the_paper(simulated):
    outcome, out, _ = simulated
    content = table_of(out)
    assert all(row["published"] is None and row["difference"] is None for row in content["rows"])
    for line in csv.DictReader(io.StringIO((out / "table2.csv").read_text())):
        assert all(line[f"{group}_{kind}"] == "" for group in GROUPS for kind in ("paper", "difference"))
        if line["status"] != "done":
            assert line["overall_ours"] == "" and line["row"] not in ("eql-resnet50", "mixup-resnet50")
            continue
        assert 0 < float(line["overall_low"]) <= float(line["overall_ours"]) <= float(line["overall_high"]) < 1
    # The paper's values of EQL and Mixup.
    for text in (outcome.stdout, (out / "table2.md").read_text()):
        assert not re.search(r"0\.502|0\.679|0\.484|0\.649", text) and "not comparable" not in text.split("\n")[0]


def test_simulated_predictions_are_not_taken_for_those_of_a_benchmark(simulated, run, tmp_path):
    _, out, _ = simulated
    split = load_split(next((out / "splits").iterdir()))
    named = write_split(renamed(split, "videolt"), tmp_path / "videolt.parquet")
    predictions = next((out / "runs").glob("*/predictions-test.parquet"))
    outcome = run("evaluate", predictions, "--split", named)
    assert outcome.exit_code == 1 and "simulated-videolt" in outcome.stderr


def test_numbers_are_those_of_the_evaluator(simulated):
    _, out, _ = simulated
    split = load_split(next((out / "splits").iterdir()))
    for row in rows_of(out):
        run_folder = out / "runs" / row["ours"]["runs"][0]
        predictions = read_predictions(run_folder / "predictions-test.parquet")
        result = evaluate(predictions.scores, predictions.video_ids, split, "test", bootstrap=20, seed=0)
        for group in GROUPS:
            shown, interval = row["ours"]["mAP"][group], result.intervals.mAP[group]
            assert shown["value"] == pytest.approx(getattr(result.mAP, group), abs=1e-12)
            assert (shown["low"], shown["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert row["ours"]["val"] == json.loads((run_folder / "result-val.json").read_text())["mAP"]


def test_the_same_command_again_trains_nothing_and_prints_the_same(simulated, run, monkeypatch):
    outcome, out, arguments = simulated
    before = {path: path.read_bytes() for path in out.glob("table2.*")}
    monkeypatch.setattr(
        "meidbench.baselines.loop.TrainingLoop.complete", lambda self: pytest.fail("a finished run was trained again")
    )
    monkeypatch.setattr(
        "meidbench.baselines.reproduction.runs.compare", lambda *a, **k: pytest.fail("intervals were made again")
    )
    again = run(*arguments)
    assert again.exit_code == 0 and again.stdout == outcome.stdout
    assert again.stderr.count("is finished") == 2 and "0 runs newly trained" in again.stderr
    assert {path: path.read_bytes() for path in out.glob("table2.*")} == before


def test_two_fresh_runs_give_the_same_bytes_without_a_path_in_them(simulated, run, tmp_path):
    _, out, arguments = simulated
    other = tmp_path / "elsewhere"
    outcome = run(*[other if argument == out else argument for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    for ending in ("json", "csv", "md"):
        assert (other / f"table2.{ending}").read_bytes() == (out / f"table2.{ending}").read_bytes()
    assert str(tmp_path) not in (out / "table2.json").read_text()
    assert sorted(path.name for path in (other / "runs").iterdir()) == sorted(
        path.name for path in (out / "runs").iterdir()
    )


def test_damaged_intervals_are_made_again(simulated, run):
    _, out, arguments = simulated
    before = (out / "table2.json").read_bytes()
    for path in (out / "intervals").iterdir():
        path.write_text("{")
    assert run(*arguments).exit_code == 0
    assert (out / "table2.json").read_bytes() == before


def test_seeds_are_averaged_and_their_spread_is_shown(simulated, run):
    _, out, _ = simulated
    arguments = ("reproduce", "table2", "--simulate", "--row", "eql-resnet50", "--out", out, *INVENTED)
    outcome = run(*arguments, "--seed", 3, "--seed", 1)
    assert outcome.exit_code == 0, outcome.output
    (row,) = rows_of(out)
    results = [json.loads((out / "runs" / name / "result-test.json").read_text()) for name in row["ours"]["runs"]]
    values = [result["mAP"]["tail"] for result in results]
    assert row["ours"]["seeds"] == [3, 1] and values[0] != values[1]
    assert row["ours"]["mAP"]["tail"]["value"] == pytest.approx(sum(values) / 2)
    spread = row["ours"]["seed_spread"]["tail"]
    assert (spread["low"], spread["high"], spread["seeds"]) == (min(values), max(values), 2)
    assert "mean of seeds 3, 1" in re.sub(r"\s+", " ", outcome.stdout)
    # One of the two seeds alone is finished already.
    alone = run(*arguments, "--seed", 1)
    assert "0 runs newly trained" in alone.stderr and rows_of(out)[0]["ours"]["seed_spread"] is None


def test_without_features_it_lists_what_is_missing_and_fills_in_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("reproduce", "table2", "--row", "ldam-resnet50", "--row", "medc-resnet50", "--row", "cbs-resnet101")
    assert outcome.exit_code == 1 and "no number is filled in" in outcome.stderr
    message = re.sub(r"\s+", " ", outcome.stdout)
    for text in (
        "split of videolt: MISSING",
        "meidbench build-splits videolt",
        "features of ResNet50 on videolt: MISSING 256,192 videos x 150 frames x 2,048 wide, in float16 157 GB of disk",
        "features of ResNet101 on videolt: MISSING",
        "weights: torchvision's ImageNet V1, 98 MB",
        "ESTIMATE for one A100, not measured",
        "medc-resnet50 quoted only",
    ):
        assert text in message
    assert not re.search(r"0\.502|0\.378", outcome.stdout) and list(tmp_path.iterdir()) == []
    planned = run("reproduce", "table2", "--row", "ldam-resnet50", "--plan", "--json", "-")
    assert planned.exit_code == 0
    content = json.loads(planned.stdout)
    assert content["features"][0]["bytes"] == 256_192 * 150 * 2048 * 2
    assert content["rows"][0]["missing"] == ["the split of videolt", "features of ResNet50 on videolt"]
    assert content["rows"][0]["hours"] > 0 and "ESTIMATE" in content["estimate"]["formula"]


def test_a_plan_counts_models_whose_recipes_set_a_bias_prior(run):
    outcome = run("reproduce", "table3", "supp5", "--plan", "--faithful", "--json", "-")
    assert outcome.exit_code == 0, outcome.output
    rows = [row for table in json.loads(outcome.stdout) for row in table["rows"] if not row["quoted"]]
    assert {"cbloss-netvlad", "eql-netvlad", "meid-charadeslt"} <= {row["name"] for row in rows}
    assert all(row["hours"] > 0 for row in rows)


def test_rows_with_inputs_are_run_and_the_others_have_dashes(run, toy_videolt, tmp_path):
    out = tmp_path / "out"
    rows = ("--row", "eql-resnet50", "--row", "medc-resnet50", "--row", "eql-resnet101")
    outcome = run("reproduce", "table2", *rows, *real_arguments(toy_videolt, out))
    assert outcome.exit_code == 0, outcome.output
    assert "1 row(s) lack inputs" in outcome.stderr and WATERMARK not in outcome.stdout
    named = {row["name"]: row for row in table_of(out)["rows"]}
    eql, medc, other = (named[name] for name in rows[1::2])
    assert (eql["status"], medc["status"], other["status"]) == ("done", "quoted", "not run")
    assert medc["ours"] is other["ours"] is medc["difference"] is other["difference"] is None
    assert "features of ResNet101 on videolt" in other["reason"]
    assert eql["published"] == {"overall": 0.502, "head": 0.679, "medium": 0.557, "tail": 0.378}
    for group in GROUPS:
        expected = eql["ours"]["mAP"][group]["value"] - eql["published"][group]
        assert eql["difference"][group] == pytest.approx(expected)
    lines = dict(re.findall(r"^(\S+) +overall +(\S.*)$", outcome.stdout, re.MULTILINE))
    assert lines["medc-resnet50"].split() == ["0.567!", "quoted", "-", "-"]
    assert lines["eql-resnet101"].split() == ["0.518", "not", "run", "-", "-"]
    assert lines["eql-resnet50"].split()[0] == "0.502" and lines["eql-resnet50"].split()[-1] == (
        f"{eql['difference']['overall']:+.3f}"
    )
    # The differences from the paper's row.
    assert {"schedule.epochs: 100 -> 1", "features are 8 wide, not 2,048"} <= set(eql["differs"])
    assert "features are of the backbone resnet18, not resnet50" in eql["differs"]
    assert "the split is the variant subset, not the released one" in eql["differs"]
    assert all(name.startswith("videolt-eql-compat-s2021-") for name in eql["ours"]["runs"])


def test_rows_of_several_tables_that_are_one_run_are_trained_once(run, toy_videolt, tmp_path):
    out = tmp_path / "out"
    arguments = ("--row", "meid-resnet50", "--row", "e1", "--row", "e1-e2", *real_arguments(toy_videolt, out))
    outcome = run("reproduce", "table2", "table6", *arguments)
    assert outcome.exit_code == 0, outcome.output
    (meid,), (one, two) = rows_of(out), rows_of(out, "table6")
    assert meid["ours"] == two["ours"] and one["ours"]["runs"] != two["ours"]["runs"]
    # The first stage of both experts is the row of expert one alone.
    assert len(list((out / "runs").iterdir())) == 2
    assert "table6: 2 of 2 rows have numbers, 0 runs newly trained" in outcome.stderr


def test_both_presets_of_meid_are_trained_and_scored(run, toy_split, tmp_path):
    split = write_split(renamed(toy_split, "charadeslt"), tmp_path / "charadeslt.parquet")
    outcome = run("reproduce", "table3", "--simulate", "--row", "meid-charadeslt", "--row", "meid-release-charadeslt",
                  "--split", split, "--out", tmp_path / "out", *TINY, "--set", "simulation.frames=3",
                  "--set", "simulation.dim=8")  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    rows = rows_of(tmp_path / "out", "table3")
    assert [row["status"] for row in rows] == ["done", "done"]
    # The authors' scripts run the mean over frames, and the row says so beside the published NeXtVLAD.
    assert [row["config"]["aggregator"]["name"] for row in rows] == ["nextvlad", "mean"]
    assert [row["aggregation"] for row in rows] == ["NeXtVLAD"] * 2
    assert "the scripts run the mean over frames" in rows[1]["note"]


def test_a_row_that_fails_leaves_the_others(run, toy_videolt, tmp_path, monkeypatch):
    from meidbench.baselines.reproduction import runs

    out, train = tmp_path / "out", runs.train

    def diverging(split, features, config, *arguments, **named) -> Trained:
        if config.method == "eql-compat":
            raise MeidbenchError("the loss was infinite\nin step 3")
        return train(split, features, config, *arguments, **named)

    monkeypatch.setattr(runs, "train", diverging)
    rows = ("--row", "eql-resnet50", "--row", "mixup-resnet50")
    outcome = run("reproduce", "table2", *rows, *real_arguments(toy_videolt, out))
    assert outcome.exit_code == 1 and "row eql-resnet50 failed: the loss was infinite" in outcome.stderr
    assert [row["status"] for row in rows_of(out)] == ["failed", "done"]
    assert rows_of(out)[0]["ours"] is None


def test_faithful_baselines_are_recorded_as_other_methods(simulated, run):
    _, out, _ = simulated
    outcome = run("reproduce", "table2", "--simulate", "--faithful", "--row", "eql-resnet50", "--out", out, *INVENTED)
    assert outcome.exit_code == 0, outcome.output
    (row,) = rows_of(out)
    assert row["config"]["method"] == "eql" and "method: eql-compat -> eql" in row["differs"]


def test_simulated_and_real_results_do_not_share_a_folder(simulated, run, toy_videolt, tmp_path):
    _, out, arguments = simulated
    real = real_arguments(toy_videolt, out)
    outcome = run("reproduce", "table2", "--row", "eql-resnet50", *real)
    assert outcome.exit_code == 1 and "holds simulated results" in outcome.stderr
    (out / "SIMULATED.txt").unlink()
    outcome = run(*arguments)
    assert outcome.exit_code == 1 and "holds runs on real features" in outcome.stderr


def test_simulated_features_are_of_the_own_videos_of_a_built_benchmark(run, toy_split, tmp_path):
    split = write_split(renamed(toy_split, "charadeslt"), tmp_path / "charadeslt.parquet")
    arguments = ("reproduce", "table3", "--simulate", "--row", "eql-charadeslt", "--split", split, *TINY,
                 "--set", "simulation.frames=3", "--set", "simulation.dim=8")  # fmt: skip
    outcome = run(*arguments, "--out", tmp_path / "own")
    assert outcome.exit_code == 0, outcome.output
    (row,) = rows_of(tmp_path / "own", "table3")
    assert "simulated features of the real split of charadeslt, 3 x 8" in row["differs"]
    assert toy_split.digest[:12] in next((tmp_path / "own" / "splits").iterdir()).name
    few = InputFiles([split], substitute=Simulation(most_videos=10), out=tmp_path / "few").get(
        "charadeslt", "ResNet101"
    )
    assert few.split.variant == "invented" and "invented videos" in few.differences()[0]
    absent = run("reproduce", "table2", "--simulate", "--out", tmp_path / "no", "--set", "simulation.split=own")
    assert absent.exit_code == 1 and "the split of videolt is not built" in absent.stderr


def test_tables_on_words_are_marked_everywhere(proxy):
    outcome, out = proxy
    assert outcome.stdout.splitlines()[0] == PROXY == (out / "PROXY.txt").read_text().strip()
    assert re.findall(r"^PROXY (\S+) +overall", outcome.stdout, re.MULTILINE) == ["eql-charadeslt", "eql-charadesegolt"]
    assert outcome.stdout.count(PROXY) == 1
    page = (out / "table3.md").read_text()
    assert page.startswith("# PROXY table3") and f"**{PROXY}.**" in page and "not comparable" not in page.split("\n")[0]
    assert all("| PROXY |" in line for line in page.splitlines() if re.match(r"\| \S+-charades(ego)?lt \|", line))
    lines = list(csv.DictReader(io.StringIO((out / "table3.csv").read_text())))
    assert {line["data"] for line in lines} == {"PROXY"}
    assert all(line[f"{group}_{kind}"] == "" for line in lines for group in GROUPS for kind in ("paper", "difference"))
    content = table_of(out, "table3")
    assert not content["simulated"] and content["watermark"] == PROXY
    assert all(row["watermark"] == PROXY and row["published"] is row["difference"] is None for row in content["rows"])
    (run,) = (out / "runs").iterdir()
    assert run.name.startswith("words-charadeslt-eql")
    assert read_predictions(run / "predictions-test.parquet").metadata["run"]["backbone"] == "words"


def test_a_row_on_words_differs_in_frames_alone(proxy, toy_charades):
    _, out = proxy
    done, missing = rows_of(out, "table3")
    assert done["status"] == "done" and done["ours"]["warnings"][0] == PROXY
    assert "word features of the real split of charadeslt, 16 wide" in done["differs"]
    reason = "missing the annotation files of charadesegolt (--annotations DIR)"
    assert (missing["status"], missing["reason"]) == ("not run", reason)
    split, folder = toy_charades
    words = WordProxy()
    files = InputFiles([split], [folder], substitute=words)
    for job in make_jobs(read_table("table3"), Request(substitute=words), files):
        if not job.row.is_quoted:
            published, config = (
                flatten(each.to_tables())
                for each in (row_config(job.row, renamed(job.material.split, job.row.dataset)), job.configs[0])
            )
            differing = {key for key in published | config if published.get(key) != config.get(key)}
            assert {key.split(".")[-2:][0] for key in differing} <= {"frames", "aggregator"}, differing
            assert {key.split(".")[-1] for key in differing} <= {"train", "test", "frames"}, differing
            assert config["frames.train"] == config["frames.test"] == 32


def test_predictions_on_words_are_not_taken_for_those_of_a_benchmark(proxy, toy_charades, run):
    _, out = proxy
    predictions = next((out / "runs").glob("*/predictions-test.parquet"))
    outcome = run("evaluate", predictions, "--split", toy_charades[0])
    assert outcome.exit_code == 1 and "words-charadeslt" in outcome.stderr
    outcome = run("evaluate", predictions, "--split", next((out / "splits").iterdir()))
    assert outcome.exit_code == 0 and PROXY in outcome.stdout


def test_a_table_on_words_is_resumed_in_a_folder_of_its_own(proxy, simulated, toy_charades, toy_videolt, run):
    outcome, out = proxy
    again = run(*on_words(toy_charades, out, "eql-charadeslt", "eql-charadesegolt"))
    assert again.exit_code == 0 and again.stdout == outcome.stdout and "0 runs newly trained" in again.stderr
    refused = run("reproduce", "table2", "--row", "eql-resnet50", *real_arguments(toy_videolt, out))
    assert refused.exit_code == 1 and "holds proxy results; name another folder for real ones (--out)" in refused.stderr
    _, other, arguments = simulated
    refused = run(*on_words(toy_charades, other))
    assert refused.exit_code == 1 and "holds simulated results; name another folder for proxy ones" in refused.stderr
    refused = run(*(out if argument == other else argument for argument in arguments))
    assert refused.exit_code == 1 and "holds proxy results; name another folder for simulated ones" in refused.stderr


def test_a_table_without_words_is_not_run(run, tmp_path):
    outcome = run("reproduce", "table2", "--proxy", "words", "--out", tmp_path / "out")
    reason = "nothing of table2 can be run: its rows need word features of videolt, whose annotations hold no"
    assert outcome.exit_code == 1 and outcome.stdout.startswith(reason) and not (tmp_path / "out").exists()


def test_word_features_make_no_real_table(run, toy_charades, tmp_path):
    split, folder = toy_charades
    words = make_word_features("charadeslt", folder, tmp_path / "words.h5", dim=8)
    arguments = ("reproduce", "table3", "--row", "eql-charadeslt", "--split", split, *TINY)
    outcome = run(*arguments, "--features", f"ResNet101={words}", "--out", tmp_path / "out")
    assert outcome.exit_code == 1 and "real features of ResNet101 on charadeslt (these are words)" in outcome.stderr
    assert "--proxy words" in outcome.stderr and not (tmp_path / "out").exists()


def test_narrow_terminals_are_not_overrun(simulated, run, toy_videolt, tmp_path, monkeypatch):
    _, _, arguments = simulated
    real = ("reproduce", "table2", "--row", "eql-resnet50", *real_arguments(toy_videolt, tmp_path / "real"))
    plan = ("reproduce", "table3", "--plan", "--row", "ldam-charadeslt")
    for width, call in itertools.product((30, 48, 70), (arguments, real, plan)):
        monkeypatch.setenv("COLUMNS", str(width))
        outcome = run(*call)
        assert outcome.exit_code == 0, outcome.output
        words = max(len(word) for word in outcome.stdout.split())
        assert max(map(len, outcome.stdout.splitlines())) <= max(width, words + 6)
        if call != plan:
            assert re.search(r"overall +(paper )?.*0\.\d{3}", outcome.stdout)


def test_table_1_is_exact_on_the_real_splits(run, tmp_path):
    folders = [argument for folder in set(REAL.values()) for argument in ("--annotations", real_data(folder))]
    outcome = run("reproduce", "table1", *folders, "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    assert "all 27 cells of 3 benchmark(s) equal the paper's" in outcome.stdout
    assert outcome.stdout.count(" equal") == 28 and "DIFFERS" not in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 60
    content = json.loads((tmp_path / "table1.json").read_text())
    ours = {row["dataset"]: {cell["name"]: cell["ours"] for cell in row["cells"]} for row in content["rows"]}
    assert ours["videolt"]["train"] == 179_334 and ours["charadeslt"]["imbalance_ratio"] == 61.8


def test_table_1_lists_missing_splits_and_different_cells(run, toy_split, tmp_path):
    nothing = run("reproduce", "table1", "--out", tmp_path / "none")
    assert nothing.exit_code == 1 and "nothing was compared" in nothing.stdout
    assert re.sub(r"\s+", " ", nothing.stdout).count("meidbench build-splits") == 3 and not (tmp_path / "none").exists()
    split = write_split(renamed(toy_split, "videolt"), tmp_path / "videolt.parquet")
    other = run("reproduce", "table1", "--row", "videolt", "--split", split, "--out", tmp_path / "some")
    assert other.exit_code == 1
    cells = {line.split()[-4 if "VideoLT" in line else 0]: line.split()[-1] for line in other.stdout.splitlines()[4:14]}
    assert cells["train"] == cells["classes"] == "DIFFERS"
    assert f"{len(toy_split.video_ids('train')):,}" in next(
        line for line in other.stdout.splitlines() if line.split()[:1] == ["train"]
    )


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["table8"], 2, "'table8' is not one of"),
    ([], 2, "Missing argument"),
    (["table2", "--row", "bce-resnet50"], 2, "no row is called bce-resnet50"),
    (["table2", "--simulate", "--plan"], 2, "--simulate takes neither"),
    (["table1", "--simulate"], 2, "there is nothing to simulate"),
    (["table1", "--proxy", "words"], 2, "there is nothing to simulate or to train on words"),
    (["table3", "--proxy", "words", "--simulate"], 2, "--simulate takes neither --features nor --plan nor --proxy"),
    (["table3", "--proxy", "words", "--plan"], 2, "--proxy takes neither --features nor --plan: it needs annotations"),
    (["table3", "--proxy", "letters"], 2, "'letters' is not 'words'"),
    (["table3", "--proxy", "words", "--set", "proxy.words=3"], 2, "1 problem(s) with the proxy:"),
    (["table2", "--seed", "1", "--seed", "1"], 2, "named twice"),
    (["table2", "--seed", "1", "--set", "seed=2"], 2, "not by both"),
    (["table7", "--seed", "1", "--seed", "2", "--set", "stage2.seed=5"], 2, "not by both"),
    (["table7", "--seed", "1", "--set", " stage1.seed =5"], 2, "not by both"),
    (["table7", "--set", "model.beta=0.9"], 2, "row beta-0.3: table7 ablates model.beta; leave it out of --set"),
    (["table7", "--set", "stage2.model.beta=.9"], 2, "ablates model.beta; leave stage2.model.beta out of --set"),
    (["table5", "--set", "sampler.name=instance"], 2, "row selection: table5 ablates sampler; leave sampler.name out"),
    (["table4", "--set", "model={attention='none'}"], 2, "row plain: table4 ablates model.attention"),
    (["table7", "--set", "aggregator=mean"], 2, "row beta-0.3: "),
    (["table2", "--simulate", "--set", "aggregator.name=[1]"], 2, "unknown aggregator.name [1]"),
    (["table2", "--simulate", "--set", "aggregator=mean"], 2, "row ldam-resnet50: "),
    (["table7", "--row", "beta-0.5", "--simulate", "--set", "stage2.model.loss_on=foo"], 2, "row beta-0.5: "),
    (["table7", "--row", "beta-0.5", "--simulate", "--set", "model.attention_hidden=1000000000000000000"], 2,
     "row beta-0.5: "),
    (["table2", "--features", "ResNet50=none.h5"], 2, "there are no features of ResNet50 at none.h5"),
    (["table2", "--annotations", "nope"], 2, "Directory 'nope' does not exist"),
    (["table1", "--annotations", "nope"], 2, "Directory 'nope' does not exist"),
    (["table2", "--row", "eql-resnet50", "--set", "schedule.epoch=3"], 2, "row eql-resnet50: 1 problem(s)"),
    (["table2", "--row", "eql-resnet50", "--gpu", "abacus"], 2, "unknown GPU 'abacus'"),
    (["table2", "--simulate", "--set", "simulation.frame=3"], 2, "unknown key simulation.frame"),
    (["table2", "--simulate", "--set", "simulation.frames=0"], 2, "simulation.frames must be at least 1"),
])  # fmt: skip
def test_wrong_calls_are_refused(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    outcome = run("reproduce", *arguments)
    assert outcome.exit_code == code and message in outcome.stderr and outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_stage_are_left_out_of_rows_with_one_stage(toy_videolt):
    materials = InputFiles()
    request = Request(settings=("stage2.model.beta=0.4", "stage1.seed=3", "selection.subset=test"))
    jobs = {job.row.name: job for job in make_jobs(read_table("table5"), request, materials)}
    one, full = jobs["e1"], jobs["selection-motion-sampling"]
    assert [text for text in one.differs if "left out" in text] == [
        "stage2.model.beta=0.4 is left out: meid_one is trained in one stage",
        "stage1.seed=3 is left out: meid_one is trained in one stage",
    ]
    assert one.configs[0].seed == full.configs[0].seed and full.configs[0].first_stage.seed == 3
    assert full.configs[0].model.options["beta"] == 0.4 and "model.beta: 0.5 -> 0.4" in full.differs
    with pytest.raises(MeidbenchError, match="row e1: stage2.seed is set twice"):
        make_jobs(read_table("table5"), Request(settings=("stage2.seed=1", "stage2.seed=2")), materials, ["e1"])


def test_a_setting_for_all_reaches_rows_that_set_a_stage():
    table = read_table("table7")
    assert table.rows[0].name == "beta-0.3"
    row = dataclasses.replace(table.rows[0], settings=("stage2.model.fuse_stage=late",), switches=())
    own = dataclasses.replace(table, rows=(row,))
    (job,) = make_jobs(own, Request(settings=("model.fuse_stage=early",)), InputFiles())
    assert job.configs[0].model.options["fuse_stage"] == "early"
    assert "model.fuse_stage: late -> early" in job.differs


def test_simulated_inputs_make_no_real_table(run, toy_split, toy_videolt, tmp_path):
    simulated = simulate_features(toy_split, tmp_path / "simulated.h5", frames=4, dim=8)
    split, real = toy_videolt[1], toy_videolt[3].partition("=")[2]
    invented = write_split(renamed(toy_split, "videolt", "invented"), tmp_path / "invented.parquet")
    arguments = ("reproduce", "table2", "--row", "eql-resnet50", *TINY)
    for named, features, message in (
        (split, simulated, "real features of ResNet50 on videolt (these are simulated)"),
        (invented, real, "a real split of videolt (this one is of the variant invented)"),
    ):
        out = tmp_path / "refused"
        outcome = run(*arguments, "--split", named, "--features", f"ResNet50={features}", "--out", out)
        assert outcome.exit_code == 1 and message in outcome.stderr and "--simulate" in outcome.stderr
        assert "0.502" not in outcome.stdout and not out.exists()
    # Beside a row that can be run, the row fails.
    both = real_arguments(toy_videolt, tmp_path / "out")
    outcome = run(*arguments[:4], "--row", "eql-resnet101", *both, "--features", f"ResNet101={simulated}")
    assert outcome.exit_code == 1 and "row eql-resnet101 failed: needs real features" in outcome.stderr
    rows = {row["name"]: row for row in rows_of(tmp_path / "out")}
    assert {name: row["status"] for name, row in rows.items()} == {"eql-resnet50": "done", "eql-resnet101": "failed"}
    assert rows["eql-resnet101"]["ours"] is None and not (tmp_path / "out" / "SIMULATED.txt").exists()


def test_rows_that_are_not_asked_for_stay_in_the_table(simulated, run, monkeypatch):
    _, out, arguments = simulated
    before = rows_of(out)
    names = row_names("table2")
    assert tuple(row["name"] for row in table_of(out)["rows"]) == names and len(before) == 2
    alone = [argument for argument in arguments if argument not in ("--row", "eql-resnet50", "mixup-resnet50")]
    features = sorted(path.name for path in (out / "features").iterdir())
    (out / "runs" / before[1]["ours"]["runs"][0] / "result-test.json").rename(out / "away.json")
    monkeypatch.setattr("meidbench.baselines.reproduction.runs.train", runs_finished(out, before[0]))
    outcome = run(*alone, "--row", "eql-resnet50")
    assert outcome.exit_code == 0, outcome.output
    assert (
        rows_of(out) == before[:1] and "mixup-resnet50" in outcome.stdout
    )  # without a number, because its run is not finished
    (out / "away.json").rename(out / "runs" / before[1]["ours"]["runs"][0] / "result-test.json")
    outcome = run(*alone, "--row", "eql-resnet50")
    assert rows_of(out) == before and "1 of 1 rows have numbers" in outcome.stderr
    # Features of ResNet-101 are not simulated for rows that nobody asked for.
    assert sorted(path.name for path in (out / "features").iterdir()) == features
    assert all(
        row["ours"] is row["config"] is None for row in table_of(out)["rows"] if row["status"] == "not asked for"
    )


def runs_finished(out, row):
    """A ``train`` that accepts only the one finished run."""
    from meidbench.baselines.training import train

    def checked(split, features, config, path, **named):
        assert path == out / "runs" / row["ours"]["runs"][0]
        return train(split, features, config, path, **named)

    return checked


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 0x7f"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
])  # fmt: skip
def test_a_row_without_memory_leaves_the_others(run, simulated, monkeypatch, error):
    from meidbench.baselines.reproduction import runs

    _, out, arguments = simulated
    train = runs.train

    def greedy(split, features, config, *rest, **named):
        if config.method == "eql-compat":
            raise error
        return train(split, features, config, *rest, **named)

    monkeypatch.setattr(runs, "train", greedy)
    outcome = run(*arguments)
    assert outcome.exit_code == 1 and "row eql-resnet50 failed: out of memory; schedule.accumulate=N" in outcome.stderr
    eql, mixup = rows_of(out)
    assert (eql["status"], mixup["status"]) == ("failed", "done") and eql["ours"] is None
    assert eql["reason"].startswith("out of memory; schedule.accumulate=N") and "0x7f" not in eql["reason"]


def test_a_refusal_of_the_cpu_allocator_is_out_of_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_are_not_hidden(run, simulated, monkeypatch):
    _, _, arguments = simulated

    def broken(*arguments, **named):
        raise RuntimeError("a bug")

    monkeypatch.setattr("meidbench.baselines.reproduction.runs.train", broken)
    outcome = run(*arguments)
    assert isinstance(outcome.exception, RuntimeError) and "a bug" in str(outcome.exception)


def test_damaged_features_fail_their_row(run, toy_videolt, tmp_path):
    damaged = Path(toy_videolt[3].partition("=")[2])
    with h5py.File(damaged, "r+") as file:
        file["status"][3] = 3  # failed
    out = tmp_path / "out"
    outcome = run("reproduce", "table2", "--row", "eql-resnet50", *real_arguments(toy_videolt, out))
    assert outcome.exit_code == 1
    (row,) = rows_of(out)
    assert row["status"] == "failed" and row["ours"] is None
    assert row["reason"] in outcome.stderr and "cannot be used from" in row["reason"]


def test_features_that_cannot_be_opened_are_not_there(run, tmp_path):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"no features")
    for more in ((), ("--plan",)):
        outcome = run("reproduce", "table2", "--features", f"ResNet50={damaged}", *more, "--out", tmp_path / "out")
        assert outcome.exit_code == 1 and outcome.stdout == "" and not (tmp_path / "out").exists()
        assert f"the features of ResNet50 cannot be read: {damaged} is not an HDF5 file" in outcome.stderr


def test_protocol_and_notes_follow_the_configurations(run, toy_videolt, tmp_path):
    out = tmp_path / "out"
    arguments = ("reproduce", "table2", "--row", "eql-resnet50", *real_arguments(toy_videolt, out))
    assert run(*arguments, "--faithful", "--set", "selection.subset=test").exit_code == 0
    content = table_of(out)
    message = " ".join([*content["protocol"], *content["notes"]])
    assert "Ours is chosen on test, too" in message and "chosen on val" not in message
    assert "the recipes of the methods' papers, as --faithful asks" in message
    assert "are the recipes NAME-compat" not in message
    page = (out / "table2.md").read_text()
    assert "Ours is chosen on test, too" in page and "are the recipes NAME-compat" not in page


def test_plain_runs_are_recorded_as_chosen_on_val(simulated):
    outcome, out, _ = simulated
    content = table_of(out)
    assert "Ours is chosen on val, and test is scored once." in content["protocol"]
    assert any(note.startswith("Rows of baselines are the recipes NAME-compat") for note in content["notes"])
    assert "Ours is chosen on val" in re.sub(r"\s+", " ", outcome.stdout)


def test_difficulties_that_are_almost_alike_are_two_files(toy_split, tmp_path):
    split = write_split(renamed(toy_split, "videolt"), tmp_path / "videolt.parquet")
    paths = [
        InputFiles([split], substitute=Simulation(difficulty=value, frames=1, dim=1), out=tmp_path)
        .get("videolt", "ResNet50")
        .features.path
        for value in (0.5, 0.50000001)
    ]
    assert paths[0] != paths[1] and all(path.is_file() for path in paths)


def test_table_1_fits_narrow_terminals(run, toy_split, tmp_path, monkeypatch):
    split = write_split(renamed(toy_split, "videolt"), tmp_path / "videolt.parquet")
    for width in (30, 40, 53):
        monkeypatch.setenv("COLUMNS", str(width))
        outcome = run("reproduce", "table1", "--split", split, "--out", tmp_path / "out")
        words = max(len(word) for word in outcome.stdout.split())
        assert max(map(len, outcome.stdout.splitlines())) <= max(width, words + 4)
        assert re.search(r"train +paper 179,334 +ours +[\d,]+ +DIFFERS", re.sub(r"\s+", " ", outcome.stdout))


def test_one_process_only(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run("reproduce", "table2")
    assert outcome.exit_code == 2 and "under torchrun" in outcome.stderr


def test_settings_of_the_user_lie_above_those_of_the_row():
    assert layered(["model.beta=0.3"], ["schedule.epochs=4"], ["model.beta=0.4"]) == (
        "schedule.epochs=4",
        "model.beta=0.4",
    )
    # A setting for both stages, or a table, overrides the setting of the row for one stage.
    assert layered(["stage2.sampler.name=instance", "stage1.seed=2"], ["sampler.name=repeat_factor"]) == (
        "stage1.seed=2",
        "sampler.name=repeat_factor",
    )
    assert layered(["stage2.sampler.name=instance"], ['sampler={name="bce"}']) == ('sampler={name="bce"}',)
    assert layered(["seed=1"], ["stage2.seed=2"]) == ("seed=1", "stage2.seed=2")
    with pytest.raises(MeidbenchError, match="set twice"):
        layered(["seed=1", "seed=2"])
    simulation, others = parse_substitute(Simulation, ["seed=1", "simulation.dim=5"])
    assert simulation == Simulation(dim=5) and others == ("seed=1",)


def test_the_commands_of_a_plan_can_be_copied(run, monkeypatch):
    for width in (50, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        text = run("reproduce", "table2", "table1", "--plan").stdout
        needs = json.loads(run("reproduce", "table2", "--plan", "--json", "-").stdout)
        shown = re.sub(r" \\\n +| &&\n +", lambda found: " && " if "&" in found[0] else " ", text)
        lines = [line.strip() for line in shown.splitlines()]
        commands = [need["command"] for need in needs["features"]]
        commands += [split["command"] for split in needs["splits"].values()]
        commands.append("meidbench pack-features FOLDER --split videolt --out FILE.h5")
        assert commands[0] and all(command in lines for command in commands), text
        assert max(len(line) for line in text.splitlines() if "meidbench" in line) <= max(width, 60)


def test_tables_of_others_are_not_replaced(run, toy_videolt, tmp_path):
    (tmp_path / "table2.csv").write_text("mine")
    arguments = ("reproduce", "table2", "--row", "eql-resnet50", *real_arguments(toy_videolt, tmp_path))
    outcome = run(*arguments)
    assert outcome.exit_code == 2 and (tmp_path / "table2.csv").read_text() == "mine"
    assert f"not written by this command, and would be replaced: {tmp_path / 'table2.csv'}" in outcome.stderr
    (tmp_path / "table2.csv").unlink()
    (tmp_path / "table2.json").write_text('{"table": "of mine"}')
    assert run(*arguments).exit_code == 2
    (tmp_path / "table2.json").unlink()
    for _ in range(2):  # its own tables are
        outcome = run(*arguments)
        assert outcome.exit_code == 0, outcome.output
    assert "eql-compat: epoch 1 of 1" not in outcome.stderr  # the run was finished


@pytest.mark.parametrize(("arguments", "said"), [
    (["table3", "--row", "meid"], "no row is called meid (did you mean meid-charadeslt or meid-charadesegolt"),
    (["table3", "--features", "CharadesLT:resnet101=nope.h5"], "reproduce TABLE --plan' prints the command"),
    (["table3", "--features", "charades:resnet101=nope.h5"], "names no features; expected ENCODER=PATH"),
    (["table3", "--features", "resnet-101=nope.h5"], "unknown encoder 'resnet-101' (did you mean ResNet101?)"),
    (["table9"], "'table9' is not one of 'table1', 'table2'"),
])  # fmt: skip
def test_wrong_calls_name_what_is_meant(run, arguments, said):
    outcome = run("reproduce", *arguments)
    assert outcome.exit_code == 2 and said in outcome.stderr


def test_a_table_is_taken_in_any_case(run):
    assert run("reproduce", "Table2", "--plan").stdout == run("reproduce", "table2", "--plan").stdout
