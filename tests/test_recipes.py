"""Recipes: all resolve and train, every value has a source, published numbers are right, errors name all problems."""

import csv
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from meidbench.baselines import AGGREGATORS, AUGMENTATIONS, LOSSES, METHODS, SAMPLERS, Config, resolve, train
from meidbench.baselines.configuration import (
    EXAMPLE_SETTING,
    FAMILIES,
    Schedule,
    flatten,
    known_options,
    list_keys,
    make_aggregator,
    make_augmentation,
    make_loss,
    make_sampler,
    option_defaults,
)
from meidbench.baselines.losses import Loss
from meidbench.baselines.methods import PUBLISHED_TABLES
from meidbench.baselines.models import MODELS
from meidbench.baselines.recipes import merge_tables, read_benchmark, read_recipes
from meidbench.baselines.samplers import VideoSampler
from meidbench.checks import match_name, parse_settings
from meidbench.cli import main
from meidbench.errors import MeidbenchError
from meidbench.features.simulation import simulate_features
from meidbench.names import DATASETS, OTHER_NAMES
from meidbench.splits.split import Split

TINY = ("frames.train=6", "frames.test=6", "schedule.batch_size=16", "execution.device=cpu")

# Widths of MOVE that train in no time.
SMALL_MOVE = ("model.hidden=32", "model.codebook_width=16", "model.clusters=4")

# The names of the methods in the tables, and the files of the tables.
PUBLISHED_AS = {
    **{"BCE": "bce", "LDAM": "ldam", "LDAM+DRW": "ldam", "EQL": "eql", "CBS": "cbs", "SRS": "srs", "CBLoss": "cb"},
    **{"Mixup": "mixup", "FrameStack": "framestack", "MEID": "meid", "MOVE": "move"},
    **{"Cross Entropy": "bce", "Focal": "focal", "LDAM-DRW": "ldam"},
}
FILES = {
    "table2": "table2_videolt.csv",
    "table3": "table3_charades.csv",
    "table4": "table4_ablation_e1.csv",
    "supp5": "supp_table5_videolt_tsm.csv",
    "modelzoo": "videolt_modelzoo.csv",
    "rivals": "rivals_move.csv",
    "animalkingdom": "animalkingdom.csv",
}
# MOVE has its own aggregators.
AGGREGATOR_OF = {"move": "selfattn+netvlad"}
# Table 4 has a column for each of expert one's ideas: attention, distillation.
EXPERT_ONE = {("0", "0"): "meid_block", ("1", "1"): "meid_one"}


def published_table(name: str) -> list[dict[str, str]]:
    """Read a table of published numbers, in MEIDBENCH_TEST_TABLES or beside the checkout, or skip."""
    beside = Path(__file__).parents[2] / "shared" / "paper" / "tables"
    path = Path(os.environ.get("MEIDBENCH_TEST_TABLES", beside)) / FILES[name]
    if not path.is_file():
        pytest.skip(f"the published tables are missing ({path}); set MEIDBENCH_TEST_TABLES to have them compared")
    rows = list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
    if name == "animalkingdom":  # in percent, of networks that pool by the mean, with its own names of columns
        common = {"dataset": name, "aggregation": "Mean"}
        groups = {"mAP": "overall", "head": "head", "medium": "middle", "tail": "tail"}
        rows = [
            {**common, "method": row["method"], "encoder": row["network"]}
            | {group: f"{float(row[column]) / 100:.4f}" for group, column in groups.items()}
            for row in rows
        ]
    return rows


def named(split: Split, dataset: str, tail_up_to: int = 20) -> Split:
    """The same videos under another name."""
    return Split(split.table, dataclasses.replace(split.metadata, dataset=dataset, tail_up_to=tail_up_to))


@pytest.mark.parametrize("table", list(PUBLISHED_TABLES))
def test_the_published_numbers_are_those_of_the_tables(table):
    wanted = {}
    for row in published_table(table):
        name = PUBLISHED_AS.get(row.get("method", "")) or EXPERT_ONE.get(
            (row.get("frame_attention", ""), row.get("distill_loss", ""))
        )
        if name is None:
            continue
        aggregator = AGGREGATOR_OF.get(name) or row.get("aggregation", "Nonlinear").lower()
        key = (name, row.get("dataset", "videolt").lower(), row.get("encoder", "ResNet50"), aggregator)
        wanted[key] = tuple(float(row[group]) for group in ("mAP", "head", "medium", "tail"))
    got = {
        (name, row.dataset, row.encoder, row.aggregator): dataclasses.astuple(row.mAP)
        for name, recipe in METHODS.items()
        for row in recipe.published
        if row.table == table and not recipe.is_compat
    }
    assert got == wanted


@pytest.mark.parametrize("name", list(METHODS))
def test_published_rows_fit_their_recipe(name):
    for row in METHODS[name].published:
        assert row.table in PUBLISHED_TABLES and row.dataset in DATASETS
        assert row.aggregator in (*AGGREGATORS, "selfattn+netvlad")
        assert 0 < row.mAP.tail < row.mAP.overall < row.mAP.head < 1


@pytest.mark.parametrize("dataset", [*DATASETS, "toylt"])
@pytest.mark.parametrize("name", list(METHODS))
def test_every_recipe_resolves_on_every_benchmark_and_can_be_read_back(toy_split, name, dataset):
    split = named(toy_split, dataset)
    config = resolve(name, split)
    assert config.method == name and config.seed == 2021
    assert Config.from_tables(config.to_tables()) == config
    assert config.differences(config) == []
    for part in (make_loss(config, split), make_sampler(config, split), make_augmentation(config)):
        assert part is not None
    assert make_aggregator(config, 8, split.num_classes).num_classes == split.num_classes


@pytest.mark.parametrize("name", list(METHODS))
def test_every_recipe_trains_a_step_and_is_scored(toy_split, tmp_path, name):
    features = simulate_features(toy_split, tmp_path / "toy.h5", frames=6, dim=8)
    # FrameStack mixes from the second epoch on.
    small = SMALL_MOVE if name.startswith("move") else ()
    if name == "text_adapter":
        np.savez(tmp_path / "text.npz", vectors=np.random.default_rng(0).normal(size=(toy_split.num_classes, 8)))
        small = (f"model.text={tmp_path / 'text.npz'}",)
    config = resolve(name, toy_split, settings=[*TINY, *small, "sampler.samples_per_epoch=16", "schedule.epochs=2"])
    trained = train(toy_split, features, config, tmp_path / "run")
    assert 0 < trained.mAP["val"].overall < 1 and 0 < trained.mAP["test"].tail < 1


def flat(tables, prefix=""):
    for key, value in tables.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_value_has_a_source(name):
    recipe = METHODS[name]
    valued = [("", key) for key in flat(recipe.tables)]
    valued += [(f"{dataset}:", key) for dataset, tables in recipe.by_dataset.items() for key in flat(tables)]
    for prefix, key in valued:
        # One source may stand for a section.
        assert recipe.sources.get(prefix + key) or recipe.sources.get(prefix + key.partition(".")[0]), key
    assert recipe.title and recipe.is_compat == name.endswith(("-compat", "-release")) == bool(recipe.differs)
    for dataset in (*DATASETS, "other"):
        tables, sources = read_benchmark(dataset, recipe.is_compat)
        assert [key for key in flat(tables) if not (sources.get(key) or sources.get(key.split(".")[0]))] == []


def test_every_method_of_the_public_code_has_its_form():
    compat = [name for name in METHODS if name.endswith("-compat")]
    assert compat == [f"{name}-compat" for name in ("bce", "focal", "cb", "ldam", "eql", "cbs", "srs", "mixup",
                                                    "framestack")]  # fmt: skip


def test_compatible_forms_set_what_the_components_say_is_compatible(toy_split):
    public_code = {
        "focal": {"gamma": 1.0, "soft": "exp_bce"},
        "cb": {"mode": "by_class", "base": "bce", "beta": 0.9999},
        "ldam": {"margins": "summed", "drw_epoch": 50},
        "eql": {"gamma": 1.76e-3, "tail_up_to": 100},
    }
    for name, wanted in public_code.items():
        config = resolve(f"{name}-compat", named(toy_split, "videolt", 100))
        assert {key: config.loss.options.get(key) for key in wanted} == wanted
    config = resolve("framestack-compat", toy_split)
    assert config.running_ap == "second_pass" and config.loss.options == {"gamma": 1.0, "soft": "exp_bce"}
    assert dict(config.augmentation.options) | {"rounding": "int", "label_weight": "beta", "ap_agg": "sum"} == dict(
        config.augmentation.options
    )
    assert resolve("cbs-compat", toy_split).loss.options["reduction"] == "sum_classes_mean_batch"
    assert resolve("ldam", toy_split).aggregator.options["classifier"] == "cosine"
    assert resolve("ldam-compat", toy_split).aggregator.options["classifier"] == "linear"


def test_each_benchmark_has_its_own_values(toy_split):
    videolt, charades = (resolve("eql", named(toy_split, *of)) for of in (("videolt", 100), ("charadeslt", 20)))
    assert (videolt.frames.train, videolt.frames.test, videolt.frames.train_sampling) == (60, 150, "random")
    assert (charades.frames.train, charades.frames.test) == (200, 200)
    assert (videolt.loss.options["tail_up_to"], charades.loss.options["tail_up_to"]) == (100, 20)
    assert (videolt.aggregator.name, charades.aggregator.name) == ("nonlinear", "nextvlad")
    assert charades.aggregator.options == {}
    compat = resolve("eql-compat", named(toy_split, "charadeslt"))
    assert compat.aggregator.options == {"flavor": "meid_compat", "frames": 200}
    for config in (videolt, charades):
        assert (config.schedule.lr, config.schedule.milestones, config.schedule.epochs) == (1e-4, (30, 60), 100)
        assert (config.schedule.clip_norm, config.schedule.weight_decay) == (20.0, 0.0)
    thresholds = [resolve("repeat_factor", named(toy_split, name)).sampler.options for name in DATASETS]
    assert [options["threshold"] for options in thresholds] == [0.001, 0.05, 0.05, 0.001]


def test_animal_kingdom_has_the_values_of_videolt_but_for_its_networks(toy_split):
    for name in METHODS:
        ours, theirs = (resolve(name, named(toy_split, dataset, 100)) for dataset in ("animalkingdom", "videolt"))
        if name in ("bce", "ldam", "eql", "cbs", "mixup"):
            assert ours.aggregator.name == "mean" and theirs.aggregator.name == "nonlinear"
            assert dataclasses.replace(ours, aggregator=theirs.aggregator) == theirs
    compat = resolve("focal-compat", named(toy_split, "animalkingdom", 100))
    assert compat.loss.options == {"gamma": 0.0, "soft": "exp_bce"} and compat.selection.every == 1


def test_another_aggregator_keeps_the_options_that_it_knows(toy_split):
    assert resolve("ldam", toy_split, aggregator="netvlad").aggregator.options == {"classifier": "cosine"}
    config = resolve("bce-compat", named(toy_split, "charadeslt"), aggregator="nonlinear")
    assert config.aggregator.options == {}
    config = resolve("eql", toy_split, settings=["loss.name=asl", "loss.gamma_neg=2"])
    assert dict(config.loss.options) == {"gamma_neg": 2.0}
    assert resolve("bce", toy_split, settings=["sampler.name=progressively_balanced"]).sampler.options["epochs"] == 100


def test_settings_override_and_are_of_the_right_type(toy_split):
    config = resolve(
        "ldam",
        toy_split,
        settings=["schedule.lr=1", "schedule.milestones=[2, 4]", "loss.drw_epoch=none", "schedule.precision=bf16",
                  "schedule.clip_norm=none", "selection.subset=test"],
    )  # fmt: skip
    assert config.schedule.lr == 1.0 and isinstance(config.schedule.lr, float)
    assert config.schedule.milestones == (2, 4) and config.schedule.clip_norm is None
    assert config.loss.options["drw_epoch"] is None and config.schedule.precision == "bf16"
    assert make_loss(config, toy_split).drw_epoch is None


def test_all_problems_of_settings_are_named_at_once(toy_split):
    with pytest.raises(MeidbenchError) as refused:
        resolve(
            "ldam",
            toy_split,
            settings=["schedule.epoch=3", "loss.gamma=1", "schedule.lr=fast", "loss.scale=true", "tau=1",
                      "schedule.precision=fp8", "schedule.milestones=[4, 2]", "aggregator.name=vlad", "seed=-1",
                      "schedule.batch_size=2.5", "frames.train=0"],
        )  # fmt: skip
    message = str(refused.value)
    for said in (
        "11 problem(s)",
        "unknown key schedule.epoch (did you mean schedule.epochs?); known in schedule: epochs, batch_size, accumulate",
        "unknown key loss.gamma; known of ldam: name, max_margin, scale, drw_epoch, drw_beta, margins, reduction",
        "schedule.lr must be a number, got 'fast'",
        "loss.scale must be a number, got True",
        "unknown key tau; known: method, seed, model, aggregator",
        "schedule.precision must be one of fp32, bf16, fp16, got 'fp8'",
        "schedule.milestones must be rising epochs",
        "unknown aggregator.name 'vlad' (did you mean netvlad or nextvlad?); known: nonlinear, early_mean, mean",
        "seed must be at least 0, got -1",
        "schedule.batch_size must be a whole number, got 2.5",
    ):
        assert said in message, message


@pytest.mark.parametrize(("method", "settings", "suggested"), [
    ("LDAM", [], "unknown method 'LDAM' (did you mean ldam?)"),
    ("ldam_loss", [], "(did you mean ldam?)"),
    ("class_balanced", [], "(did you mean cb or cbs?)"),
    ("cross-entropy", [], "(did you mean bce?)"),
    ("bce", ["lr=1e-3"], "unknown key lr (did you mean schedule.lr?)"),
    ("bce", ["learning_rate=1e-3"], "unknown key learning_rate (did you mean schedule.lr?)"),
    ("bce", ["batch_size=4", "epochs=3"],
     "batch_size (did you mean schedule.batch_size?), epochs (did you mean schedule.epochs?)"),
    ("bce", ["optimizer.lr=1"], "unknown key optimizer (did you mean schedule.lr?)"),
    ("bce", ["schedule.weightdecay=0"], "(did you mean schedule.weight_decay?)"),
    ("bce", ["dropout=0.3"], "(did you mean aggregator.dropout?)"),
    ("focal", ["gamma=2"], "(did you mean loss.gamma?)"),
    ("focal", ["loss.gama=2"], "unknown key loss.gama (did you mean loss.gamma?); known of focal"),
    ("meid", ["stage2.lr=2e-4"], "unknown key lr (did you mean schedule.lr?)"),
    ("bce", ["schedule.precision=half"], "schedule.precision must be one of fp32, bf16, fp16"),
    ("bce", ["aggregator.name=average"], "unknown aggregator.name 'average' (did you mean mean or early_mean?)"),
    ("bce", ["loss.name=focal_loss", "sampler.name=cbs"], "(did you mean class_balanced?)"),
    ("bce", ["model.name=meid"], "(did you mean meid_two?)"),
])  # fmt: skip
def test_unknown_names_suggest_known_ones(toy_split, method, settings, suggested):
    with pytest.raises(MeidbenchError, match=re.escape(suggested)):
        resolve(method, toy_split, settings=settings)


def test_every_other_name_leads_to_names_that_exist():
    keys = [key.rpartition(".")[2] for key in list_keys()]
    components = [name for family in FAMILIES.values() for name in family]
    known = {*main.commands, *METHODS, *components, *keys}
    assert {name for names in OTHER_NAMES.values() for name in names} <= known
    assert all(match_name(name, [name]) and name == re.sub("[-_ ]", "", name.casefold()) for name in OTHER_NAMES)


@pytest.mark.parametrize(("method", "settings", "said"), [
    ("adlm", [], "unknown method 'adlm'; known: bce, bce-compat"),
    ("bce", ["schedule.lr"], "is not a setting; expected KEY=VALUE"),
    ("bce", ["=3"], "is not a setting"),
    ("bce", ["seed=1", "seed=2"], "seed is set twice"),
    ("bce", ["seed=1", "seed.value=2"], "seed.value is set twice"),
    ("bce", ["loss=focal"], "loss is no value by itself; set loss.name=focal"),
    ("bce", ["loss.name=3"], "unknown loss.name 3; known: bce"),
    ("bce", ["schedule=3"], "schedule must be a table, got 3"),
    ("bce", ["schedule.lr=inf"], "schedule.lr must be above 0"),
    ("bce", ["schedule.rate=1", "schedule.steps=2"], "unknown keys schedule.rate, schedule.steps (did you mean"),
    ("bce", ["schedule.lr=" + "9" * 400], "above 0, got a whole number of about 400 digits"),
    ("bce", ["schedule.lr=" + "9" * 5000], "schedule.lr must be a number, got '999"),
    ("bce", ["seed=" + "9" * 400], "seed must be a whole number, got a whole number of about 400 digits"),
    ("bce", ["frames.train=1" + "0" * 30], "which has more than 64 bits"),
    ("bce", ["frames.train=10000000000"], "frames.train must be at most 1,000,000, got 10000000000"),
    ("bce", ["schedule.batch_size=1000001", "schedule.epochs=1000001"], "schedule.epochs must be at most 1,000,000"),
    ("bce", ["schedule.milestones=" + "[" * 5000], "schedule.milestones must be a list of whole numbers"),
    ("bce", ["schedule.decay=1e300"], "the learning rate inf is beyond float32"),
    ("framestack", ["augmentation.ratio=1.0"], "running_ap=second_pass"),
    ("framestack", ["augmentation.clip_length=4"], "set it to 200"),
    ("bce", ["aggregator.name=nextvlad", "aggregator.flavor=meid_compat", "frames.test=9"], "set them alike"),
])  # fmt: skip
def test_invalid_settings_are_refused(toy_split, method, settings, said):
    with pytest.raises(MeidbenchError, match=said.replace("(", r"\(")):
        resolve(method, toy_split, settings=settings)


def test_values_are_read_as_toml():
    settings = ["a.b=2e-3", "a.c=true", "d=[1, 2]", 'e="x=y"', "f=charades", "g.h.i=-4"]
    assert parse_settings(settings, EXAMPLE_SETTING) == {
        "a": {"b": 0.002, "c": True}, "d": [1, 2], "e": "x=y", "f": "charades", "g": {"h": {"i": -4}},
    }  # fmt: skip


def test_the_learning_rate_falls_as_published():
    rates = [Schedule().learning_rate(epoch) for epoch in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


def test_the_options_of_components_are_their_keyword_arguments(toy_split):
    for name, kind in (LOSSES | SAMPLERS | AUGMENTATIONS | AGGREGATORS).items():
        options = known_options(kind)
        assert "self" not in options and "labels" not in options and "dim" not in options, name
        if issubclass(kind, Loss):
            assert "reduction" in options
        if issubclass(kind, VideoSampler):
            assert {"samples_per_epoch", "seed"} <= options.keys()
        if kind in AGGREGATORS.values():
            assert {"classifier", "bias_prior"} <= options.keys()


def test_the_dicts_are_bound_when_asked_for():
    import meidbench.baselines as baselines

    assert baselines.LOSSES is LOSSES and "ldam" in LOSSES and "frame_stack" in AUGMENTATIONS
    with pytest.raises(AttributeError, match="no attribute 'LOSES'"):
        baselines.LOSES  # noqa: B018


def test_methods_have_the_components_of_their_names(toy_split):
    parts = {}
    for method in METHODS:
        config = resolve(method, toy_split)
        parts[method] = (config.loss.name, config.sampler.name, config.augmentation.name)
    plain = {
        "bce": ("bce", "instance", "none"),
        "focal": ("focal", "instance", "none"),
        "cb": ("class_balanced", "instance", "none"),
        "ldam": ("ldam", "instance", "none"),
        "eql": ("eql", "instance", "none"),
        "cbs": ("bce", "class_balanced", "none"),
        "srs": ("bce", "square_root", "none"),
        "mixup": ("bce", "instance", "mixup"),
        "framestack": ("bce", "instance", "frame_stack"),
        "db": ("distribution_balanced", "class_aware", "none"),
        "asl": ("asl", "instance", "none"),
        "logit_adjusted": ("logit_adjusted", "instance", "none"),
        "repeat_factor": ("bce", "repeat_factor", "none"),
        "class_aware": ("bce", "class_aware", "none"),
    }
    for method, expected in plain.items():
        assert parts[method] == expected, method
    compatible = {method for method in METHODS if method.endswith("-compat")}
    assert compatible == {f"{name}-compat" for name in list(plain)[:9]}


def test_masked_sampling_begins_with_rare_classes_and_the_public_code_does_not(toy_split):
    for method in ("cbs", "srs"):
        assert resolve(method, toy_split).aggregator.options["bias_prior"] == 0.01
        assert resolve(f"{method}-compat", toy_split).aggregator.options.get("bias_prior") is None


def test_values_that_follow_from_others_are_filled_in_or_refused(toy_split):
    def of(method, *settings):
        return resolve(method, toy_split, settings=settings)

    assert of("ldam").loss.options["drw_epoch"] == 50 and of("ldam", "schedule.epochs=9").loss.options["drw_epoch"] == 4
    assert of("ldam", "loss.drw_epoch=none").loss.options["drw_epoch"] is None
    masks = {method: of(method).mask_other_labels for method in ("bce", "cbs", "srs", "class_aware")}
    assert masks == {"bce": False, "cbs": True, "srs": True, "class_aware": False}
    assert of("class_aware", "mask_other_labels=true").mask_other_labels
    for method, setting, message in (
        ("bce", "mask_other_labels=true", "needs a sampler that draws classes"),
        ("ldam", "loss.name='bce'", "classifier=cosine keeps logits between"),
    ):
        with pytest.raises(MeidbenchError, match=message):
            of(method, setting)


def test_tables_lie_over_each_other():
    ldam = {"loss": {"name": "ldam", "scale": 20.0, "reduction": "mean"}, "seed": 1}
    assert merge_tables(ldam, {"loss": {"name": "bce"}}) == {"loss": {"name": "bce", "reduction": "mean"}, "seed": 1}
    assert merge_tables(ldam, {"loss": {"scale": 3}}, {"seed": 2})["loss"] == {**ldam["loss"], "scale": 3}
    assert flatten({"seed": 1, "loss": {"name": "bce"}}) == {"seed": 1, "loss.name": "bce"}
    assert list(read_recipes(["asl", "eql"])) == ["asl", "eql", "eql-compat"]
    assert read_benchmark("videolt")[0]["frames"]["train"] == 60


def test_options_have_types_and_defaults():
    assert known_options(LOSSES["focal"])["gamma"] is float
    assert list(known_options(AGGREGATORS["early_mean"])) == ["dropout", "classifier", "bias_prior"]
    assert option_defaults(MODELS["meid_two"])["beta"] == 0.5


def test_runs_that_were_begun_before_a_setting_existed_keep_what_they_did(toy_split):
    tables = resolve("meid", toy_split).to_tables()
    del tables["motion"]["static_row"], tables["mask_as"]
    old = Config.from_tables(tables)
    assert (old.motion.motion().static_row, old.mask_as) == ("drawn", "elements")
    assert "motion.static_row: 'drawn' in the run, 'last' asked for" in old.differences(resolve("meid", toy_split))
