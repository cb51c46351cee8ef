"""Val subsets that are taken out of train, against a naive form of Algorithm 1 of Sechidis et al. (2011)."""

import json
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from material import TOY, TOY_MANIFEST, released_split

import meidbench as mb
from meidbench.construction import HeldOutShares, Pool, hold_out_val, measure_shares
from meidbench.construction.held_out import stratify
from meidbench.construction.pool import shuffled
from meidbench.errors import SplitError
from meidbench.features.simulation import simulate_split
from meidbench.report.text import held_out_report
from meidbench.splits.manifests import load_assignment
from meidbench.splits.split import Split, load_split, write_split
from meidbench.splits.statistics import audit_split


def rng(seed):
    return np.random.Generator(np.random.PCG64(seed))


def without_val(split):
    """Return a split whose val videos are dropped."""
    kept = pa.compute.not_equal(split.table.column("subset"), "val")
    return Split(split.table.filter(kept), split.metadata)


def random_split(seed, videos=120, classes=9, groups=0, order=None):
    """Make a split of train and test alone, with rare classes, videos without a label and groups of some videos."""
    draw = np.random.default_rng(seed)
    weights = 0.6 ** np.arange(classes)
    rows = []
    for index in range(videos):
        count = draw.integers(0, 5)
        labels = sorted(draw.choice(classes, min(count, classes), replace=False, p=weights / weights.sum()).tolist())
        group = f"g{draw.integers(groups)}" if groups and draw.random() < 0.8 else ""
        rows.append((f"v{draw.integers(1 << 40):012d}", "test" if index % 5 == 0 else "train", labels, group))
    rows = rows if order is None else [rows[place] for place in np.random.default_rng(order).permutation(len(rows))]
    frame = {name: [row[place] for row in rows] for place, name in enumerate(("video_id", "subset", "labels", "group"))}
    names = [f"class {index}" for index in range(classes)]
    frame["labels"] = [[names[label] for label in labels] for labels in frame["labels"]]
    import pandas as pd

    return mb.split_from_pandas(pd.DataFrame(frame), class_names=names, dataset="mine", head_above=20, tail_up_to=5)


def algorithm_1(videos, share, generator):
    """Return the ids in val, by the paper's text: D, D_i, c_j and c_j^i, as fractions; ``videos`` are labels by id.

    Only the two rules of a video that is the last of a class outside val, and of videos without labels, are added.
    """
    left = dict(sorted(videos.items()))
    labels = sorted({label for row in videos.values() for label in row})
    examples = {label: [name for name, row in videos.items() if label in row] for label in labels}
    shares = {"val": Fraction(str(share)), "train": 1 - Fraction(str(share))}
    desired = {subset: len(videos) * part for subset, part in shares.items()}
    desired_of = {(subset, i): len(examples[i]) * part for subset, part in shares.items() for i in labels}
    result = {"val": set(), "train": set()}

    def best(score):
        return [subset for subset in shares if score[subset] == max(score.values())]

    while left:
        remaining = {i: [name for name in left if i in left[name]] for i in labels}
        remaining = {i: names for i, names in remaining.items() if names}
        label, names = None, list(left)
        if remaining:
            fewest = min(map(len, remaining.values()))
            tied = [i for i in labels if len(remaining.get(i, ())) == fewest]
            label = int(shuffled(np.array(tied), generator)[0])
            names = remaining[label]
        for place in shuffled(np.arange(len(names)), generator).tolist():
            name = names[place]
            subsets = list(shares) if label is None else best({subset: desired_of[subset, label] for subset in shares})
            if len(subsets) > 1:
                subsets = best(desired)
            subset = subsets[0] if len(subsets) == 1 else ("val" if generator.random() > 0.5 else "train")
            if any(set(examples[i]) <= result["val"] | {name} for i in left[name]):
                subset = "train"
            result[subset].add(name)
            desired[subset] -= 1
            for i in left.pop(name):
                desired_of[subset, i] -= 1
    return result["val"]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.37, 0.8])
@pytest.mark.parametrize("seed", range(8))
def test_the_videos_are_those_of_algorithm_1(seed, share):
    split = random_split(seed)
    rows = zip(split.video_ids("train"), split.rows("train").column("labels").to_pylist(), strict=True)
    pool = Pool.from_split(split, "train")
    found = stratify(pool, Fraction(str(share)), rng(seed))
    ids = split.table.column("video_id").to_pylist()
    assert {ids[row] for row in pool.rows[found]} == algorithm_1(dict(rows), share, rng(seed))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_a_training_video_and_groups_stay_together(seed, share):
    split = random_split(seed, groups=30)
    held = hold_out_val(split, share, seed=seed)
    assert ((held.positives("train") > 0) == (split.positives("train") > 0)).all()
    places = {}
    for name, group in zip(held.video_ids("val"), held.rows("val").column("pair_id").to_pylist(), strict=True):
        places.setdefault(group or name, set()).add("val")
    for name, group in zip(held.video_ids("train"), held.rows("train").column("pair_id").to_pylist(), strict=True):
        places.setdefault(group or name, set()).add("train")
    assert set(map(len, places.values())) == {1}
    assert not [f for f in audit_split(held) if f.severity == "error"]


def test_test_the_groups_and_everything_but_the_subset_stay(tmp_path):
    split = random_split(0, videos=200)
    held = load_split(write_split(hold_out_val(split, 0.3, seed=4), tmp_path / "held.parquet"))
    assert (held.variant, held.metadata.seed, held.dataset) == ("heldout-0.3-4", 4, "mine")
    assert held.video_ids("test") == split.video_ids("test")
    assert sorted(held.video_ids("train") + held.video_ids("val")) == sorted(split.video_ids("train"))
    same = [table.drop_columns(["subset", "length_s"]) for table in (held.table, split.table)]  # lengths are unknown
    assert same[0].equals(same[1])
    assert held.groups.names(9) == split.groups.names(9)
    recounted = np.where(held.train_counts > 20, "head", np.where(held.train_counts <= 5, "tail", "medium")).tolist()
    assert recounted != held.groups.names(9)  # so the rule matters here
    assert "val was taken out of train: the groups of the classes are those of both together" in held.notes
    assert held.digest not in ("", split.digest) and held.content_digest != split.content_digest
    assert held.train_counts.tolist() == held.positives("train").tolist() != split.train_counts.tolist()


def test_the_same_seed_gives_the_same_split_in_any_order_of_rows():
    splits = [hold_out_val(random_split(3, groups=40, order=order), 0.2, seed=1) for order in (None, 1, 2)]
    assert len({split.content_digest for split in splits}) == 1
    assert len({hold_out_val(random_split(3), 0.2, seed=seed).digest for seed in range(4)}) == 4
    # Of today's code; another digest would be another split for the same seed.
    assert splits[0].digest.startswith("35c09add74c5")


def test_subjects_stay_together_where_they_are_asked_for():
    split = without_val(released_split("charadesegolt"))
    held = hold_out_val(split, 0.15, seed=0, group_by=["subject"])
    assert held.variant == "heldout-0.15-subject-0"
    found = {(finding.check, finding.what.split(" and val")[0]) for finding in audit_split(held)}
    assert not {what for check, what in found if "in both train" in what and "val" in what} & found
    for column in ("subject", "pair_id"):
        values = [set(held.rows(subset).column(column).to_pylist()) - {""} for subset in ("train", "val")]
        assert values[0] and values[1] and not values[0] & values[1]
    assert len(held.rows("val")) / len(split.rows("train")) == pytest.approx(0.15, abs=0.015)


@pytest.mark.parametrize(("name", "most"), [("charadeslt", 8), ("videolt", 0.5)])
def test_published_training_subsets_are_divided_class_by_class(name, most):
    split = without_val(released_split(name))
    held = hold_out_val(split, 0.1, seed=0)
    shares = measure_shares(held, 0.1)
    assert max(map(abs, shares.deviations)) <= most
    assert len(held.rows("val")) == pytest.approx(0.1 * len(split.rows("train")), rel=0.05)
    for classes, labels, val in shares.groups.values():
        assert classes and val / labels == pytest.approx(0.1, abs=0.02)


def test_a_large_split_takes_seconds():
    split = without_val(simulate_split((24_004, 1, 100), num_classes=140, head_above=500, tail_up_to=100))
    start = time.monotonic()
    held = hold_out_val(split, 0.1, seed=0)
    assert time.monotonic() - start < 10 and len(held.rows("val")) == pytest.approx(2400, abs=50)


def test_shares_are_counts():
    split = random_split(5, videos=100)
    held = hold_out_val(split, 0.1, seed=0)
    shares = measure_shares(held, 0.1)
    whole, val = split.positives("train"), held.positives("val")
    assert shares.deviations == tuple((val - 0.1 * whole).tolist())
    assert shares.without_val == tuple(np.flatnonzero((whole > 0) & (val == 0)).tolist()) != ()
    assert shares.groups["overall"] == (9, int(whole.sum()), int(val.sum()))
    parts = [Counter(dict(zip("abc", shares.groups[name], strict=True))) for name in ("head", "medium", "tail")]
    assert tuple(sum(parts, Counter())[key] for key in "abc") == shares.groups["overall"]
    assert abs(shares.deviations[shares.largest_deviation]) == max(map(abs, shares.deviations))
    assert json.loads(json.dumps(shares.as_dict()))["share"] == 0.1 and isinstance(shares, HeldOutShares)


@pytest.mark.parametrize(("change", "arguments", "said"), [
    (None, {"share": 0}, "between 0 and 1, got 0"),
    (None, {"share": 1.0}, "between 0 and 1, got 1.0"),
    (None, {"share": True}, "between 0 and 1, got True"),
    (None, {"share": float("nan")}, "between 0 and 1, got nan"),
    (None, {"seed": -1}, "a seed is a whole number from 0 on"),
    (None, {"share": 0.001}, "with a share of 0.001, no video of mine goes to val; take a larger share"),
    (None, {"group_by": ["subject"]}, "the videos of mine have no subject that could be kept together"),
    (None, {"group_by": ["pair"]}, "the videos of mine have no pair that could be kept together"),
    (None, {"group_by": ["film"]}, "group_by must be of pair, subject, got 'film'"),
    ("toy", {}, "toylt has a val subset of 50 video.s.: none is taken out of train"),
    ("test", {}, "the split mine has no video in train; it has some in test"),
])  # fmt: skip
def test_refusals(toy_split, change, arguments, said):
    split = random_split(1) if change != "toy" else toy_split
    if change == "test":
        split = Split(split.rows("test"), split.metadata)
    with pytest.raises(SplitError, match=said):
        hold_out_val(split, **{"share": 0.1, "seed": 0, **arguments})


# --- the commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def table(toy_split, tmp_path):
    frame = without_val(toy_split).to_pandas()[["video_id", "subset", "labels", "pair_id", "subject"]]
    frame["labels"] = frame["labels"].map(";".join)
    frame.to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def test_an_imported_split_gets_a_val_subset(table, tmp_path, run):
    out = tmp_path / "mine.parquet"
    options = ("--out", out, "--head-above", 30, "--tail-up-to", 12)
    outcome = run("import-split", table, *options, "--hold-out-val", 0.2, "--seed", 3, "--group-by", "subject")
    assert outcome.exit_code == 0, outcome.output
    split = load_split(out)
    assert split.variant == "heldout-0.2-subject-3" and len(split.rows("val"))
    lines = outcome.stdout.splitlines()
    assert "held out" in outcome.stdout and f"val: {len(split.rows('val'))} of 114 training videos" in outcome.stdout
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("head  ", "tail  ", "overall  "))}
    assert set(rows) == {"head", "tail", "overall"} and rows["overall"][-1].endswith("%")
    assert "no videos in val" not in outcome.stdout
    assert run("audit", out).exit_code == 0
    for extra in (("--seed", 1), ("--group-by", "pair")):
        refused = run("import-split", table, *options, *extra)
        assert refused.exit_code == 2 and "--seed and --group-by go with --hold-out-val" in refused.stderr


def test_the_table_tells_of_empty_groups_and_has_the_names_of_the_benchmark():
    split = random_split(0)
    groups = tuple("head" if index < 4 else "medium" for index in range(9))
    facts = {"groups": groups, "group_names": {"medium": "middle"}, "head_above": None, "tail_up_to": None}
    held = hold_out_val(Split(split.table, replace(split.metadata, **facts)), 0.3, seed=0)
    rows = [line.split() for line in held_out_report(held, measure_shares(held, 0.3)).splitlines()[2:6]]
    assert [row[0] for row in rows] == ["head", "middle", "tail", "overall"]
    assert rows[2][1:3] == ["no", "classes"] and rows[0][1] == "4" and rows[1][1] == "5"


@pytest.mark.parametrize("share", ["0", "1", "x"])
def test_a_share_is_between_0_and_1(table, tmp_path, run, share):
    options = ("--out", tmp_path / "m.parquet", "--head-above", 3, "--tail-up-to", 1, "--hold-out-val", share)
    refused = run("import-split", table, *options)
    assert refused.exit_code == 2 and "--hold-out-val" in refused.stderr


def test_a_published_split_without_val_gets_one(tmp_path, run, monkeypatch, toy_split):
    monkeypatch.setattr("meidbench.splits.released.build_released", lambda name, folder: without_val(toy_split))
    arguments = ("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path, "--hold-out-val", 0.1)
    outcome = run(*arguments, "--format", "parquet", "--format", "lst", "--json")
    assert outcome.exit_code == 0, outcome.output
    stem = f"{toy_split.dataset}-heldout-0.1-0"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{stem}.parquet", *(f"{stem}_{subset}.txt" for subset in ("train", "val", "test"))]
    )
    content = json.loads(outcome.stdout)
    split = load_split(tmp_path / f"{stem}.parquet")
    assert content["digest"] == split.digest
    assert content["held_out"]["groups"] == json.loads(json.dumps(measure_shares(split, 0.1).groups))
    text = run(*arguments, "--seed", 1)
    assert "held out" in text.stdout and f"wrote {tmp_path / 'toylt-heldout-0.1-1.parquet'}" in text.stdout


def test_where_val_exists_or_is_drawn_none_is_held_out(tmp_path, run):
    arguments = ("build-splits", TOY_MANIFEST, "--annotations", TOY, "--out", tmp_path, "--hold-out-val", 0.1)
    refused = run(*arguments)
    assert refused.exit_code == 1 and "toylt has a val subset of" in refused.stderr
    assert len(load_assignment(str(TOY_MANIFEST)).positives["val"]) == 12
    drawn = run(*arguments, "--variant", "pareto")
    assert drawn.exit_code == 2 and "a new split draws its val itself" in drawn.stderr
    assert run(*arguments, "--set", "alpha=6").exit_code == 2 and not list(tmp_path.iterdir())
