"""Tuning: studies that are killed, shared, lengthened and refused; their winners, failures and search spaces."""

import copy
import csv
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
from processes import PATIENCE, make_hopeless, start, tune_study

from meidbench.baselines import tuning
from meidbench.baselines.configuration import Config
from meidbench.baselines.learner import check_run
from meidbench.baselines.recipes import METHODS, resolve
from meidbench.baselines.run_folder import RunFolder
from meidbench.baselines.search import SearchRequest, read_recipe_space, read_space
from meidbench.baselines.study import StudyFolder, open_storage
from meidbench.baselines.training import train
from meidbench.baselines.tuning import tune
from meidbench.errors import MeidbenchError, RequestError
from meidbench.evaluation.evaluate import evaluate
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.predictions.align import read_predictions
from meidbench.splits.split import write_split

TINY = ("schedule.epochs=2", "schedule.batch_size=8", "schedule.milestones=[]", "frames.train=3", "frames.test=3")
MARK = "SIMULATED: numbers say nothing of real data"
# So that six trials are drawn by chance and by the sampler, and one of them or more end early.
FEW = {"_DRAWN_AT_RANDOM": 3, "_NEVER_PRUNED": 2}
HOPELESS = 4  # this trial seems to find nothing on val, because no draw of values is hopeless in all versions


@pytest.fixture(scope="module")
def split():
    return simulate_split((40, 20, 12), num_classes=12, head_above=30)


@pytest.fixture(scope="module")
def arguments(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    features = simulate_features(split, folder / "features.h5", frames=3, dim=16)
    written = write_split(split, folder / "split.parquet")
    return {
        "split": written,
        "features": features,
        "method": "bce",
        "aggregator": "nonlinear",
        "settings": TINY,
        "seed": 3,
    }


@pytest.fixture(scope="module")
def study(arguments, tmp_path_factory):
    """A study of six trials that one process ran without interruption, and the number of calls of its functions."""
    out = tmp_path_factory.mktemp("study") / "whole"
    process = start(tune_study, out, 6, FEW, HOPELESS, arguments, output=Path(f"{out}-output"))
    process.join(PATIENCE)
    assert process.exitcode == 0, Path(f"{out}-output.stderr").read_text()
    return out, int(Path(f"{out}.calls").read_text())


def trials_of(out, url=None):
    """The trials in a storage, by number, as Optuna reads them."""
    with open_storage(url, out / "study.db") as storage:
        (summary,) = optuna.get_all_study_summaries(storage)
        return optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()


def content_of(trials):
    return [
        (trial.number, trial.state, trial.value, trial.params, trial.intermediate_values, trial.user_attrs["steps"])
        for trial in trials
    ]


def rows_of(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def runs_in(*studies):
    return sorted(path.name for out in studies for path in (out / "trials").iterdir() if path.is_dir())


def begun(out):
    """The number of times that each run of a study was begun or resumed."""
    logs = sorted((out / "trials").glob("*/log.jsonl"))
    return [log.read_text().count('"event": "begun"') for log in logs]


def test_every_trial_is_a_run_and_test_is_scored_for_the_winner_alone(study, arguments, split):
    out, _ = study
    rows = rows_of(out)
    assert runs_in(out) == [f"{number:04d}" for number in range(6)]
    assert rows[HOPELESS]["state"] == "pruned" and rows[0]["state"] == "complete"
    complete = [row for row in rows if row["state"] == "complete"]
    winner = max(complete, key=lambda row: float(row["value"]))
    for row in rows:
        run = RunFolder(out / "trials" / f"{int(row['trial']):04d}")
        assert run.result("val").is_file() == (row in complete)
        assert run.result("test").is_file() == run.predictions("test").is_file() == (row is winner)
        assert row["steps"] == str(run.count_steps()) and row["watermark"] == MARK
        config = run.read()[0]
        assert config.schedule.lr == float(row["schedule.lr"])
        assert {"dropout": 0.5, **config.aggregator.options}["dropout"] == float(row["aggregator.dropout"])
        if row in complete:
            measured = evaluate(run.predictions("val"), split=split, subset="val")
            assert float(row["value"]) == float(row["overall"]) == measured.mAP.overall
            assert float(row["tail"]) == measured.mAP.tail and repr(measured).count(MARK) == 1
    # The first trial is what train makes of the same settings.
    published = resolve("bce", split, aggregator="nonlinear", settings=TINY)
    assert not RunFolder(out / "trials" / "0000").read()[0].differences(published)
    facts = read_predictions(RunFolder(out / "trials" / f"{int(winner['trial']):04d}").predictions("test")).metadata
    assert facts["run"]["budget"]["trials"] == 6


def test_a_pruned_trial_was_worse_than_the_median_and_its_run_can_go_on(study, arguments, tmp_path):
    out, _ = study
    trials = trials_of(out)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    for trial in pruned:
        others = [other for other in trials[: trial.number] if other.state.name == "COMPLETE"]
        assert len(others) >= 2 and trial.last_step == 5  # after the first of two epochs
        reached = sorted(other.intermediate_values[5] for other in others)
        middle = (reached[(len(reached) - 1) // 2] + reached[len(reached) // 2]) / 2
        assert max(trial.intermediate_values.values()) < middle
    run = shutil.copytree(out / "trials" / f"{pruned[0].number:04d}", tmp_path / "run")
    trained = train(arguments["split"], arguments["features"], RunFolder(run).read()[0], run)
    assert set(trained.mAP) == {"val", "test"}


def test_a_study_that_was_killed_anywhere_ends_like_one_that_was_not(study, arguments, tmp_path):
    whole, calls = study
    seed = int.from_bytes(os.urandom(2), "big")
    print(f"the calls at which the study is killed are drawn from the seed {seed}")  # noqa: T201
    drawn, out = random.Random(seed), tmp_path / "killed"
    for kill in (0.5, 0.5, 0.9, None):  # of the calls that are left at most, so several trials are cut
        last = None if kill is None else drawn.randrange(int(0.05 * calls), int(kill * calls))
        process = start(tune_study, out, 6, FEW, HOPELESS, arguments, last, output=tmp_path / "output")
        process.join(PATIENCE)
        expected = (0,) if last is None else (0, -signal.SIGKILL)
        assert process.exitcode in expected, (seed, (tmp_path / "output.stderr").read_text())
    assert content_of(trials_of(out)) == content_of(trials_of(whole)), seed
    assert (out / "trials.csv").read_bytes() == (whole / "trials.csv").read_bytes(), seed
    for path in sorted((whole / "trials").glob("*/*.parquet")):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), (seed, path)
    assert sorted(path.relative_to(whole) for path in whole.glob("trials/*/result-*")) == sorted(
        path.relative_to(out) for path in out.glob("trials/*/result-*")
    )


def share(outs, arguments, trials, folder, **more):
    """Run the same call in a process per folder of a study, all at once."""
    workers = [
        start(tune_study, out, trials, FEW, HOPELESS, {**arguments, **more}, output=folder / f"output{index}")
        for index, out in enumerate(outs)
    ]
    for worker in workers:
        worker.join(PATIENCE)
        worker.kill()
    told = [
        (folder / f"output{index}.{name}").read_text() for index in range(len(outs)) for name in ("stdout", "stderr")
    ]
    assert [worker.exitcode for worker in workers] == [0] * len(outs), told
    return told


def test_two_processes_share_the_trials_of_one_file(arguments, tmp_path):
    out = tmp_path / "study"
    share([out, out], arguments, 4, tmp_path)
    rows, trials = rows_of(out), trials_of(out)
    assert len(rows) == len(trials) == 4 and {row["state"] for row in rows} <= {"complete", "pruned"}
    # Each run was begun once, and the winner's once more, to be scored on test.
    assert sorted(begun(out)) == [1, 1, 1, 2]
    assert len(list(out.glob("trials/*/result-test.json"))) == 1


def test_a_trial_that_another_process_has_just_finished_is_not_taken_again(arguments, tmp_path, monkeypatch):
    asked = {**arguments, "out": tmp_path / "study", "trials": 1}
    before = tune(**asked)
    list_trials, calls = tuning._Study._list_trials, []

    def list_early(study):  # the two first lists are from before its end
        calls.append(copy.deepcopy(list_trials(study)))
        if len(calls) < 3:
            calls[-1][0].state = optuna.trial.TrialState.RUNNING
        return calls[-1]

    monkeypatch.setattr(tuning._Study, "_list_trials", list_early)
    assert tune(**asked).trials == before.trials and len(calls) > 2


@pytest.fixture(scope="module")
def server():
    """The address of a PostgreSQL server on the loopback, with a password."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = Path(shutil.which("initdb") or (found[-1] if found else ""))
    if not initdb.is_file():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg")
    # It refuses to run as root, and its user cannot enter the folders of pytest.
    folder = Path(tempfile.mkdtemp(prefix="meidbench-postgres-"))
    user = []
    if os.geteuid() == 0:
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = folder / "password"
    password.write_text("of/the:server")
    password.chmod(0o644)
    data, bin_folder = folder / "data", initdb.parent
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    commands = [
        [
            initdb,
            "-D",
            data,
            "-U",
            "tester",
            "-A",
            "scram-sha-256",
            f"--pwfile={password}",
            "-E",
            "UTF8",
            "--no-locale",
        ],
        [bin_folder / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"],
    ]
    try:
        for command in commands:
            words = [*user, *map(str, command)]
            # Its own log, because a server that holds our pipe would never let it end.
            with (folder / "output").open("w+") as output:
                done = subprocess.run(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/")
            assert done.returncode == 0, (folder / "output").read_text()
        yield f"postgresql://tester:of%2Fthe%3Aserver@127.0.0.1:{port}/postgres"
    finally:
        stop = [*user, str(bin_folder / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
        subprocess.run(stop, capture_output=True, cwd="/", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_two_machines_share_the_trials_of_one_server(server, arguments, tmp_path):
    outs, lines = [tmp_path / "one", tmp_path / "two"], []
    told = share(outs, arguments, 4, tmp_path, storage=server)
    assert runs_in(*outs) == ["0000", "0001", "0002", "0003"]  # each in one of the folders
    address = server.replace("postgresql:", "postgresql+psycopg:")
    # Trials that both add at the same moment are never run.
    assert {trial.state.name for trial in trials_of(tmp_path, address)[4:]} <= {"WAITING"}
    everything = "".join(told) + "".join(path.read_text() for out in outs for path in out.glob("study.json"))
    assert "the:server" not in everything and "of%2F" not in everything
    # The winner may lie on the machine that ended first; there the same command scores it.
    for out in outs:
        tuned = tune(out=out, trials=4, storage=server, report=lines.append, **arguments)
        assert tuned.winner is not None and (tuned.trained is None) == (not tuned.winner.path.is_dir())
    assert sum("it ran in the folder of another machine" in line for line in lines) == 1
    assert sorted(begun(outs[0]) + begun(outs[1])) == [1, 1, 1, 2]  # the winner is scored once more, on test
    assert len([path for out in outs for path in out.glob("trials/*/result-test.json")]) == 1


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_trial_whose_process_died_at_once_is_taken_over(arguments, tmp_path, monkeypatch, request, is_shared):
    storage = request.getfixturevalue("server") if is_shared else None
    asked = {**arguments, "out": tmp_path / "study", "trials": 1, "seed": 4, "storage": storage}
    monkeypatch.setattr(tuning, "_NAMING_S", 0.01)

    def die(study, number):  # before the trial tells whose it is
        assert study.storage.set_trial_state_values(study._find_id(number), optuna.trial.TrialState.RUNNING)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tuning._Study, "_begin", die)
        tune(**asked)
    assert [trial.state for trial in tune(**asked).trials] == ["complete"]


def test_a_wrong_password_is_told_without_it(server, arguments, tmp_path):
    wrong = server.replace("of%2Fthe%3Aserver", "sesame%3A1")
    with pytest.raises(MeidbenchError) as raised:
        tune(out=tmp_path / "study", trials=1, storage=wrong, **arguments)
    text = str(raised.value)
    assert "the storage postgresql+psycopg://tester:***@127.0.0.1" in text and "password authentication failed" in text
    assert "sesame" not in text


def test_a_server_that_is_not_there_is_told(arguments, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # nobody listens
        url = f"postgresql+psycopg://me:sesame@127.0.0.1:{port}/studies"
        for is_bound in (False, True):  # to a storage that was opened before
            with pytest.raises(MeidbenchError, match=r"me:\*\*\*@127.0.0.1.* cannot be used: ") as raised:
                tune(out=tmp_path / "study", trials=1, storage=url, **arguments)
            assert ("The trials are kept; the same command goes on" in str(raised.value)) == is_bound
            StudyFolder(tmp_path / "study").bind(url)


def test_a_password_behind_the_question_mark_is_not_told(arguments, tmp_path):
    url = "postgresql+psycopg://127.0.0.1:1/studies?user=me&password=sesame%2F1&sslpassword=open"
    with pytest.raises(MeidbenchError, match=r"password=\*\*\*&sslpassword=\*\*\*&user=me cannot be used") as raised:
        tune(out=tmp_path / "study", trials=1, storage=url, **arguments)
    assert "sesame" not in str(raised.value) and "open" not in str(raised.value)


@pytest.mark.parametrize(("url", "message"), [
    ("nonsense", "storage is no address of a database"),
    ("sqlite:///here.db", "storage is for the server of a database"),
    ("nobody://me@here/db", "Can't load plugin"),
])  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused(arguments, tmp_path, url, message):
    with pytest.raises(MeidbenchError, match=message):
        tune(out=tmp_path / "study", trials=1, storage=url, **arguments)


def test_without_the_driver_of_a_database_its_command_is_told(arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MeidbenchError, match=r"not installed: pip install 'psycopg\[binary\]'"):
        tune(out=tmp_path / "study", trials=1, storage="postgresql://me@127.0.0.1:1/studies", **arguments)


def test_the_driver_of_another_database_is_named_as_a_module(arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(MeidbenchError, match="is the Python module MySQLdb, which is not installed; its package may"):
        tune(out=tmp_path / "study", trials=1, storage="mysql://me@127.0.0.1:1/studies", **arguments)


def test_more_trials_go_on_like_a_study_that_began_with_them(study, arguments, tmp_path, monkeypatch):
    for name, number in FEW.items():
        monkeypatch.setattr(tuning, name, number)
    monkeypatch.setattr(tuning, "_Study", make_hopeless(HOPELESS))
    out, lines = tmp_path / "study", []
    for trials in (2, 6):
        tuned = tune(out=out, trials=trials, report=lines.append, **arguments)
    assert (out / "trials.csv").read_bytes() == (study[0] / "trials.csv").read_bytes()
    assert tuned.trained is not None and set(tuned.trained.mAP) == {"val", "test"}
    facts = read_predictions(tuned.trained.predictions["val"]).metadata["run"]
    assert facts["budget"]["trials"] == 6
    scored = sorted(path.parent.name for path in out.glob("trials/*/result-test.json"))
    assert len(scored) == 1 + any("won before trials were added" in line for line in lines)
    with pytest.raises(MeidbenchError, match="holds a study of 6 trials, 5 are asked for"):
        tune(out=out, trials=5, **arguments)


OTHER_SPLIT = simulate_split((40, 20, 12), num_classes=12, head_above=30, seed=1)


@pytest.mark.parametrize(("changed", "difference"), [
    ({"settings": (*TINY, "schedule.weight_decay=0.1")}, "schedule.weight_decay: 0.0 in the study, 0.1 asked for"),
    ({"settings": (*TINY, "aggregator.dropout=0.5")}, "dropout of the space: low 0.0, .* in the study, no search"),
    ({"method": "focal"}, "loss.name: 'bce' in the study, 'focal' asked for"),
    ({"objective": "tail"}, "objective: 'overall' in the study, 'tail' asked for"),
    ({"seed": 1}, "seed: 3 in the study, 1 asked for"),
    ({"split": OTHER_SPLIT}, "the split has other videos or labels"),
])  # fmt: skip
def test_another_study_in_the_folder_is_refused_and_its_differences_named(study, arguments, changed, difference):
    if "split" in changed:
        changed = {**changed, "features": arguments["features"]}
    before = sorted(study[0].rglob("*"))
    with pytest.raises(MeidbenchError, match=f"holds another study:(?s:.)*{difference}"):
        tune(out=study[0], trials=6, **{**arguments, **changed})
    assert sorted(study[0].rglob("*")) == before


def test_a_study_stays_in_its_storage(study, arguments, tmp_path, server):
    with pytest.raises(MeidbenchError, match=r"is in its file study.db; leave out storage=\.\.\."):
        tune(out=study[0], trials=6, storage=server, **arguments)
    asked = {**arguments, "out": tmp_path / "study", "trials": 1, "seed": 5}
    with pytest.raises(RequestError, match="storage is for the server of a database"):
        tune(storage="sqlite:///here.db", **asked)  # it binds the folder to nothing
    tune(storage=server, **asked)
    with pytest.raises(MeidbenchError, match=r"in the database of a server; name its address with storage=\.\.\."):
        tune(**asked)


def test_a_folder_with_other_files_and_a_damaged_study_are_refused(arguments, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MeidbenchError, match="is not empty and holds no study"):
        tune(out=tmp_path, trials=1, **arguments)
    out = tmp_path / "study"
    out.mkdir()
    for text in ("{}", "[", '{"format_version": 2}', '{"format_version": 1, "folder": "a", "config": 1}'):
        (out / "study.json").write_text(text)
        with pytest.raises(MeidbenchError, match=r"study.json is damaged"):
            tune(out=out, trials=1, **arguments)


def test_a_damaged_database_is_told(study, arguments, tmp_path):
    out = shutil.copytree(study[0], tmp_path / "study")
    (out / "study.db").write_bytes(b"SQLite no more" * 100)
    with pytest.raises(
        MeidbenchError, match=r"study.db cannot be used: file is not a database\n(?s:.)*put back a copy"
    ):
        tune(out=out, trials=6, **arguments)


# --- failures -------------------------------------------------------------------------------------------------------


def space(folder, text):
    path = folder / "space.toml"
    path.write_text(text)
    return path


def test_a_trial_that_diverges_fails_and_the_study_goes_on(arguments, tmp_path):
    file = space(tmp_path, '"schedule.lr" = { choices = [1e-4, 1e30] }')
    lines = []
    tuned = tune(out=tmp_path / "study", trials=5, space=file, report=lines.append, **arguments)
    states = {trial.values["schedule.lr"]: trial.state for trial in tuned.trials}
    assert states == {1e-4: "complete", 1e30: "failed"} and tuned.winner == tuned.trials[0]
    failed = next(trial for trial in tuned.trials if trial.state == "failed")
    assert "training diverged at step 1" in failed.reason and any(failed.reason in line for line in lines)
    assert not RunFolder(failed.path).result("val").is_file()
    # They are not tried again.
    assert tune(out=tmp_path / "study", trials=5, space=file, **arguments).trials == tuned.trials


def test_a_study_without_a_complete_trial_is_an_error(arguments, tmp_path, monkeypatch):
    def train_without_memory(*arguments, **more):
        raise MemoryError("no bytes left")

    monkeypatch.setattr(tuning, "train", train_without_memory)
    with pytest.raises(
        MeidbenchError, match="all 2 trials failed:\n.*trial 0: there is not enough memory: no bytes left"
    ):
        tune(out=tmp_path / "study", trials=2, **arguments)


def test_another_fault_ends_the_study_and_the_trial_goes_on(arguments, tmp_path, monkeypatch):
    def train_badly(*arguments, **more):
        raise MeidbenchError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(MeidbenchError, match="the disk is full"):
        patched.setattr(tuning, "train", train_badly)
        tune(out=tmp_path / "study", trials=1, **arguments)
    assert [trial.state for trial in tune(out=tmp_path / "study", trials=1, **arguments).trials] == ["complete"]


NO_TAIL = simulate_split((200, 20, 12), num_classes=3, tail_up_to=1)


@pytest.mark.parametrize(("changed", "kind", "message"), [
    ({"trials": 0}, RequestError, "trials must be a whole number of at least 1, got 0"),
    ({"objective": "head"}, RequestError, "unknown objective 'head'"),
    ({"settings": (*TINY, "selection.subset=test")}, RequestError, "val chooses the winner; leave out selection.sub"),
    ({"settings": (*TINY, "schedule.lr=1e-3", "aggregator.dropout=0.1")}, RequestError, "nothing is left to search"),
    ({"split": NO_TAIL, "objective": "tail"}, MeidbenchError, "has no classes in the tail"),
])  # fmt: skip
def test_a_call_that_cannot_be_meant_is_refused(arguments, tmp_path, changed, kind, message):
    if "split" in changed:
        changed["features"] = simulate_features(changed["split"], tmp_path / "features.h5", frames=3, dim=16)
    with pytest.raises(kind, match=message):
        tune(**{**arguments, "out": tmp_path / "study", "trials": 1, **changed})
    assert not (tmp_path / "study").exists()


def test_without_optuna_its_command_is_told(arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MeidbenchError, match=r"needs the package optuna, which is not installed: pip install optuna"):
        tune(out=tmp_path / "study", trials=1, **arguments)


# --- search spaces --------------------------------------------------------------------------------------------------


def wide_split():
    """A split in which no class is in all training videos, as some losses need it."""
    return simulate_split((150, 20, 20), num_classes=40, head_above=30)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_a_search_space_with_sources_around_its_published_values(method):
    split = wide_split()
    request = SearchRequest(method, split, None, ())
    base = request.resolve()
    found = {entry.key: entry for entry in read_space(request, base, 16)}
    entries = read_recipe_space(method)
    assert all(entries[key]["source"] for key in found)
    # Values of every method are left out where this one does not have or use them.
    ignored = ("frames.", "aggregator.", *(["schedule."] if method == "linear_probe" else []))
    assert {key for key in entries if not key.startswith(ignored)} <= set(found)
    for entry in found.values():
        assert entry.published in entry.choices or entry.low <= entry.published <= entry.high
        for value in entry.bounds():
            check_run(request.resolve(request.list_settings({entry.key: value}, base)), split, 16)
    ends = {key: entry.bounds()[-1] for key, entry in found.items()}
    settings = request.list_settings(ends, base)
    assert resolve(method, split, settings=settings) == request.resolve(settings)


def test_milestones_stay_at_their_share_of_the_epochs(split):
    request = SearchRequest("meid", split, "mean", ())
    base = request.resolve()
    settings = request.list_settings({"schedule.epochs": 60, "stage1.schedule.lr": 2e-3}, base)
    assert settings == ("schedule.epochs=60", "schedule.milestones=[18, 36]", "stage1.schedule.lr=0.002")
    config = request.resolve(settings)
    stages = (config.first_stage, config)
    assert [stage.schedule.milestones for stage in stages] == [(18, 36), (18, 36)]
    assert [stage.schedule.lr for stage in stages] == [2e-3, base.schedule.lr]
    fixed = SearchRequest("meid", split, "mean", ("schedule.milestones=[5]",))
    assert fixed.list_settings({"schedule.epochs": 60}, base) == ("schedule.epochs=60",)


@pytest.mark.parametrize(("settings", "gone"), [
    (("schedule.lr=1e-3",), {"stage1.schedule.lr", "stage2.schedule.lr"}),
    (("stage1.schedule.lr=1e-3",), {"stage1.schedule.lr"}),
    (("stage2.model.beta=0.3",), {"model.beta"}),
    (("loss.name=bce",), {"loss.gamma"}),
    (("frames.train=32", "frames.test=32"), {"frames.train"}),
])  # fmt: skip
def test_a_value_that_is_set_is_not_searched(split, settings, gone):
    whole, some = (SearchRequest("meid", split, "mean", chosen) for chosen in ((), settings))
    keys = [{entry.key for entry in read_space(asked, asked.resolve(), 16)} for asked in (whole, some)]
    assert keys[0] - keys[1] == gone and keys[1] < keys[0]


@pytest.mark.parametrize(("text", "message"), [
    ('"schedule.learning_rate" = { low = 1, high = 2 }', r"schedule.learning_rate \(did you mean schedule.lr\?\)"),
    ('"schedule.lr" = 3', "schedule.lr must be .*; got 3"),
    ('"schedule.lr" = { low = 1, up = 2 }', "schedule.lr must be .*; unknown up"),
    ('"schedule.lr" = { low = 2, high = 1 }', "schedule.lr: low must be below high"),
    ('"schedule.lr" = { low = 0, high = 1, log = true }', "above 0 with log = true"),
    ('"schedule.lr" = { low = "a", high = 1 }', "schedule.lr: low must be a number, got 'a'"),
    ('"schedule.lr" = { choices = [1] }', "with two choices at least"),
    ('"schedule.lr" = { choices = [[1], [2]] }', "choices must be numbers, strings, true or false"),
    ('"aggregator.name" = { low = 1, high = 2 }', "the published value must be a number, got 'nonlinear'"),
    ('"schedule.lr" = { low = -1, high = 1 }', "schedule.lr=-1.0 is refused: schedule.lr must be above 0"),
    ('"loss.name" = { choices = ["bce", "db"] }', "loss.name=db is refused: unknown loss.name 'db'"),
    ('"schedule.lr" = { low = 1e-4 }', "schedule.lr must be .*; missing high"),
    ('"schedule.lr" = { log = true }', "schedule.lr must be .*; missing low, high"),
    ('"schedule.accumulate" = { low = 1.5, high = 6 }', "low and high must be whole numbers, got 1.5 and 6"),
    ('schedule.lr = { low = 1, high = 2 }', 'unknown key schedule; write the whole key in quotes, such as "schedule.'),
    ('"selection.subset" = { choices = ["val", "test"] }', "selection.subset is no value of the method, and cannot"),
    ('"seed" = { choices = [1, 2] }', "seed is no value of the method, and cannot be searched"),
    ("", "space.toml is no search space:\n  - it names no value; expected entries such as"),
    ("schedule", "is not a readable TOML file"),
])  # fmt: skip
def test_a_wrong_search_space_is_refused(arguments, tmp_path, text, message):
    with pytest.raises(MeidbenchError, match=message):
        tune(out=tmp_path / "study", trials=1, space=space(tmp_path, text), **arguments)
    assert not (tmp_path / "study").exists()


def test_a_file_takes_the_place_of_the_search_space(split, tmp_path):
    text = '["schedule.clip_norm"]\nlow = 1\nhigh = 10\n["loss.name"]\nchoices = ["bce", "focal"]\n'
    request = SearchRequest("bce", split, None, ())
    found = read_space(request, request.resolve(), 16, space(tmp_path, text))
    assert [str(entry) for entry in found] == ["schedule.clip_norm: 1 to 20", "loss.name: bce, focal"]
    assert Config.from_tables(request.resolve(("loss.name=focal",)).to_tables()).loss.name == "focal"


def test_a_key_of_both_stages_is_refused_where_they_differ(split, tmp_path):
    request = SearchRequest("meid", split, "mean", ())
    base = request.resolve()
    assert base.first_stage is not None and base.first_stage.schedule.lr != base.schedule.lr
    file = space(tmp_path, '"schedule.epochs" = { low = 10, high = 100 }')
    assert [entry.key for entry in read_space(request, base, 16, file)] == ["schedule.epochs"]
    file = space(tmp_path, '"schedule.lr" = { low = 1e-4, high = 1e-2 }')
    with pytest.raises(
        RequestError, match=r"published as 0.001 in stage 1 and 0.0001 in stage 2; search stage1\.sched"
    ):
        read_space(request, base, 16, file)


def test_two_stages_are_tuned_together(arguments, tmp_path):
    settings = ("schedule.epochs=1", *TINY[1:])
    asked = {**arguments, "method": "meid", "aggregator": "mean", "settings": settings}
    tuned = tune(out=tmp_path / "study", trials=2, objective="tail", **asked)
    assert tuned.winner is not None and tuned.winner.value == tuned.winner.mAP.tail
    assert {"stage1.schedule.lr", "stage2.schedule.lr", "model.beta"} <= set(tuned.trials[1].values)
    folders = [trial.path / "first-stage" for trial in tuned.trials]
    assert all(RunFolder(folder).result("val").is_file() for folder in folders)
    assert not any(RunFolder(folder).result("test").is_file() for folder in folders)
    assert [trial.steps for trial in tuned.trials] == [
        RunFolder(trial.path).count_steps() + RunFolder(folder).count_steps()
        for trial, folder in zip(tuned.trials, folders, strict=True)
    ]


# --- the command ----------------------------------------------------------------------------------------------------


def options(arguments, out, trials, *more):
    named = [
        "--split",
        arguments["split"],
        "--features",
        arguments["features"],
        "--method",
        "bce",
        "--out",
        out,
        "--seed",
        3,
    ]
    named += ["--aggregator", "nonlinear", "--trials", trials, *more]
    return named + [word for setting in TINY for word in ("--set", setting)]


def test_the_command_prints_the_best_trials_and_the_winners_command(run, study, arguments, tmp_path, monkeypatch):
    out = shutil.copytree(study[0], tmp_path / "study")
    done = run("tune", *options(arguments, out, 6))
    assert done.exit_code == 0, done.output
    assert "searching schedule.lr: 1e-05 to 0.01 (log); aggregator.dropout: 0 to 0.8" in done.stderr
    rows = rows_of(out)
    lines = done.stdout.splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 80
    assert lines[0].split() == ["trial", "overall", "steps", "values"]
    shown = [line.split() for line in lines[2 : lines.index("")]]
    complete = sorted(
        (row for row in rows if row["state"] == "complete"), key=lambda row: (-float(row["value"]), int(row["trial"]))
    )
    assert [words[:3] for words in shown] == [
        [row["trial"], f"{float(row['value']):.4f}", row["steps"]] for row in complete
    ]
    pruned = 6 - len(complete)
    assert (
        f"6 trials: {len(complete)} complete, {pruned} pruned; {sum(int(row['steps']) for row in rows)} steps in all"
        in lines
    )
    assert lines.count(MARK) == 1 and f"warning: {MARK}" in done.stderr
    done = run("tune", *options(arguments, out, 6, "--json"))
    content = json.loads(done.stdout)
    assert content["watermark"] == MARK
    winner = content["winner"]
    assert winner["trial"] == int(complete[0]["trial"]) and set(winner["mAP"]) == {"val", "test"}
    assert [trial["state"] for trial in content["trials"]] == [row["state"] for row in rows]
    # The printed command trains the same run.
    monkeypatch.chdir(tmp_path)
    again = run(*shlex.split(winner["command"])[1:], "--out", "again")
    assert again.exit_code == 0, again.output
    for name in ("result-test.json", "result-val.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (tmp_path / "again", Path(winner["run"])))
        assert ours["mAP"] == theirs["mAP"]


@pytest.mark.parametrize(("more", "code", "message"), [
    (("--set", "loss.gamma=1"), 2, "unknown key loss.gamma"),
    (("--storage", "sqlite:///x.db"), 2, "is in its file study.db; leave out --storage"),
    (("--set", "schedule.weight_decay=0.5"), 1, "Name another folder with --out"),
    (("--objective", "head"), 2, "'head' is not one of 'overall', 'tail'"),
])  # fmt: skip
def test_a_wrong_call_of_the_command_ends_with_its_code(run, study, arguments, tmp_path, more, code, message):
    out = shutil.copytree(study[0], tmp_path / "study")
    done = run("tune", *options(arguments, out, 6, *more))
    assert done.exit_code == code and message in " ".join(done.output.split())


def test_several_processes_of_torchrun_are_refused(run, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run("tune", *options(arguments, tmp_path / "study", 1))
    assert done.exit_code == 2 and "start the same command several times" in done.output
