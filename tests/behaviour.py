"""Record what the command line does, and compare two records: for a change that must change nothing.

    python tests/behaviour.py record OUT.json [--data DIR] [--keep WORKDIR] [--only NAME ...]
    python tests/behaviour.py compare BEFORE.json AFTER.json

``record`` runs the commands below, each as ``python -m meidbench``, in one new folder. It keeps the exit code, what was
printed, and a digest of every file that the command wrote. ``compare`` prints what differs, and ends with exit code 1
if anything does. Only the command line is used, so modules may move. Both records need the same machine, libraries and
``--only``; a whole record takes about four minutes on one core.
"""

import argparse
import csv
import difflib
import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from make_videos import cut, pictures, write_video
from PIL import Image

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "COLUMNS": "120",
    "MEIDBENCH_HOME": "home",
    "PYTHONSAFEPATH": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
TEXT = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".lst", ".toml", ".html", ".tex", ".md", ".svg"}
LONGEST_TEXT = 200_000
# What may differ: lines of progress, the lines of code that a crash names, the time left, rates.
VARYING = [
    (re.compile(r"^.*: [\d,]+ of [\d,]+\n", re.MULTILINE), ""),
    (re.compile(r"^Traceback .*\n(?: .*\n)+", re.MULTILINE), "Traceback\n"),
    (re.compile(r", (less than )?(\d+ h )?\d+ min left"), ""),
    (re.compile(r'("videos_per_second": )[\d.]+'), r"\1RATE"),
]

# --- the commands: a name, and the arguments. A command may use what an earlier one wrote under its name --------------

TOY = "--split toy-released/toylt.parquet"
CHARADES, EGO, VIDEOLT = (f"--annotations data/{name}" for name in ("charades", "charadesego", "videolt"))
SMALL = "--set frames.train=6 --set frames.test=6 --set schedule.batch_size=16 --device cpu"
TRAIN = f"train {TOY} --features pack/toy.h5 {SMALL} --set schedule.lr=2e-3 --set execution.log_every=5"
QUICK = "--set schedule.epochs=1 --set schedule.milestones=[] --set schedule.batch_size=256 --bootstrap 20"
SIMULATED = "--simulate --set simulation.frames=3 --set simulation.dim=8 --set simulation.split=invented"
RANDOM = "--backbone resnet50 --weights random --device cpu --workers 1 --batch-size 8"
EXTRACT = f"extract-features clips {RANDOM} --seed 0 --frames 4"
HELP = (
    "datasets download build-splits import-split stats audit extract-features merge-features pack-features "
    "word-features verify-features methods train predict evaluate compare reproduce demo"
)
COMMANDS = f"""
datasets-empty: datasets
toy-released: build-splits toy/toylt.toml --annotations toy --out toy-released \
    --format parquet --format csv --format lst
toy-pareto: build-splits toy/toylt.toml --annotations toy --out toy-pareto --variant pareto --seed 2 --json
toy-grouped: build-splits toy/toylt.toml --annotations toy --out toy-grouped --variant grouped --group-by pair
videolt: build-splits videolt {VIDEOLT}
charadeslt: build-splits charadeslt {CHARADES} --format parquet --format csv --format lst
charadesegolt: build-splits charadesegolt {EGO} --json
videolt-pareto: build-splits videolt {VIDEOLT} --variant pareto --out videolt-pareto
charadeslt-pareto: build-splits charadeslt {CHARADES} --variant pareto --seed 1 --json --format csv
charadeslt-subject: build-splits charadeslt {CHARADES} --variant grouped --group-by subject --out charadeslt-subject
charadeslt-exact: build-splits charadeslt {CHARADES} --variant exact --seed 3 --out charadeslt-exact
charadesegolt-grouped: build-splits charadesegolt {EGO} --variant grouped --seed 1 --out charadesegolt-grouped
charadesegolt-exact: build-splits charadesegolt {EGO} --variant exact --json
films: build-splits filmlt.toml --out films
films-pareto: build-splits filmlt.toml --variant pareto --seed 1 --set most_frequent=200 --out films-pareto --json
films-again: build-splits films/filmlt-grouped-0.plan.toml --out films-again
activitynet: build-splits anetlt.toml --out activitynet
youtube8m: build-splits yt8mlt.toml --out youtube8m --format csv --format parquet
imported: import-split mine.csv --out imported/mine.parquet \
    --head-above 30 --tail-up-to 12 --class-names names.txt
imported-videolt: import-split mine.csv --out imported-videolt/videolt.parquet \
    --head-above 30 --tail-up-to 12 --name videolt
datasets-built: datasets --json
datasets-text: datasets
stats: stats charadeslt charadesegolt videolt toy-released/toylt.parquet
stats-json: stats charadeslt toy-pareto/toylt-pareto-2.parquet imported/mine.parquet --json
stats-plot: stats charadeslt charadesegolt --plot stats-plot.svg
audit: audit charadesegolt
audit-json: audit toy-released/toylt.parquet --json
audit-strict: audit charadesegolt-grouped/charadesegolt-grouped-1.parquet --strict
evaluate: evaluate scores.npz {TOY} --bootstrap 200 --json evaluate/r.json --per-class evaluate/c.csv
evaluate-parquet: evaluate scores.parquet {TOY} --json -
evaluate-hdf5: evaluate scores.h5 {TOY} --json -
evaluate-csv: evaluate scores.csv {TOY} --json - --per-class evaluate-csv.csv
evaluate-text: evaluate scores.txt {TOY} --json -
evaluate-apmeter: evaluate tied.npz {TOY} --protocol apmeter --json evaluate-apmeter.json
evaluate-charades: evaluate tied.npz {TOY} --protocol charades --json -
evaluate-tied: evaluate tied.npz {TOY} --bootstrap 50 --seed 3
wrong-protocol: evaluate scores.npz {TOY} --protocol charades --bootstrap 50
evaluate-float16: evaluate half.npz {TOY} --allow-float16
evaluate-large: evaluate large.parquet --split charadeslt --json evaluate-large.json --per-class evaluate-large.csv
evaluate-blocks: evaluate large.parquet --split charadeslt --memory 100K --json evaluate-blocks.json
evaluate-npz-blocks: evaluate large.npz --split charadeslt --memory 100K --protocol apmeter --json -
evaluate-h5-blocks: evaluate large.h5 --split charadeslt --memory 100K --protocol charades
compare: compare bce=scores.npz meid@1=other.npz meid@2=tied.npz {TOY} \
    --json compare/c.json --latex compare/t.tex --html compare/p.html
compare-large: compare large.parquet half=large.npz --split charadeslt --reference half --bootstrap 50 --json -
extract: {EXTRACT} --out extract/clips.h5
extract-again: {EXTRACT} --out extract/clips.h5 --json
extract-tsm: extract-features clips {RANDOM.replace("resnet50", "tsm-resnet50")} \
    --sampling fps=4 --seed 1 --dtype float32 --out extract-tsm.h5
extract-1: {EXTRACT} --shard 1/2 --out extract-1/clips.h5
extract-2: {EXTRACT} --shard 2/2 --out extract-2/clips.h5
merge: merge-features extract-1/clips.part-1-of-2.h5 extract-2/clips.part-2-of-2.h5 --out merge/clips.h5
verify-videos: verify-features extract/clips.h5 --videos clips --weights random --weights-seed 0 \
    --device cpu --sample 2 --recipe backbone=resnet50
pack: pack-features npy {TOY} --out pack/toy.h5 --backbone toynet
pack-float32: pack-features npy --dtype float32 --out pack-float32.h5 --json
pack-int8: pack-features npy {TOY} --dtype int8 --out pack-int8.h5
pack-holes: pack-features holes {TOY} --out pack-holes/holes.h5
pack-packed: pack-features pack/toy.h5 --dtype int8 --out pack-packed.h5
words: word-features toy/toylt.toml --annotations toy --out words.h5 --dim 16 --json
verify: verify-features pack/toy.h5 {TOY} --npy npy --recipe backbone=toynet --json -
verify-holes: verify-features pack-holes/holes.h5 {TOY} --json verify-holes.json
verify-folder: verify-features holes
train-bce: {TRAIN} --epochs 2 --method bce --out train-bce
train-again: {TRAIN} --epochs 2 --method bce --out train-bce --json
train-folder: train {TOY} --features npy {SMALL} --epochs 2 --method cbs --aggregator nextvlad --select-on test
train-framestack: {TRAIN} --epochs 3 --method framestack --aggregator attention --out train-framestack
train-ldam: {TRAIN} --epochs 2 --method ldam-compat --out train-ldam
train-db: {TRAIN} --epochs 2 --method db --aggregator netvlad --seed 5 --out train-db --json
train-move: {TRAIN} --epochs 2 --method move --out train-move
train-meid: {TRAIN} --epochs 2 --method meid --out train-meid
train-second: {TRAIN} --epochs 2 --method meid --first-stage train-meid/first-stage --set model.beta=0.5 \
    --out train-second
train-release: {TRAIN} --epochs 2 --method meid-release --out train-release
predict: predict train-meid --subset train --out predict/meid.parquet --device cpu
evaluate-run: evaluate train-meid/predictions-test.parquet {TOY} --json -
compare-runs: compare bce=train-bce/predictions-test.parquet meid=train-meid/predictions-test.parquet {TOY} \
    --html compare-runs.html
demo: demo --out demo --epochs 2 --bootstrap 20
reproduce-table1: reproduce table1 {CHARADES} {EGO} {VIDEOLT} --out reproduce-table1 --json -
reproduce-plan: reproduce all --plan --split charadeslt-subject/charadeslt-grouped-0.parquet
reproduce-faithful: reproduce table3 --plan --faithful --gpu H100 --json - --row ldam-charadeslt
reproduce-table6: reproduce table6 {SIMULATED} {QUICK} --out reproduce-table6
reproduce-again: reproduce table6 {SIMULATED} {QUICK} --out reproduce-table6 --row e1
reproduce-table2: reproduce table2 --split imported-videolt/videolt.parquet --features videolt:ResNet50=pack/toy.h5 \
    {QUICK} --set frames.train=4 --set frames.test=4 --row eql-resnet50 --row meid-resnet50 \
    --device cpu --seed 1 --seed 2 --out reproduce-table2
wrong-command: no-such-command
wrong-split: stats nothing.parquet no-such-benchmark
wrong-annotations: build-splits toy/toylt.toml --annotations damaged --out wrong-annotations
wrong-data: build-splits charadeslt {EGO} --out wrong-data
wrong-group: build-splits charadeslt {CHARADES} --variant grouped --out wrong-group
wrong-target: build-splits filmlt.toml --set alfa=6 --set least_seconds=long --out wrong-target
wrong-numbers: build-splits toy/toylt.toml --annotations toy --variant exact --out wrong-numbers \
    --set train_videos=114 --set head=2 --set medium=3 --set tail=7 --set most_frequent=76 --set least_frequent=7 \
    --set test_positives=40
wrong-plan: build-splits wrong.toml
wrong-table: import-split wrong.csv --out wrong-table.parquet --head-above 3 --tail-up-to 1
wrong-scores: evaluate wrong.npz {TOY}
wrong-form: evaluate names.txt {TOY}
wrong-parquet: evaluate wrong.parquet {TOY}
wrong-first-stage: {TRAIN} --method meid-release --first-stage train-meid/first-stage --out wrong-first-stage
wrong-float16: evaluate half.npz {TOY}
wrong-memory: evaluate scores.npz {TOY} --memory lots
wrong-recipe: verify-features pack/toy.h5 --recipe backbone=resnet101 --recipe none=1
wrong-extraction: {EXTRACT.replace("--frames 4", "--frames 5")} --out extract/clips.h5
wrong-merge: merge-features extract-1/clips.part-1-of-2.h5 --out wrong-merge.h5
wrong-method: {TRAIN} --method no-such-method --out wrong-method
wrong-setting: train {TOY} --features pack/toy.h5 --method bce --set loss.gamma=2 --set schedule.lr=high
wrong-key: train {TOY} --features pack/toy.h5 --method bce --set schedule.rate=2
wrong-form-of-setting: train {TOY} --features pack/toy.h5 --method bce --set none
wrong-run: {TRAIN} --epochs 3 --method bce --seed 7 --out train-bce
wrong-features: train {TOY} --features pack-holes/holes.h5 {SMALL} --method bce --out wrong-features
wrong-predict: predict toy --out wrong-predict.parquet
wrong-reference: compare scores.npz other.npz {TOY} --reference third
wrong-reproduce: reproduce table7 --set model.beta=0.5 --simulate --out wrong-reproduce
wrong-download: download charadeslt --to wrong-download
"""


def commands() -> dict[str, list[str]]:
    listed = dict(line.split(": ", 1) for line in COMMANDS.strip().splitlines())
    helps = {"help": "--help", "version": "--version"} | {f"help-{name}": f"{name} --help" for name in HELP.split()}
    return {name: shlex.split(line) for name, line in (helps | listed).items()}


def with_needed(names: list[str], listed: dict[str, list[str]]) -> set[str]:
    """Add the commands whose files the named ones use: those that stand as the first part of a path."""
    wanted: set[str] = set()
    while names:
        name = names.pop()
        wanted.add(name)
        parts = {re.split(r"/", part)[0] for word in listed[name][1:] for part in re.split(r"[=:]", word)}
        names += [part for part in parts if part in listed and part not in wanted]
    return wanted


# --- what the commands are given --------------------------------------------------------------------------------------


def make_inputs(work: Path, data: Path) -> None:
    (work / "data").symlink_to(data.resolve(), target_is_directory=True)
    for name in ("toy", "damaged"):
        shutil.copytree(HERE / "toy", work / name)
    damaged = work / "damaged" / "Toy_v1_train.csv"
    damaged.write_bytes(damaged.read_bytes().replace(b"c000", b"c001", 1))
    make_tables(work)
    make_scores(work)
    make_features(work)
    make_clips(work / "clips")


def toy_lists() -> dict[str, list[list[str]]]:
    """The lines ``ID c1,c2`` of each subset."""
    return {
        subset: [line.split() for line in (HERE / "toy" / f"ToyLT_{subset}.txt").read_text().splitlines()]
        for subset in ("train", "val", "test")
    }


def make_tables(work: Path) -> None:
    draw = random.Random(0)
    names = [f"action {index:02d}" for index in range(24)]
    weights = [0.85**index for index in range(24)]
    rows, database, entities = [], {}, []
    for clip in range(1500):
        labels = sorted(set(draw.choices(range(24), weights, k=draw.randint(1, 3))))
        seconds = draw.randint(5, 60)
        rows.append([f"clip{clip:04d}", ";".join(names[i] for i in labels), f"film{draw.randrange(400)}", seconds])
        segments = [{"segment": [i / 2, i / 2 + 3], "label": names[i]} for i in labels]
        subset = draw.choice(["training", "validation"])
        database[f"v_{clip}"] = {"subset": subset, "duration": seconds, "annotations": segments}
        entities.append([f"{clip:04x}", " ".join(map(str, labels))])
    write_rows(work / "videos.csv", [["video_id", "labels", "group", "length_s"], *rows])
    (work / "anet.json").write_text(json.dumps({"version": "1.3", "database": database}))
    write_rows(work / "train_labels.csv", entities[:1000])
    write_rows(work / "validate_labels.csv", entities[1000:])
    write_rows(work / "vocabulary.csv", [["Index", "Name"], *([index, names[index]] for index in range(24))])
    plans = {
        "filmlt": 'table = "videos.csv"\n[targets]\nalpha = 4\nleast_seconds = 8.34\ngroup_by = ["pair"]\n',
        "anetlt": 'format = "activitynet"\nfiles = ["anet.json"]\nseed = 4\n',
        "yt8mlt": 'format = "youtube8m"\nfiles = ["vocabulary.csv", "train_labels.csv", "validate_labels.csv"]\n',
        "wrong": 'table = "videos.csv"\nformat = "activitynet"\nseeds = 3\n[targets]\nalpha = "big"\n',
    }
    for name, plan in plans.items():
        (work / f"{name}.toml").write_text(f'name = "{name}"\n{plan}')
    mine = [[i, subset, c.replace(",", ";")] for subset, lines in toy_lists().items() for i, c in lines]
    write_rows(work / "mine.csv", [["video_id", "subset", "labels"], *mine])
    write_rows(work / "wrong.csv", [["video_id", "subset", "labels"], *mine[:3], mine[0], ["a", "dev", "x"], ["b"]])
    (work / "names.txt").write_text("".join(f"thing {index}\n" for index in range(12)))


def write_rows(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def make_scores(work: Path) -> None:
    with np.load(HERE / "toy" / "predictions.npz") as given:
        ids, scores = given["video_ids"], given["scores"]
    generator = np.random.default_rng(1)
    save_scores(work, "scores", ids, scores)
    save_scores(work, "other", ids, scores + generator.standard_normal(scores.shape).astype(np.float32))
    save_scores(work, "tied", ids, np.round(scores))
    save_scores(work, "half", ids, scores.astype(np.float16))
    spoilt = scores[:40, :11].copy()
    spoilt[3, 2] = np.nan
    save_scores(work, "wrong", ids[:40], spoilt)
    cut(work / "wrong.parquet", work / "scores.parquet", 0.7)
    listed = (work / "data" / "meid_lists" / "CharadesLT_test.txt").read_text().split("\n")
    large = np.array([line.split()[0] for line in listed if line.strip()])
    save_scores(work, "large", large, generator.standard_normal((len(large), 157)).astype(np.float32).round(2))


def save_scores(work: Path, name: str, ids: np.ndarray, scores: np.ndarray) -> None:
    np.savez(work / f"{name}.npz", video_ids=ids, scores=scores)
    if name not in ("scores", "large"):
        return
    flat = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1])
    pq.write_table(pa.table({"video_id": pa.array(ids.tolist()), "scores": flat}), work / f"{name}.parquet")
    with h5py.File(work / f"{name}.h5", "w") as file:
        file["video_ids"], file["scores"] = ids.astype("S"), scores
    rows = [[video_id, *map(float, row)] for video_id, row in zip(ids, scores, strict=True)]
    write_rows(work / f"{name}.csv", [["video_id", *(f"c{i:03d}" for i in range(scores.shape[1]))], *rows])
    (work / f"{name}.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def make_features(work: Path) -> None:
    generator = np.random.default_rng(2)
    for folder in ("npy", "holes"):
        (work / folder).mkdir()
    for number, video_id in enumerate(line[0] for lines in toy_lists().values() for line in lines):
        rows = generator.standard_normal((6, 16)).astype(np.float32)
        np.save(work / "npy" / f"{video_id}.npy", rows)
        if number % 9 == 0:
            continue
        if number % 31 == 1:
            rows[2] = np.nan
        elif number % 31 == 2:
            rows = rows[:, 0]
        np.save(work / "holes" / f"{video_id}.npy", rows[: 3 + number % 4])


def make_clips(folder: Path) -> None:
    (folder / "frames").mkdir(parents=True)
    for number, ending in enumerate(["mp4", "mkv", "avi"]):
        # Not by x264: its files are not the same each time.
        clip = pictures(9 + 8 * number, seed=number)
        write_video(folder / f"clip{number}.{ending}", clip, "mpeg4", {"flags": "+bitexact", "threads": "1"})
    # Long enough to be seen to end early.
    cut(folder / "cut.avi", write_video(folder / "whole.avi", pictures(90), "mpeg4", {"threads": "1"}), 0.6)
    (folder / "whole.avi").unlink()
    cut(folder / "broken.mp4", folder / "clip0.mp4", 0.4)
    (folder / "noise.mp4").write_bytes(b"no video" * 99)
    for number, picture in enumerate(pictures(5, seed=7), 1):
        Image.fromarray(picture).save(folder / "frames" / f"frames-{number:06d}.jpg")


# --- recording --------------------------------------------------------------------------------------------------------


def neutral(text: str, work: Path) -> str:
    """Take out the folder and what may differ."""
    for path in (str(work.resolve()), str(work)):
        text = text.replace(path, "WORK")
    for pattern, instead in VARYING:
        text = pattern.sub(instead, text)
    return text


def checkpoint_parts(value: object, work: Path) -> Iterator[bytes]:
    """The types, keys and numbers of a checkpoint in order; not where its log ends, as rates are of several lengths."""
    yield type(value).__name__.encode()
    if isinstance(value, dict):
        for key, entry in value.items():
            if key != "log_position":
                yield repr(key).encode()
                yield from checkpoint_parts(entry, work)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from checkpoint_parts(entry, work)
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        yield neutral(repr(value), work).encode()


def describe(path: Path, work: Path) -> dict[str, object]:
    """What is kept of a file."""
    if path.suffix == ".pt":
        digest = hashlib.sha256()
        for part in checkpoint_parts(torch.load(path, map_location="cpu", weights_only=True), work):
            digest.update(len(part).to_bytes(8, "little") + part)
        return {"checkpoint": digest.hexdigest()}
    content = path.read_bytes()
    if path.suffix not in TEXT:
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    text = neutral(content.decode("utf-8", "backslashreplace"), work)
    content = text.encode()
    kept = {"text": text} if len(content) < LONGEST_TEXT else {}
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **kept}


def stamps(work: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for folder, _, names in os.walk(work):
        for name in names:
            facts = Path(folder, name).stat()
            path = Path(folder, name).relative_to(work).as_posix()
            found[path] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


def run(argv: list[str], work: Path) -> dict[str, object]:
    before = stamps(work)
    outcome = subprocess.run(
        [sys.executable, "-m", "meidbench", *argv],
        cwd=work,
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    after = stamps(work)
    return {
        "argv": argv,
        "rc": outcome.returncode,
        "stdout": neutral(outcome.stdout.decode("utf-8", "backslashreplace"), work),
        "stderr": neutral(outcome.stderr.decode("utf-8", "backslashreplace"), work),
        "files": {path: describe(work / path, work) for path in sorted(after) if after[path] != before.get(path)},
        "removed": sorted(before.keys() - after.keys()),
    }


def record(out: Path, data: Path, keep: Path | None, only: list[str]) -> int:
    listed = commands()
    unknown = [name for name in only if name not in listed]
    if unknown:
        sys.stderr.write(f"no such command: {', '.join(unknown)}; there are {', '.join(listed)}\n")
        return 2
    wanted = with_needed(list(only), listed) if only else set(listed)
    recorded: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=keep is None)
        work = work.resolve()
        make_inputs(work, data)
        for name in listed:
            if name in wanted:
                began = time.monotonic()
                recorded[name] = run(listed[name], work)
                sys.stderr.write(f"{name}: exit code {recorded[name]['rc']}, {time.monotonic() - began:.1f} s\n")
    out.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


# --- comparing --------------------------------------------------------------------------------------------------------


def text_difference(what: str, before: str, after: str) -> str:
    pair = before.splitlines(keepends=True), after.splitlines(keepends=True)
    lines = list(difflib.unified_diff(*pair, "before", "after", n=1))
    shown = io.StringIO()
    shown.write(f"  {what} differs\n")
    shown.writelines(f"    {line.rstrip()[:300]}\n" for line in lines[:60])
    if len(lines) > 60:
        shown.write(f"    and {len(lines) - 60} more lines\n")
    return shown.getvalue()


def differences(before: dict, after: dict) -> Iterator[str]:
    for what in ("argv", "rc", "removed"):
        if before[what] != after[what]:
            yield f"  {what}: {before[what]} before, {after[what]} after\n"
    for what in ("stdout", "stderr"):
        if before[what] != after[what]:
            yield text_difference(what, before[what], after[what])
    for path in sorted(before["files"].keys() | after["files"].keys()):
        first, second = before["files"].get(path), after["files"].get(path)
        if first is None or second is None:
            yield f"  {path}: written {'after' if first is None else 'before'} only\n"
        elif first != second and "text" in first and "text" in second:
            yield text_difference(path, first["text"], second["text"])
        elif first != second:
            yield f"  {path}: {first} before, {second} after\n"


def compare(before_file: Path, after_file: Path) -> int:
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (before_file, after_file))
    differing = 0
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            found = [f"  recorded {'after' if name not in before else 'before'} only\n"]
        else:
            found = list(differences(before[name], after[name]))
        if found:
            differing += 1
            sys.stdout.write(f"{name}: meidbench {shlex.join((before | after)[name]['argv'])}\n{''.join(found)}")
    sys.stdout.write(f"{len(before.keys() | after.keys())} commands, {differing} differ\n")
    return int(differing > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record", help="Run the commands and write what they did.")
    recording.add_argument("out", type=Path)
    recording.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="The official files.")
    recording.add_argument("--keep", type=Path, help="A new folder to run in, which is left there.")
    recording.add_argument("--only", nargs="+", default=[], metavar="NAME", help="These, and what they need.")
    comparing = actions.add_parser("compare", help="Print what differs; exit code 1 if anything does.")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.action == "compare":
        return compare(given.before, given.after)
    return record(given.out, given.data, given.keep, given.only)


if __name__ == "__main__":
    sys.exit(main())
