"""The sound inputs of ``tests/fuzz.py``: one small file of each form that the commands read."""

import csv
import json
import random
import re
import shutil
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from material import TOY, TOY_MANIFEST


def make_inputs(work: Path, train: str) -> None:
    """Write all inputs into a folder; ``train`` is the command that trains, without its folder."""
    import os

    os.chdir(work)
    from meidbench.splits.released import build_released
    from meidbench.splits.split import write_split

    split = build_released(TOY_MANIFEST, TOY)
    write_split(split, Path("split.parquet"))
    shutil.copytree(TOY, "toy")
    make_predictions(split)
    make_tables(split)
    make_lists(split)
    make_plans()
    make_features(split)
    make_runs(train)
    make_weights()
    Path("settings.txt").write_text("schedule.lr=2e-4\nschedule.epochs=7\nstage2.seed=3\nframes.train=60\n")
    Path("targets.txt").write_text("alpha=6\nval_videos=40\nhead_above=20\n")


def make_predictions(split) -> None:
    from meidbench.predictions.values import write_predictions

    ids, labels = split.video_ids("test"), split.labels("test")
    scores = (np.random.default_rng(0).normal(size=labels.shape) + labels).astype(np.float32)
    write_predictions(Path("p.parquet"), ids, scores, split, "test", {"select_on": "val"})
    names = list(split.class_names)
    np.savez("p.npz", video_ids=np.array(ids), scores=scores, class_names=np.array(names))
    with h5py.File("p.h5", "w") as file:
        file["video_ids"], file["scores"], file["class_names"] = ids, scores, names
    with h5py.File("packed.h5", "w") as file:
        for name, data in (("video_ids", np.array(ids, "S20")), ("scores", scores)):
            file.create_dataset(name, data=data, compression="gzip", fletcher32=True, chunks=True)
    rows = [[video_id, *map(float, row)] for video_id, row in zip(ids, scores, strict=True)]
    write_rows("p.csv", [["video_id", *split.class_names], *rows])
    Path("p.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    frame = pd.DataFrame(scores, index=pd.Index(ids, name="video_id"), columns=split.class_names)
    frame.to_parquet("wide.parquet")
    pd.DataFrame({"id": ids, "scores": list(scores)}).to_parquet("lists.parquet")
    frame.to_csv("p.tsv", sep="\t")
    lines = ({"video_id": video_id, "scores": row} for video_id, *row in rows)
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame.reset_index().to_json("wide.jsonl", orient="records", lines=True, double_precision=15)
    np.save("p.npy", scores)
    Path("ids.txt").write_text("\n".join(ids))
    Path("ranks").mkdir()
    for rank in range(3):
        frame[rank::3].to_csv(f"ranks/{rank}.csv")


def write_rows(path: str, rows: list, delimiter: str = ",") -> None:
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)


def make_tables(split) -> None:
    header, rows = ["video_id", "subset", "labels", "group", "length_s"], []
    for subset in ("train", "val", "test"):
        for video_id, labels in zip(split.video_ids(subset), split.labels(subset), strict=True):
            indices = ";".join(map(str, np.flatnonzero(labels)))
            rows.append([video_id, subset, indices, f"{subset}{len(rows) // 2}", len(rows) % 30 + 1])
    write_rows("t.csv", [header, *rows])
    write_rows("t.tsv", [header, *rows], "\t")
    Path("l.txt").write_text("".join(f"{row[0]} {row[2].replace(';', ',')}\n" for row in rows))
    Path("m.txt").write_text(
        "".join(f"frames/{row[0]} {row[4]} {row[2].replace(';', ' ')}\n" for row in rows if row[2])
    )
    frames = [
        f'{row[0]} 0 {frame} {row[0]}/{frame}.jpg "{row[2].replace(";", ",")}"' for row in rows for frame in (1, 2)
    ]
    Path("s.csv").write_text("\n".join(["original_vido_id video_id frame_id path labels", *frames]) + "\n")
    records = [dict(zip(header, row, strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(records), "t.parquet")
    Path("t.json").write_text(json.dumps(records))
    Path("t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("names.txt").write_text("".join(f"thing {index}\n" for index in range(12)))
    make_clips([(row[0], row[1], int(row[2].split(";")[0]), row[4]) for row in rows if row[2]])


def make_clips(rows: list[tuple[str, str, int, int]]) -> None:
    """The forms of Something-Something, Kinetics, HACS Clips and ActivityNet, of id, subset, class and second."""
    templates = [f"Moving [something] {index} times" for index in range(12)]
    Path("something.json").write_text(
        json.dumps(
            [{"id": video_id, "template": templates[label], "placeholders": ["x"]} for video_id, _, label, _ in rows]
        )
    )
    names = {template.replace("[", "").replace("]", ""): str(index) for index, template in enumerate(templates)}
    Path("labels.json").write_text(json.dumps(names))
    kinetics = ([f"thing {label}", video_id, second, second + 10, subset] for video_id, subset, label, second in rows)
    write_rows("kinetics.csv", [["label", "youtube_id", "time_start", "time_end", "split"], *kinetics])
    hacs = ([f"thing {label}", video_id, subset, second, second + 2, 1] for video_id, subset, label, second in rows)
    write_rows("hacs.csv", [["classname", "youtube_id", "subset", "start", "end", "label"], *hacs])
    videos = {
        video_id: {"annotations": [{"label": f"thing {label}", "segment": [0, second]}], "duration_second": second}
        for video_id, _, label, second in rows
    }
    Path("anet_train.json").write_text(json.dumps(videos))


def make_lists(split) -> None:
    """VideoLT's form with the toy videos, and the manifest of a benchmark that has such lists."""
    from meidbench.annotations import read_annotations
    from meidbench.splits.make import make_assignment, read_lists, to_json
    from meidbench.splits.manifests import load_manifest

    Path("lists").mkdir()
    names = {"train": "train.lst", "val": "validate.lst", "test": "test.lst"}
    for subset, name in names.items():
        pairs = zip(split.video_ids(subset), split.labels(subset), strict=True)
        lines = (
            f"{video_id} {','.join(map(str, np.flatnonzero(labels)))}\n" for video_id, labels in pairs if labels.any()
        )
        Path("lists", name).write_text("".join(lines))
    counts = enumerate(split.train_counts.tolist())
    Path("lists/count.lst").write_text("".join(f"thing {index} {index} {count}\n" for index, count in counts))
    text = (TOY / "toylt.toml").read_text()
    head = text[: text.index("[[files]]")].replace('"charadesego"', '"lists"').replace('"toylt"', '"lists"')

    def facts(name: str) -> str:
        raw = Path("lists", name).read_bytes()
        return f'name = "{name}"\nbytes = {len(raw)}\nsha256 = "{sha256(raw).hexdigest()}"\n'

    files = "".join(f'[[files]]\nsource = "{name[:-4]}"\n{facts(name)}\n' for name in names.values())
    released = re.sub(r"ToyLT_(\w+).txt", r"\1.lst", text[text.index("[released") :]).replace("val.lst", names["val"])
    Path("lists/lists.toml").write_text(f"{head}{files}[class_file]\n{facts('count.lst')}\n{released}")
    manifest = load_manifest("lists/lists.toml")
    annotations = read_annotations(manifest, Path("lists"))
    assignment = make_assignment(manifest, annotations, read_lists(manifest, Path("lists"), annotations))
    Path("lists/lists.assignment.json").write_text(to_json(assignment))


def make_plans() -> None:
    """Plans with a table, an ActivityNet file, and the files of YouTube-8M; invented videos."""
    Path("plans").mkdir()
    draw, names = random.Random(0), [f"action {index:02d}" for index in range(8)]
    rows, database, entities = [], {}, []
    for clip in range(200):
        labels = sorted(set(draw.choices(range(8), [0.7**index for index in range(8)], k=draw.randint(1, 3))))
        rows.append([f"clip{clip:04d}", ";".join(names[i] for i in labels), f"film{draw.randrange(60)}", clip % 50 + 5])
        segments = [{"segment": [i / 2, i / 2 + 3], "label": names[i]} for i in labels]
        database[f"v_{clip}"] = {"subset": "training", "duration": clip % 50 + 5, "annotations": segments}
        entities.append([f"{clip:04x}", " ".join(map(str, labels))])
    write_rows("plans/videos.csv", [["video_id", "labels", "group", "length_s"], *rows])
    Path("plans/anet.json").write_text(json.dumps({"version": "1.3", "database": database}))
    write_rows("plans/train_labels.csv", entities)
    write_rows("plans/vocabulary.csv", [["Index", "Name"], *([index, names[index]] for index in range(8))])
    plans = {
        "film": 'table = "videos.csv"\nseed = 3\n[targets]\nalpha = 4\nleast_seconds = 8.34\nval_videos = 20\n',
        "anet": 'format = "activitynet"\nfiles = ["anet.json"]\nseed = 4\n',
        "yt8m": 'format = "youtube8m"\nfiles = ["vocabulary.csv", "train_labels.csv"]\n',
    }
    for name, plan in plans.items():
        Path(f"plans/{name}.toml").write_text(f'name = "{name}"\n{plan}')


def make_features(split) -> None:
    from meidbench.baselines.class_text import ClassText
    from meidbench.features import open_features
    from meidbench.features.simulation import simulate_features

    simulate_features(split, Path("f.h5"), frames=6, dim=16)
    vectors = np.random.default_rng(0).normal(size=(split.num_classes, 16))
    ClassText(vectors, 20.0, -3.0, split.class_names, "hf:toy", "abc", ("a {}",)).write(Path("text.npz"))
    with h5py.File("f.h5") as ours, h5py.File("foreign.h5", "w") as file:
        for name in ("video_ids", "features"):
            file.create_dataset(name, data=ours[name][()])
    Path("npy").mkdir()
    Path("npz").mkdir()
    with closing(open_features("f.h5")) as source:
        rows = {video_id: source.read(video_id) for video_id in split.video_ids("test")}
    for path, name in (("grouped.h5", "features/{}"), ("root.h5", "{}"), ("inner.h5", "{}/rgb")):
        with h5py.File(path, "w") as file:
            for video_id, array in rows.items():
                file[name.format(video_id)] = array
    for video_id, array in rows.items():
        np.save(f"npy/{video_id}.npy", array)
        np.savez_compressed(f"npz/{video_id}.npz", features=array)
    make_parts()


def make_parts() -> None:
    """Two parts of an extraction of frame folders."""
    from PIL import Image
    from tiny_extractor import PoolInThisProcess, TinyExtractor

    from meidbench.extraction import extraction
    from meidbench.extraction.videos import find_videos

    generator = np.random.default_rng(0)
    for video_id in ("a", "b", "c"):
        Path("frames", video_id).mkdir(parents=True)
        for number in range(1, 4):
            pixels = generator.integers(0, 255, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"frames/{video_id}/{video_id}-{number:06d}.jpg")
    Path("parts").mkdir()
    with mock.patch.object(extraction, "DecoderPool", PoolInThisProcess):
        for number in (1, 2):
            videos, shard = find_videos(Path("frames")).videos, extraction.Shard(number, 2)
            extraction.extract_features(videos, Path("parts/x.h5"), TinyExtractor(frames=2), shard=shard, workers=1)


def make_runs(train: str) -> None:
    """A finished run, and one that was stopped in its second epoch of three."""
    import shlex

    from click.testing import CliRunner

    from meidbench.cli import main, training

    def stop(line: str) -> None:
        if "epoch 2 of 3" in line:
            raise KeyboardInterrupt

    outcome = CliRunner().invoke(main, [*shlex.split(train), "run"])
    assert outcome.exit_code == 0, outcome.output
    with mock.patch.object(training, "report", stop):
        CliRunner().invoke(main, [*shlex.split(train), "stopped"])
    assert Path("stopped/last.pt").is_file() and not Path("stopped/result-test.json").exists()


def make_weights() -> None:
    import torch
    from safetensors.torch import save_file
    from test_weights import SMALL, SmallNet

    from meidbench.extraction.encoders.weights import load_weights

    model = SmallNet()
    load_weights(model, SMALL, "random", seed=5)
    torch.save(model.state_dict(), "w.pt")
    torch.save(model.state_dict(), "former.pt", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), "w.safetensors")
