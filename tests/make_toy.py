"""Make the small annotation set of the tests: ToyLT, in the official CharadesEgo format, with its quirks.

    python tests/make_toy.py

writes ``tests/toy/``. Everything in it is invented; it stands for no real video. The same seed gives the same files.
"""

import csv
import random
from pathlib import Path

import numpy as np

from meidbench.annotations import read_annotations
from meidbench.splits.make import make_assignment, to_json
from meidbench.splits.manifests import load_manifest

CLASSES = 12
SCRIPTS = {"train": 90, "test": 40}
COLUMNS = [
    *("id", "subject", "scene", "quality", "relevance", "verified", "script", "objects", "descriptions"),
    *("actions", "length", "egocentric", "charades_video"),
]
MANIFEST = """# ToyLT: invented videos in the official CharadesEgo format, for trying the tools and for their tests.
name = "toylt"
title = "ToyLT"
annotations = "toy"
num_classes = 12
head_above = 30
tail_up_to = 12
reader = "charadesego"

[licence]
name = "Apache-2.0, like the rest of this repository"
url = "https://www.apache.org/licenses/LICENSE-2.0"
splits = "Drawn by a script."
summary = ["Invented: no real video, person or annotation."]

[[files]]
name = "Toy_v1_train.csv"
source = "train"
bytes = {train_bytes}
sha256 = "{train_sha256}"

[[files]]
name = "Toy_v1_test.csv"
source = "test"
bytes = {test_bytes}
sha256 = "{test_sha256}"

[class_file]
name = "Toy_v1_classes.txt"
bytes = {class_bytes}
sha256 = "{class_sha256}"

[released.train]
file = "ToyLT_train.txt"
sha256 = "{list_train}"

[released.val]
file = "ToyLT_val.txt"
sha256 = "{list_val}"

[released.test]
file = "ToyLT_test.txt"
sha256 = "{list_test}"
"""


def invent_rows(draw: random.Random, source: str) -> list[dict[str, str]]:
    rows = []
    weights = [1 / (rank + 1) ** 1.1 for rank in range(CLASSES)]
    for number in range(SCRIPTS[source]):
        base = f"TOY{draw.randrange(10**5):05d}"  # longer than the five characters of a real id
        for ego in (True, False) if draw.random() < 0.7 else (False,):
            length = round(draw.uniform(6, 40), 2)
            actions = []
            for label in draw.choices(range(CLASSES), weights, k=draw.randint(0 if number % 17 == 3 else 1, 5)):
                start = round(draw.uniform(0, length), 1)
                end = round(draw.uniform(start - 2, length + 3), 1)
                actions.append(f"c{label:03d} {max(start, 0):.2f} {max(end, 0):.2f}")
            row = dict.fromkeys(COLUMNS, "")
            row.update(
                id=base + "EGO" * ego,
                subject=f"S{draw.randint(0, 14):03d}",
                scene="Invented room (with, a comma)",
                quality="7",
                relevance="7",
                verified="Yes",
                script='Somebody does nothing, then says "done; at last".',
                objects="table;chair",
                actions=";".join(actions),
                length=f"{length:.2f}",
                egocentric="Yes" if ego else "No",
                charades_video="" if draw.random() < 0.2 else base.lower(),
            )
            rows.append(row)
    return rows


def main() -> None:
    import hashlib

    folder = Path(__file__).parent / "toy"
    folder.mkdir(exist_ok=True)
    draw = random.Random(2023)
    rows = {source: invent_rows(draw, source) for source in SCRIPTS}
    for source, entries in rows.items():
        with (folder / f"Toy_v1_{source}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\r\n")
            writer.writeheader()
            writer.writerows(entries)
    names = [f"c{index:03d} Doing thing {index}" for index in range(CLASSES)]
    (folder / "Toy_v1_classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")

    subset_of = {}
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for row in rows["train"] + rows["test"]:
        order = list(dict.fromkeys(int(action[1:4]) for action in row["actions"].split(";") if action))
        subset = draw.choices(["train", "val", "test", ""], [10, 4, 6, 2])[0]
        if order and subset:
            subset_of[row["id"]] = subset
            lists[subset].append(f"{row['id']} {','.join(map(str, order))}\n")
    for subset, lines in lists.items():
        (folder / f"ToyLT_{subset}.txt").write_text("".join(lines), encoding="utf-8")

    facts = {}
    for key, name in (
        ("train", "Toy_v1_train.csv"),
        ("test", "Toy_v1_test.csv"),
        ("class", "Toy_v1_classes.txt"),
        *((f"list_{subset}", f"ToyLT_{subset}.txt") for subset in lists),
    ):
        raw = (folder / name).read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        facts |= {key: digest} if key.startswith("list") else {f"{key}_bytes": len(raw), f"{key}_sha256": digest}
    (folder / "toylt.toml").write_text(MANIFEST.format(**facts), encoding="utf-8")
    manifest = load_manifest(str(folder / "toylt.toml"))
    annotations = read_annotations(manifest, folder)
    (folder / "toylt.assignment.json").write_text(to_json(make_assignment(manifest, annotations, subset_of)))

    # Predictions that know a little: noise, and somewhat higher where the label is.
    videos = [line.split()[0] for line in lists["test"]]
    labels = np.zeros((len(videos), CLASSES))
    for index, line in enumerate(lists["test"]):
        labels[index, [int(label) for label in line.split()[1].split(",")]] = 1
    scores = np.random.default_rng(7).normal(size=labels.shape) + labels
    np.savez(folder / "predictions.npz", video_ids=np.array(videos[::-1]), scores=scores[::-1].astype(np.float32))


if __name__ == "__main__":
    main()
