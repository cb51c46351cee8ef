"""The settings of every method beside those that the papers and the authors' scripts name.

The tables are written from VideoLT's scripts and ``ops/``, MEID's paper and scripts (``ddp_train_101.sh``,
``ddp_train_diff.sh``, ``charades_dy_101.sh``, ``charades_dy.sh``, ``charades_baseline.sh``,
``charades_framestack.sh``), and the papers of the methods, not from the recipes. Where no source names a value, the
project's choice stands.
"""

import dataclasses
import re

import pytest

from meidbench.baselines import METHODS, resolve
from meidbench.baselines.configuration import FAMILIES, option_defaults
from meidbench.baselines.reproduction import table_content
from meidbench.checks import parse_settings
from meidbench.splits.split import Split

BENCHMARKS = table_content("table1")["datasets"]

# By benchmark and form: batch, rate, frames in training and when scored, epochs between two scorings, aggregator.
# "charades" is CharadesLT and CharadesEgoLT.
SCHEDULES = """
benchmark | form   | batch | lr   | frames  | every | aggregator
videolt   | paper  | 128   | 1e-4 | 60/150  | 1     | nonlinear
videolt   | public | 128   | 1e-4 | 60/150  | 5     | nonlinear
charades  | paper  | 1024  | 1e-4 | 200/200 | 1     | nextvlad flavor="original"
charades  | public | 1024  | 1e-4 | 200/200 | 5     | nextvlad flavor="meid_compat" frames=200
"""

# What a method changes in them, by stage; MEID's paper does not name batches, and VideoLT's stand.
OTHER_SCHEDULES = """
method             | benchmark | batch | lr   | frames  | every | aggregator
meid               | videolt   | 128   | 1e-4 | 150/150 | 1     | mean
meid_one           | videolt   | 128   | 1e-3 | 150/150 | 1     | mean
meid_block         | videolt   | 128   | 1e-3 | 150/150 | 1     | mean
meid               | charades  | 128   | 1e-4 | 200/200 | 1     | nextvlad flavor="original"
meid_one           | charades  | 128   | 1e-3 | 200/200 | 1     | nextvlad flavor="original"
meid_block         | charades  | 128   | 1e-3 | 200/200 | 1     | nextvlad flavor="original"
meid-release       | videolt   | 1024  | 1e-3 | 150/150 | 1     | mean
meid_one-release   | videolt   | 1536  | 1e-3 | 150/150 | 1     | mean
meid_block-release | videolt   | 1536  | 1e-3 | 150/150 | 1     | mean
meid-release       | charades  | 256   | 1e-4 | 200/200 | 5     | mean
meid_one-release   | charades  | 256   | 1e-4 | 200/200 | 1     | mean
meid_block-release | charades  | 256   | 1e-4 | 200/200 | 1     | mean
"""

COMPAT_STACK = 'frame_stack ratio=0.5 warm_epoch=0 rounding="int" label_weight="beta" ap_agg="sum"'
PLAIN_STACK = 'frame_stack ratio=0.5 warm_epoch=0 rounding="round" label_weight="frames" ap_agg="mean"'
DB = "distribution_balanced map_alpha=0.1 map_beta=10.0 map_mu=0.2 kappa=0.05 neg_scale=2.0 gamma=2.0 balance=2.0"
LDAM = 'ldam max_margin=0.5 scale=30.0 drw_beta=0.9999 drw_epoch=50 reduction="mean"'
FOCAL = 'focal gamma=1.0 alpha=1.0 alpha_mode="scalar" reduction="mean"'

# Loss, sampler, mask of the other labels ("elements" or "factor", see ``Config.mask_as``), augmentation, source of AP.
COMPONENTS = f"""
method | benchmark | loss | sampler | mask | augmentation | ap
bce | all | bce reduction="mean" | instance | - | none | -
bce-compat | all | bce reduction="mean" | instance | - | none | -
focal | all | {FOCAL} soft="abs_error" | instance | - | none | -
focal-compat | all | {FOCAL} soft="exp_bce" | instance | - | none | -
cb | all | class_balanced beta=0.9999 mode="by_class" base="bce" reduction="mean" | instance | - | none | -
cb-compat | all | class_balanced beta=0.9999 mode="by_class" base="bce" reduction="mean" | instance | - | none | -
ldam | all | {LDAM} margins="own" | instance | - | none | -
ldam-compat | all | {LDAM} margins="summed" | instance | - | none | -
eql | videolt | eql gamma=0.9 tail_up_to=100 reduction="mean" | instance | - | none | -
eql | charades | eql gamma=0.9 tail_up_to=20 reduction="mean" | instance | - | none | -
eql-compat | all | eql gamma=0.00176 tail_up_to=100 reduction="mean" | instance | - | none | -
cbs | all | bce reduction="mean" | class_balanced replacement=true | elements | none | -
cbs-compat | videolt | bce reduction="sum_classes_mean_batch" | class_balanced replacement=true | elements | none | -
cbs-compat | charades | bce reduction="mean" | class_balanced replacement=true | factor | none | -
srs | all | bce reduction="mean" | square_root replacement=true | elements | none | -
srs-compat | videolt | bce reduction="sum_classes_mean_batch" | square_root replacement=true | elements | none | -
srs-compat | charades | bce reduction="mean" | square_root replacement=true | factor | none | -
mixup | all | bce reduction="mean" | instance | - | mixup alpha=1.0 per_sample=false | -
mixup-compat | all | bce reduction="mean" | instance | - | mixup alpha=1.0 per_sample=false | -
framestack | all | bce reduction="mean" | instance | - | {PLAIN_STACK} | untouched
framestack-compat | all | {FOCAL} soft="exp_bce" | instance | - | {COMPAT_STACK} | second_pass
db | all | {DB} | class_aware samples_per_class=3 reduce=4 | - | none | -
asl | all | asl gamma_neg=4.0 gamma_pos=0.0 clip=0.05 reduction="sum_classes_mean_batch" | instance | - | none | -
logit_adjusted | all | logit_adjusted tau=1.0 prior="videos" | instance | - | none | -
repeat_factor | videolt | bce reduction="mean" | repeat_factor threshold=0.001 | - | none | -
repeat_factor | charades | bce reduction="mean" | repeat_factor threshold=0.05 | - | none | -
class_aware | all | bce reduction="mean" | class_aware samples_per_class=3 reduce=4 | - | none | -
meid | all | {FOCAL} soft="abs_error" | class_balanced replacement=true | elements | none | -
meid-release | all | {FOCAL} soft="exp_bce" | class_balanced replacement=true | factor | {COMPAT_STACK} | second_pass
meid_one | all | {FOCAL} soft="abs_error" | instance | - | none | -
meid_one-release | all | {FOCAL} soft="exp_bce" | instance | - | {COMPAT_STACK} | second_pass
meid_block | all | {FOCAL} soft="abs_error" | instance | - | none | -
meid_block-release | all | {FOCAL} soft="exp_bce" | instance | - | {COMPAT_STACK} | second_pass
move | all | bce reduction="mean" | instance | - | none | -
move-release | all | bce reduction="mean" | instance | - | none | -
move_aggregator | all | bce reduction="mean" | instance | - | none | -
move_aggregator-release | all | bce reduction="mean" | instance | - | none | -
"""

# MEID's motion stream in the second stage: the paper has one static row per video, the release draws it.
MOTION = {
    "meid": {"when": "full", "same_index": True, "static": "mean", "release_bug": False, "static_row": "last"},
    "meid-release": {"when": "full", "same_index": False, "static": "sum", "release_bug": True, "static_row": "drawn"},
}
NOT_CUT = ("move-release",)  # MOVE.py does not cut gradients
OWN = ("linear_probe", "text_adapter")  # methods of this project: no script to compare with


def rows_of(table: str) -> list[dict[str, str]]:
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def row_of(table: str, dataset: str, **wanted: str) -> dict[str, str]:
    names = ("all", dataset if dataset == "videolt" else "charades")
    fitting = [row for row in rows_of(table) if row["benchmark"] in names and wanted.items() <= row.items()]
    assert len(fitting) <= 1, fitting
    return fitting[0] if fitting else {}


def assert_component(choice, family: str, cell: str) -> None:
    name, *options = cell.split()
    wanted = parse_settings(options, "KEY=VALUE")
    assert choice.name == name
    got = option_defaults(FAMILIES[family][name]) | dict(choice.options)
    assert {key: got[key] for key in wanted} == wanted


@pytest.fixture(scope="module")
def configured(toy_split):
    def of(method: str, dataset: str):
        tail_up_to = 100 if dataset == "videolt" else 20
        return resolve(method, Split(toy_split.table, dataclasses.replace(
            toy_split.metadata, dataset=dataset, tail_up_to=tail_up_to,
        )))  # fmt: skip

    return of


def assert_is_as_published(config, dataset: str) -> None:
    method = config.method
    form = "public" if re.search("-(compat|release)$", method) else "paper"
    shared = row_of(SCHEDULES, dataset, form=form)
    own = row_of(OTHER_SCHEDULES, dataset, method=method) or shared
    schedule, frames = config.schedule, config.frames
    assert (schedule.batch_size, schedule.lr) == (int(own["batch"]), float(own["lr"]))
    assert (schedule.epochs, tuple(schedule.milestones), schedule.decay) == (100, (30, 60), 0.1)
    assert (schedule.weight_decay, schedule.clip_norm) == (0, None if method in NOT_CUT else 20)
    assert f"{frames.train}/{frames.test}" == own["frames"] and config.seed == 2021
    assert (frames.train_sampling, frames.replacement, frames.test_sampling) == ("random", True, "uniform")
    assert (config.selection.subset, config.selection.every) == ("val", int(own["every"]))
    if not method.startswith("move"):  # which has aggregators of its own
        assert_component(config.aggregator, "aggregator", own["aggregator"])
    parts = row_of(COMPONENTS, dataset, method=method)
    for family in ("loss", "sampler", "augmentation"):
        assert_component(getattr(config, family), family, parts[family])
    if config.augmentation.name == "frame_stack":  # its clip is as long as a video in every script: 60, 150 or 200
        clip = config.augmentation.options.get("clip_length") or frames.train
        assert clip == int(own["frames"].split("/")[0])
    assert (config.mask_as if config.mask_other_labels else "-") == parts["mask"]
    if parts["ap"] != "-":
        assert config.running_ap == parts["ap"]
    if method in MOTION:
        assert dataclasses.asdict(config.motion) == MOTION[method]
    else:
        assert config.motion.when == "none"


@pytest.mark.parametrize("dataset", BENCHMARKS)
@pytest.mark.parametrize("method", [method for method in METHODS if method not in OWN])
def test_every_method_has_the_settings_of_its_paper_or_of_its_authors(configured, method, dataset):
    config = configured(method, dataset)
    stages = [config] if config.first_stage is None else [config.first_stage, config]
    names = [method.replace("meid", "meid_one"), method] if method in MOTION else [method]
    assert [stage.method for stage in stages] == names
    for stage in stages:
        assert_is_as_published(stage, dataset)


def test_the_tables_name_known_methods():
    for table in (OTHER_SCHEDULES, COMPONENTS):
        assert {row["method"] for row in rows_of(table)} <= METHODS.keys()
