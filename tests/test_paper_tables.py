"""The paper's tables as data: numbers are those of the published files, rows differ by their switches."""

import csv
import os
from pathlib import Path

import pytest
from material import released_split

from meidbench.baselines import METHODS
from meidbench.baselines.configuration import flatten
from meidbench.baselines.reproduction import RUN_TABLES, Row, choose_rows, read_table, row_names, table_content
from meidbench.baselines.reproduction.materials import InputFiles, parse_features, stand_in
from meidbench.baselines.reproduction.plan import (
    Request,
    feature_need,
    forward_flops,
    make_jobs,
    make_plan,
    row_config,
    run_cost,
)
from meidbench.baselines.reproduction.render import STATISTICS
from meidbench.errors import MeidbenchError
from meidbench.evaluation.results import MeanAP, implied_overall
from meidbench.names import DATASETS, TABLES
from meidbench.splits.groups import GROUP_NAMES
from meidbench.splits.manifests import load_manifest

FILES = {
    "table2": "table2_videolt.csv",
    "table3": "table3_charades.csv",
    "table4": "table4_ablation_e1.csv",
    "table5": "table5_ablation_e2.csv",
    "table6": "table6_two_expert.csv",
    "table7": "table7_beta.csv",
    "supp1": "supp_table1_static_info.csv",
    "supp2": "supp_table2_motion_fusion.csv",
    "supp5": "supp_table5_videolt_tsm.csv",
    "animalkingdom": "animalkingdom.csv",
}
RUNS = [(name, row) for name in RUN_TABLES for row in read_table(name).rows if not row.is_quoted]
ABLATIONS = [(name, row) for name, row in RUNS if read_table(name).base]

# Published rows whose overall value is not that of their groups, and what the groups imply.
INCONSISTENT = {
    ("table2", "medc-resnet50"): 0.554,
    ("table2", "medc-resnet101"): 0.607,
    ("supp5", "ldam-nonlinear"): 0.564,
    # Of every row; by the classes with a test clip, which are those that are scored.
    **{
        ("animalkingdom", row): implied
        for row, implied in zip(
            row_names("animalkingdom"),
            (0.188, 0.232, 0.283, 0.300, 0.278, 0.320, 0.248, 0.246, 0.333, 0.280, 0.275, 0.333),
            strict=True,
        )
    },
}


def table_row(table: str, name: str) -> Row:
    return next(row for row in read_table(table).rows if row.name == name)


def published_table(file: str) -> list[dict[str, str]]:
    """Read a file of published numbers, in MEIDBENCH_TEST_TABLES or beside the checkout; skip the test without it."""
    beside = Path(__file__).parents[2] / "shared" / "paper" / "tables"
    path = Path(os.environ.get("MEIDBENCH_TEST_TABLES", beside)) / file
    if not path.is_file():
        pytest.skip(f"the published tables are missing ({path}); set MEIDBENCH_TEST_TABLES to have them compared")
    rows = csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#"))
    if file != FILES["animalkingdom"]:
        return list(rows)
    # In percent, with the benchmark's own names of groups.
    columns = {"mAP": "overall", "head": "head", "medium": "middle", "tail": "tail"}
    common = {"dataset": "animalkingdom", "aggregation": "Average pooling"}
    return [
        {**common, "method": row["method"], "encoder": row["network"]}
        | {group: f"{float(row[column]) / 100:.4f}" for group, column in columns.items()}
        for row in rows
    ]


@pytest.mark.parametrize("name", RUN_TABLES)
def test_rows_are_those_of_the_published_file_in_its_order(name):
    wanted = [
        tuple(float(row[group]) for group in ("mAP", "head", "medium", "tail")) for row in published_table(FILES[name])
    ]
    rows = [row for row in read_table(name).rows if not row.method.endswith("-release")]
    assert [
        (row.published.overall, row.published.head, row.published.medium, row.published.tail) for row in rows
    ] == wanted


@pytest.mark.parametrize("name", ["table2", "table3", "supp5", "animalkingdom"])
def test_labels_encoders_and_aggregations_are_those_of_the_published_file(name):
    wanted = [
        (row["method"], row["dataset"].lower(), row["encoder"], row["aggregation"])
        for row in published_table(FILES[name])
    ]
    rows = [row for row in read_table(name).rows if not row.method.endswith("-release")]
    assert [(row.label, row.dataset, row.encoder, row.aggregation) for row in rows] == wanted


def test_table_1_is_that_of_the_published_file():
    for row in published_table("table1_datasets.csv"):
        manifest = load_manifest(row["dataset"].lower())
        facts = {"classes": manifest.num_classes, **manifest.paper}
        assert {name: float(row[name]) for name in STATISTICS} == {name: facts[name] for name in STATISTICS}
    assert row_names("table1") == tuple(name for name in DATASETS if load_manifest(name).paper)


@pytest.mark.parametrize("name", RUN_TABLES)
def test_overall_is_the_mean_over_the_classes_of_the_groups_but_for_known_rows(name):
    table = read_table(name)
    for row in table.rows:
        groups = (row.published.head, row.published.medium, row.published.tail)
        every = [load_manifest(row.dataset).sizes[group] for group in GROUP_NAMES]
        implied = [
            sum(size * value for size, value in zip(sizes, groups, strict=True)) / sum(sizes)
            for sizes in (table.scored_classes or every, every)
        ]
        if (name, row.name) in INCONSISTENT:
            assert table.implied_overall(row) == pytest.approx(implied[0])
            assert round(implied[0], 3) == INCONSISTENT[name, row.name]
            assert all(abs(value - row.published.overall) > 0.0011 for value in implied)
        else:
            assert table.implied_overall(row) is None
            assert abs(implied[0] - row.published.overall) < 0.0011


def test_the_scored_classes_of_animal_kingdom_are_those_with_a_test_clip():
    split = released_split("animalkingdom")
    scored = split.positives("test") > 0
    sizes = tuple(int(scored[getattr(split.groups, name)].sum()) for name in GROUP_NAMES)
    assert read_table("animalkingdom").scored_classes == sizes == (17, 29, 81)


def test_rounding_is_no_contradiction_and_two_units_are():
    sizes = (1, 1, 2)
    assert implied_overall(MeanAP(0.251, 0.500, 0.300, 0.100), sizes) is None
    assert implied_overall(MeanAP(0.252, 0.500, 0.300, 0.100), sizes) == pytest.approx(0.25)
    # With a fourth digit, the same difference is more than rounding.
    assert implied_overall(MeanAP(0.251, 0.500, 0.3001, 0.100), sizes) == pytest.approx(0.250025)


def test_medc_is_only_quoted_and_nothing_else_is():
    quoted = [(name, row) for name in RUN_TABLES for row in read_table(name).rows if row.is_quoted]
    assert [(name, row.label) for name, row in quoted] == [("table2", "MEDC")] * 2 + [("supp5", "MEDC")]
    assert all("only its abstract is public" in row.note for _, row in quoted)
    assert not any("medc" in name for name in METHODS)


def test_meid_stands_twice_beside_each_of_its_numbers():
    for name in ("table2", "table3", "supp5"):
        rows = [row for row in read_table(name).rows if row.label == "MEID"]
        assert [row.method for row in rows] == ["meid", "meid-release"] * (len(rows) // 2)
        assert all(a.published == b.published for a, b in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize("name", RUN_TABLES)
def test_names_are_unique_and_rows_are_of_known_things(name):
    table = read_table(name)
    assert len(set(row_names(name))) == len(table.rows) and table.title and table.source and table.protocol
    for row in table.rows:
        assert row.dataset in DATASETS and row.encoder in table_content("needs")["encoders"]
        assert row.is_quoted or row.method in METHODS
    assert not table.base or table_row(name, table.base).settings == table_row(name, table.base).switches == ()


@pytest.mark.parametrize(("name", "row"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_every_row_resolves(name, row):
    config = row_config(row, stand_in(row.dataset))
    assert config.method == row.method and config.aggregator.name == row.aggregator


@pytest.mark.parametrize(("name", "row"), ABLATIONS, ids=lambda value: getattr(value, "name", value))
def test_ablations_differ_from_their_base_in_the_switches_that_they_name_alone(name, row):
    table = read_table(name)
    base = row_config(table_row(name, table.base), stand_in(row.dataset))
    config = row_config(row, stand_in(row.dataset))
    if row.switches == ("method",):  # expert one alone is the first stage of the base
        assert config == base.first_stage
        return
    before, after = flatten(base.to_tables()), flatten(config.to_tables())
    different = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    covers = {
        switch: {key for key in different if key == switch or key.startswith(f"{switch}.")} for switch in row.switches
    }
    assert set().union(*covers.values()) == different
    assert all(covers.values()), "a switch is named that changes nothing"


def test_the_full_rows_of_the_ablations_are_one_run():
    full = [row_config(table_row(name, row), stand_in("videolt")) for name, row in (
        ("table2", "meid-resnet50"), ("table5", "selection-motion-sampling"), ("table6", "e1-e2"),
        ("table7", "beta-0.5"), ("supp1", "mean"), ("supp2", "medium"),
    )]  # fmt: skip
    assert all(config == full[0] for config in full)
    first = row_config(table_row("table4", "attention-distillation"), stand_in("videolt"))
    assert full[0].first_stage == first


def test_rows_are_chosen_by_name():
    assert choose_rows(("all",)) == dict.fromkeys(TABLES, ())
    assert choose_rows(("all",), ("beta-0.3", "charadeslt")) == {"table1": ("charadeslt",), "table7": ("beta-0.3",)}
    with pytest.raises(MeidbenchError, match=r"no row is called beta-0\.9(.|\n)*table7: beta-0\.3"):
        choose_rows(("table7",), ("beta-0.9",))
    with pytest.raises(MeidbenchError, match="unknown table 'table8'"):
        read_table("table8")


@pytest.mark.parametrize(("text", "message"), [
    ("ResNet50", "names no features"),
    ("resnet18=.", "unknown encoder 'resnet18'"),
    ("toylt:ResNet50=.", "names no features"),
    ("ResNet50=nowhere.h5", "no features of ResNet50 at nowhere.h5"),
])  # fmt: skip
def test_wrong_features_are_refused(text, message):
    with pytest.raises(MeidbenchError, match=message):
        parse_features([text])
    with pytest.raises(MeidbenchError, match="named twice"):
        parse_features(["ResNet50=.", "resnet50=."])


def test_disk_is_that_of_all_videos_in_half_precision():
    need = feature_need("charadeslt", "ResNet101")
    assert (need.videos, need.frames, need.width, need.bytes) == (3694, 200, 2048, 3694 * 200 * 2048 * 2)
    assert "--backbone resnet101 --frames 200" in need.command
    assert "--weights FILE" in feature_need("videolt", "TSM-ResNet50").command


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_stand_in_of_a_split_has_its_groups(dataset):
    split, manifest = stand_in(dataset), load_manifest(dataset)
    sizes = {group: len(getattr(split.groups, group)) for group in ("head", "medium", "tail")}
    assert sizes == {group: manifest.sizes[group] for group in sizes}
    assert (split.metadata.head_above, split.metadata.tail_up_to) == (manifest.head_above, manifest.tail_up_to)


def test_every_row_has_its_cost():
    files = InputFiles()
    for name in ("table3", "table5", "table6"):
        table = read_table(name)
        plan = make_plan(table, make_jobs(table, Request(), files), "A100")
        assert [row.hours > 0 for row in plan.rows] == [row.runs > 0 for row in plan.rows]
        assert sum(row.runs for row in plan.rows) == len(
            {(row.dataset, row.encoder, str(stage))
             for row in table.rows if not row.is_quoted
             for config in [row_config(row, stand_in(row.dataset))]
             for stage in (config, config.first_stage) if stage}
        )  # fmt: skip


def test_operations_are_counted_as_by_hand():
    row = table_row("table2", "framestack-resnet50")
    split = stand_in("videolt")
    config = row_config(row, split)

    # Nonlinear: one layer per frame, and a linear last layer on their mean; two operations per weight.
    def by_hand(frames):
        return 2 * (frames * 2048 * 2048 + 2048 * 1004)

    assert forward_flops(config, split, 2048, 60) == by_hand(60)
    cost = run_cost(config, split, "videolt", 2048, "A100")
    steps = -(-179_334 // 128) * 100
    scored = 20 * 25_619 + 25_619 + 51_239  # every fifth epoch, and at the end
    assert cost.flops == pytest.approx(steps * 128 * 3 * by_hand(60) + scored * by_hand(150))
    assert cost.bytes_read == pytest.approx((steps * 128 * 60 + scored * 150) * 4096)
    assert cost.hours == pytest.approx(max(cost.flops / (0.4 * 19.5e12), cost.bytes_read / 2e9) / 3600)
    assert run_cost(config, split, "videolt", 2048, "H100").hours < cost.hours
    with pytest.raises(MeidbenchError, match="unknown GPU 'abacus'; known: V100"):
        run_cost(config, split, "videolt", 2048, "abacus")
