"""Outputs: what is refused, what is replaced, what is written through, and what a failure leaves."""

import csv
import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from material import TOY, TOY_MANIFEST

from meidbench.checks import is_same_file, output_problems
from meidbench.cli.parameters import OutputFile
from meidbench.errors import FeatureError, OutputError
from meidbench.features.packing import pack
from meidbench.files import locked, written_whole

PREDICTIONS = TOY / "predictions.npz"


def write(path: Path, text: str = "new") -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text)


@pytest.fixture
def predictions(tmp_path):
    """Predictions under a neutral name, so that no ending is in the way."""
    path = tmp_path / "p"
    path.write_bytes(PREDICTIONS.read_bytes())
    return path


# --- an output that is an input ---------------------------------------------------------------------------------------


def spellings(path: Path, folder: Path) -> list[Path]:
    """The same file by another spelling, a link, a link to its folder, and a hard link."""
    (folder / "link").symlink_to(path)
    (folder / "folder").symlink_to(path.parent)
    os.link(path, folder / "hard")
    return [path, Path(path.parent, "..", path.parent.name, path.name), *(folder / name for name in ("link", "hard")),
            folder / "folder" / path.name]  # fmt: skip


@pytest.mark.parametrize("option", ["--json", "--per-class"])
def test_evaluate_does_not_replace_its_inputs(run, predictions, toy_split_file, tmp_path, option):
    folder = tmp_path / "other"
    folder.mkdir()
    split = tmp_path / "s"
    split.write_bytes(toy_split_file.read_bytes())
    before = predictions.read_bytes(), split.read_bytes()
    for target in [*spellings(predictions, folder), split]:
        outcome = run("evaluate", predictions, "--split", split, option, target)
        assert outcome.exit_code == 2 and f"{option} {target} is the same file as" in outcome.stderr
    assert (predictions.read_bytes(), split.read_bytes()) == before
    assert list(folder.iterdir()) and {path.name for path in tmp_path.iterdir()} == {"other", "p", "s"}


def test_a_built_benchmark_is_an_input_by_its_name(run, predictions, toy_split):
    from meidbench.splits.manifests import split_path
    from meidbench.splits.split import write_split

    path = write_split(toy_split, split_path("charadeslt"))
    path.with_suffix("").symlink_to(path)
    for arguments in (
        ["evaluate", predictions, "--split", "charadeslt", "--json", path.with_suffix("")],
        ["compare", predictions, "--split", "charadeslt", "--html", path.with_suffix("")],
        ["stats", "charadeslt", "--plot", path.parent / "p.svg"],
    ):
        if arguments[0] == "stats":
            (path.parent / "p.svg").symlink_to(path)
        outcome = run(*arguments)
        assert outcome.exit_code == 2 and "is the same file as" in outcome.stderr, outcome.stderr


def commands(folder: Path) -> list[list[object]]:
    """One wrong call per command that writes files: the output is the file ``f`` or ``f.h5``, an input."""
    f, h5, run_folder = folder / "f", folder / "f.h5", folder / "run"
    run_folder.mkdir()
    other = folder / "other"
    for path in (f, h5, other):
        path.write_text("an input")
    return [
        ["compare", f"a={f}", f"b={other}", "--split", "charadeslt", "--json", f],
        ["compare", f"a={f}", "--split", "charadeslt", "--html", f],
        ["compare", f"a={other}", "--split", f, "--latex", f],
        ["predict", run_folder, "--features", f, "--out", f],
        ["predict", run_folder, "--split", f, "--out", f],
        ["extract-features", run_folder, "--out", f, "--split", f],
        ["extract-features", run_folder, "--out", h5, "--weights", h5],
        ["merge-features", h5, "--out", h5],
        ["pack-features", h5, "--out", h5],
        ["pack-features", run_folder, "--split", f, "--out", f],
        ["verify-features", h5, "--json", folder / "run" / ".." / "f", "--split", f],
        ["import-split", f, "--out", f, "--head-above", 3, "--tail-up-to", 1],
        ["import-split", h5, "--class-names", f, "--out", f, "--head-above", 3, "--tail-up-to", 1],
        ["stats", f, "--plot", f"{f}.svg"],
        ["reproduce", "table3", "--features", f"ResNet50={f}", "--json", f],
        ["reproduce", "table3", "--split", f, "--json", f],
    ]


def test_no_command_replaces_an_input(run, tmp_path):
    (tmp_path / "f.svg").symlink_to(tmp_path / "f")
    for arguments in commands(tmp_path):
        outcome = run(*arguments)
        assert outcome.exit_code == 2 and "which would be lost" in outcome.stderr, (arguments, outcome.stderr)
    assert {(tmp_path / name).read_text() for name in ("f", "f.h5")} == {"an input"}


def test_a_file_in_a_folder_of_inputs_is_not_replaced_by_a_result(run, tmp_path):
    folder = tmp_path / "npy"
    folder.mkdir()
    for name in ("a.npy", "old.json"):
        (folder / name).write_text("")
    outcome = run("verify-features", folder, "--json", folder / "a.npy")
    assert outcome.exit_code == 2 and ".json" in outcome.stderr
    (folder / "clip.mp4").write_text("")
    outcome = run("verify-features", folder, "--videos", folder, "--json", folder / "clip.mp4")
    assert outcome.exit_code == 2 and "is a file in --videos" in outcome.stderr
    assert not output_problems([("--json", folder / "old.json"), ("--html", folder / "new.html")], [("DIR", folder)])


def test_a_prediction_does_not_replace_what_the_run_was_made_from(tmp_path, monkeypatch):
    from meidbench.baselines.configuration import Config
    from meidbench.baselines.inference import predict
    from meidbench.baselines.inputs import Inputs
    from meidbench.baselines.run_folder import RunFolder

    features, split = tmp_path / "f.h5", tmp_path / "s.parquet"
    for path in (features, split):
        path.write_text("kept")
    inputs = Inputs("toylt", "released", "0" * 64, 8, "", "", split_path=str(split), features_path=str(features))
    monkeypatch.setattr(RunFolder, "read", lambda folder: (Config.__new__(Config), inputs))
    folder = RunFolder(tmp_path / "run")
    for target in (features, split, folder.best, folder.predictions("test"), folder.path / "first-stage" / "last.pt"):
        with pytest.raises(OutputError, match="is the same file as the input"):
            predict(folder.path, target, split=tmp_path / "other", features=tmp_path / "other.h5")
    with pytest.raises(OutputError, match="is the same file as the input"):
        predict(folder.path, tmp_path / "x" / ".." / "other.h5", features=tmp_path / "other.h5")
    assert features.read_text() == split.read_text() == "kept"


def test_official_annotations_are_not_replaced_by_lists_of_the_same_name(run, toy_folder):
    for name in ("ToyLT_train.txt", "ToyLT_val.txt"):
        (toy_folder / name).unlink()
    (toy_folder / "ToyLT_train.txt").symlink_to(toy_folder / "Toy_v1_train.csv")
    before = (toy_folder / "Toy_v1_train.csv").read_bytes()
    outcome = run("build-splits", TOY_MANIFEST, "--annotations", toy_folder, "--out", toy_folder, "--format", "lst")
    assert outcome.exit_code == 1 and "is the same file as the source" in outcome.stderr
    assert (toy_folder / "Toy_v1_train.csv").read_bytes() == before and not (toy_folder / "ToyLT_val.txt").exists()


def test_two_outputs_or_an_output_and_stdout_are_not_one_file(run, predictions, toy_split_file, tmp_path):
    same, upper = tmp_path / "r.x", tmp_path / "R.x"
    for arguments in (["--json", same, "--html", upper], ["--latex", same, "--json", tmp_path / "n" / ".." / "r.x"]):
        outcome = run("compare", predictions, "--split", toy_split_file, *arguments)
        assert outcome.exit_code == 2 and "each output needs its own file" in outcome.stderr
    assert is_same_file(same, upper) and not same.exists()
    same.touch()
    upper.touch()
    assert is_same_file(same, upper) == same.samefile(upper)
    log = tmp_path / "log.txt"
    with log.open("w") as stdout:
        outcome = meidbench("evaluate", predictions, "--split", toy_split_file, "--json", log, stdout=stdout)
    assert outcome.returncode == 2 and "is the file that stdout is written to" in outcome.stderr


def test_a_folder_in_the_place_of_a_file_is_found_before_the_work(run, tmp_path):
    (tmp_path / "demo" / "report.html").mkdir(parents=True)
    (tmp_path / "tables" / "table3.csv").mkdir(parents=True)
    for arguments in (["demo", "--out", tmp_path / "demo"], ["reproduce", "table3", "--out", tmp_path / "tables"]):
        outcome = run(*arguments)
        assert outcome.exit_code == 2 and "is a folder; name a file" in outcome.stderr
    with pytest.raises(OutputError, match="it is a folder"):
        write(tmp_path)


@pytest.mark.parametrize("arguments", [
    ["import-split", PREDICTIONS, "--out", "o.csv", "--head-above", "3", "--tail-up-to", "1"],
    ["predict", TOY, "--out", "p.csv"],
    ["evaluate", PREDICTIONS, "--split", "videolt", "--json", "r.parquet"],
    ["pack-features", TOY, "--out", "f.npz"],
    ["import-split", PREDICTIONS, "--out", "o.parquet", "--head-above", "3", "--tail-up-to", "1", "--name", "a/b"],
])  # fmt: skip
def test_a_name_that_promises_something_else_is_a_wrong_call(run, arguments):
    outcome = run(*arguments)
    assert outcome.exit_code == 2 and ("the file is written as" in outcome.stderr or "is no name" in outcome.stderr)


def test_a_folder_or_a_file_in_the_wrong_place_is_called_so(run, toy_split_file, tmp_path, monkeypatch):
    assert "is a folder; expected a split file" in run("stats", tmp_path).stderr
    assert "holds no file; expected prediction files" in run("compare", tmp_path, "--split", toy_split_file).stderr
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("MEIDBENCH_HOME", str(tmp_path / "home"))
    outcome = run("stats", "charadeslt")
    assert outcome.exit_code == 1 and "which is a file; set it to a folder" in outcome.stderr


# --- what stays -----------------------------------------------------------------------------------------------------


def test_links_modes_and_owners_stay(tmp_path):
    target, link, dangling = tmp_path / "t", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("t")
    dangling.symlink_to("later")
    if os.geteuid() == 0:
        os.chown(target, 12345, 54321)
    owner = target.stat().st_uid, target.stat().st_gid
    inode = target.stat().st_ino
    for path in (link, dangling):
        write(path)
        assert path.is_symlink() and path.read_text() == "new"
    found = target.stat()
    assert (stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)) == (0o640, owner)
    assert found.st_ino != inode  # replaced, not written in place
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "later").stat().st_mode) == 0o666 & ~umask


def test_a_private_file_is_never_readable_for_others(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    with written_whole(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "r"
    path.write_text("old")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for everyone but root
    with pytest.raises(OutputError, match="the file is read-only"):
        write(path)
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_read_is_an_output(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.touch()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.R_OK)  # mode 200, for everyone but root
    assert OutputFile(".json").convert(str(path), None, None) == path


def test_a_file_system_without_modes_costs_no_result(tmp_path, monkeypatch):
    path = tmp_path / "r"
    path.touch(mode=0o640)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write(path)
    assert path.read_text() == "new"


def test_a_feature_file_behind_a_link_stays_behind_it(tmp_path):
    import numpy as np

    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.ones((2, 3), np.float32))
    (tmp_path / "disk").mkdir()
    (tmp_path / "f.h5").symlink_to(tmp_path / "disk" / "real.h5")
    pack(tmp_path / "npy", tmp_path / "f.h5")
    assert (tmp_path / "f.h5").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.h5"]
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OutputError, match="no regular file, and an interrupted run could not resume it"):
        pack(tmp_path / "npy", tmp_path / "fifo")


# --- what is written through ------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_node_stays(run, predictions, toy_split_file, tmp_path):
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("device nodes cannot be made here")
    outcome = run("evaluate", predictions, "--split", toy_split_file, "--json", node, "--per-class", node)
    assert outcome.exit_code == 0 and stat.S_ISCHR(node.stat().st_mode), outcome.stderr


def test_a_fifo_gets_the_bytes_also_of_a_form_that_needs_seeking(tmp_path, toy_split):
    from meidbench.splits.split import read_split, write_split

    fifo, received = tmp_path / "fifo", tmp_path / "copy.parquet"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: received.write_bytes(fifo.read_bytes()))
    reader.start()
    write_split(toy_split, fifo)
    reader.join()
    assert stat.S_ISFIFO(fifo.stat().st_mode) and read_split(received).digest == toy_split.digest


def test_a_descriptor_needs_no_permission_and_is_no_input(run, predictions, toy_split_file, tmp_path, monkeypatch):
    with (tmp_path / "out").open("wb") as out, monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)  # as where root redirects the stdout of another user
        write(Path(f"/dev/fd/{out.fileno()}"))
    assert (tmp_path / "out").read_text() == "new"
    before = predictions.read_bytes()
    with predictions.open("rb+") as given:
        outcome = run("evaluate", predictions, "--split", toy_split_file, "--json", f"/dev/fd/{given.fileno()}")
    assert outcome.exit_code == 2 and "which would be lost" in outcome.stderr
    assert predictions.read_bytes() == before


def meidbench(*arguments: object, closed: str = "", **streams: object) -> subprocess.CompletedProcess:
    """Run the command in a process of its own; ``closed`` is a redirection of the shell."""
    command = ["bash", "-c", f'"$@" {closed}', "-", sys.executable, "-m", "meidbench", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(command, text=True, check=False, timeout=120, **streams)


def test_stdout_takes_json_and_table_also_where_it_is_a_file(predictions, toy_split_file, tmp_path):
    arguments = ["evaluate", predictions, "--split", toy_split_file, "--json", "/dev/stdout"]
    with (tmp_path / "out").open("w") as stdout:
        assert meidbench(*arguments, stdout=stdout).returncode == 0
    text = (tmp_path / "out").read_text()
    content, end = json.JSONDecoder().raw_decode(text)
    assert content["dataset"] == "toylt" and text[end:].strip().startswith("toylt (")


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_names_the_output_and_keeps_the_old_file(tmp_path):
    path, before = tmp_path / "r.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError) as failure:
            write(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(failure.value).startswith(f"cannot write {path}: File too large; make room")
    assert "the old file is unchanged" in str(failure.value) and path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_names_the_output(run, predictions, toy_split_file):
    outcome = run("evaluate", predictions, "--split", toy_split_file, "--json", "/dev/full")
    assert outcome.exit_code == 1 and "Error: cannot write /dev/full: No space left on device" in outcome.stderr


def test_libraries_that_meet_a_full_disk_name_the_output(tmp_path, toy_split, monkeypatch):
    import numpy as np

    from meidbench.splits.split import write_split

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OutputError, match=rf"cannot write {tmp_path}/s.parquet: File too large"):
            write_split(toy_split, tmp_path / "s.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())

    def create(path: Path, *arguments: object) -> None:  # the words of the HDF5 library
        raise RuntimeError(f"Can't close (write failed, filename = '{path}', errno = 28, error message = 'No space')")

    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.ones((2, 3), np.float32))
    monkeypatch.setattr("meidbench.features.store.create", create)
    with pytest.raises(FeatureError, match=rf"cannot write {tmp_path}/f.h5: No space; make room"):
        pack(tmp_path / "npy", tmp_path / "f.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["npy"]


@pytest.mark.parametrize(
    ("number", "text"), [(errno.EACCES, "its folder {} cannot be written to"), (errno.EROFS, "{}")]
)
def test_a_folder_without_write_access_is_named(tmp_path, monkeypatch, number, text):
    def refuse(path: Path, *arguments: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(OutputError) as failure:
        write(tmp_path / "r.json")
    assert str(failure.value).startswith(f"cannot write {tmp_path}/r.json: {os.strerror(number)}")
    assert text.format(tmp_path) in str(failure.value) and ".r.json." not in str(failure.value)


def test_other_places_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "file" / "r", tmp_path / ("n" * 300), tmp_path / "loop"):
        with pytest.raises(OutputError, match=f"cannot write {path}: "):
            write(path)
    with pytest.raises(OutputError, match="cannot write"), locked(tmp_path / "none" / "f.h5", lambda: None):
        pass


def test_an_error_about_another_file_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "r"):
        (tmp_path / "input").read_text()
    assert not list(tmp_path.iterdir())


def test_files_of_killed_runs_are_removed_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / "r.json"
    stale = tmp_path / ".r.json.0123456789ab"
    others = [tmp_path / name for name in (".r.json.backup", ".s.json.0123456789ab", "r.json.0123456789ab")]
    for entry in (stale, *others):
        entry.touch()
    with written_whole(path) as living:
        living.write_text("first")
        assert not stale.exists()
        write(path, "second")  # as another process would
        assert living.exists() and path.read_text() == "second"
    assert path.read_text() == "first"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_killed_process_leaves_nothing_to_the_next_run(tmp_path):
    path = tmp_path / "r.json"
    code = (
        "import os, sys, pathlib as p, meidbench.files as f\nwith f.written_whole(p.Path(sys.argv[1])):\n os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    write(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "1>&-", ">/dev/full", "| true; exit ${PIPESTATUS[0]}"])
def test_streams_that_fail_cost_no_result(predictions, toy_split_file, tmp_path, closed):
    files = [tmp_path / name for name in ("r.json", "r.csv")]
    arguments = ["--split", toy_split_file, "--json", files[0], "--per-class", files[1]]
    outcome = meidbench("evaluate", predictions, *arguments, closed=closed)
    assert json.loads(files[0].read_text())["dataset"] == "toylt" and files[1].stat().st_size > 100
    assert not list(tmp_path.glob(".*"))
    if closed.startswith("2"):
        assert outcome.returncode == 0 and "overall" in outcome.stdout
    else:
        assert outcome.returncode == 1
        assert ("Error: stdout cannot be written" in outcome.stderr) == (not closed.startswith("|"))
    assert "Traceback" not in outcome.stderr and "Exception ignored" not in outcome.stderr


# --- cells that a spreadsheet would run -------------------------------------------------------------------------------


def test_cells_of_csv_for_people_are_no_formulas(tmp_path):
    from meidbench.annotations.tables import split_from_files
    from meidbench.evaluation.evaluate import evaluate_scores
    from meidbench.report.plots import write_per_class
    from meidbench.splits.released import write_csv

    names = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "plain", "-5"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    rows = [f"{sign}v{number},{subset},{label}" for number, (subset, sign) in enumerate([("train", "-"), ("test", "=")])
            for label in [";".join(map(str, range(6)))]]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["video_id,subset,labels", *rows]) + "\n")
    given = {"head_above": 3, "tail_up_to": 1, "class_names": tmp_path / "names.txt"}
    split = split_from_files([("", tmp_path / "t.csv")], dataset="t", **given)[0]
    import numpy as np

    path = write_per_class(evaluate_scores(np.zeros((1, 6), np.float32), split, "test"), tmp_path / "r.csv")
    with path.open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == [f"'{name}" for name in names[:4]] + names[4:]
    # The split as CSV is data that import-split reads: ids of videos stay, also those that begin with a minus.
    again = split_from_files([("", write_csv(split, tmp_path / "s.csv"))], dataset="t", **given)[0]
    assert again.digest == split.digest and again.video_ids("test") == ["=v1"]


def test_cells_of_reproduced_tables_are_no_formulas():
    from meidbench.baselines.reproduction.render import _csv

    assert _csv([["=1+1", "-0.25", "row", "\tx"]]) == "'=1+1,-0.25,row,'\tx\n"
