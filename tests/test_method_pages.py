"""The pages of docs/methods: every method has a page, and its keys, defaults, numbers and commands are the program's.

The tests read the five sections of a page, and these tables:

- a table headed ``key | default | ...`` under Switches describes the page's first method (in the order of the index),
  or the method that a heading ``### `NAME` `` above it names;
- a table ``key | `NAME` | `NAME-compat` | ...`` under Recipe names every key in which the forms differ;
- a table with the columns ``source, dataset, encoder, aggregator, overall, head, medium, tail`` holds the published
  rows of the page's first method, or of the method in a column ``method``;
- a table whose first column is ``simulated`` repeats rows of docs/baselines.md, in %;
- a table with the columns ``benchmark, logits`` holds the ratio of MEID's penalty to its loss, for several readings;
- a table whose first column begins with ``minus`` holds the differences of VideoLT's published rows from BCE's.

A value is in backticks, as ``--set`` takes it. Where benchmarks differ it is `` `1` on videolt; `2` on charadeslt,
charadesegolt ``. A key that a form does not know has ``-``.
"""

import dataclasses
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from meidbench.baselines import METHODS, resolve
from meidbench.baselines.aggregators.pooling import Mean
from meidbench.baselines.configuration import EXAMPLE_SETTING, FAMILIES, flatten, option_defaults
from meidbench.baselines.losses.cross_entropy import Focal
from meidbench.baselines.methods import PUBLISHED_TABLES
from meidbench.baselines.models.base import ModelInputs
from meidbench.baselines.models.distillation import VarianceDistillation
from meidbench.baselines.models.meid import ExpertOne
from meidbench.baselines.models.meid_parts import ExpertSwitches
from meidbench.baselines.reproduction import table_content
from meidbench.checks import parse_settings
from meidbench.cli.training import train
from meidbench.splits.groups import Groups
from meidbench.splits.manifests import load_assignment, load_manifest
from meidbench.splits.split import Split

FOLDER = Path(__file__).parents[1] / "docs" / "methods"
MEASURED = Path(__file__).parents[1] / "docs" / "baselines.md"
SECTIONS = ["Idea", "Equations", "Switches", "Recipe", "Known numbers"]
GROUPS = ("overall", "head", "medium", "tail")
FORMS = ("-compat", "-release")
AUTHORS_BENCHMARKS = table_content("table1")["datasets"]  # the others have no authors' settings of these methods
TAIL_UP_TO = {"videolt": 100, "charadeslt": 20, "charadesegolt": 20}
# All compatible forms take the same aggregator on CharadesLT and CharadesEgoLT, and are scored every fifth epoch; the
# index names this, and a page names it where its method differs.
NAMED_IN_INDEX = {"aggregator.flavor", "aggregator.frames", "selection.every"}

Table = list[dict[str, str]]


def tables_of(text: str) -> list[tuple[str, Table]]:
    """The tables of a text: the heading of third order above each, and its rows by column."""
    heading, found, lines = "", [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if lines:
            header, _, *rows = lines
            found.append((heading, [dict(zip(header, row, strict=True)) for row in rows]))
            lines = []
        if line.startswith("###"):
            heading = line
    return found


def sections_of(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(map(str.strip, parts[1::2]), parts[2::2], strict=True))


def values_in(cell: str) -> dict[str, object]:
    """The values in a cell, by benchmark; a cell without a name gives the value for all benchmarks."""
    values: dict[str, object] = {}
    for part in cell.split("; "):
        match = re.fullmatch(r"`([^`]+)`(?: on ([a-z, ]+))?", part)
        assert match, f"{cell!r} has neither a value in backticks nor such values on benchmarks"
        text, names = match.groups()
        for dataset in names.split(", ") if names else AUTHORS_BENCHMARKS:
            values[dataset] = parse_settings([f"value={text}"], EXAMPLE_SETTING)["value"]
    assert set(values) == set(AUTHORS_BENCHMARKS), f"{cell!r} lacks one of {', '.join(AUTHORS_BENCHMARKS)}"
    return values


def index() -> dict[str, str]:
    """The page of each method in the index."""
    rows = next(rows for _, rows in tables_of((FOLDER / "README.md").read_text()) if "page" in rows[0])
    pages = {}
    for row in rows:
        method, page = re.fullmatch(r"`(\w+)`", row["method"]), re.fullmatch(r"\[.+\]\((\w+\.md)\)", row["page"])
        assert method and page and row["what"], row
        pages[method[1]] = page[1]
    return pages


PAGES: dict[str, list[str]] = {}
for _method, _page in index().items():
    PAGES.setdefault(_page, []).append(_method)

every_page = pytest.mark.parametrize("page", list(PAGES))


@cache
def page_sections(page: str) -> dict[str, str]:
    return sections_of((FOLDER / page).read_text())


def tables_headed(page: str, section: str, start: str) -> list[tuple[str, Table]]:
    """The tables of a section whose first column begins with ``start``."""
    tables = tables_of(page_sections(page)[section])
    return [(heading, rows) for heading, rows in tables if next(iter(rows[0])).startswith(start)]


@cache
def defaults_of(kind: type) -> dict[str, object]:
    """What each option of a component is where nobody says anything; the seed is the run's."""
    return {option: value for option, value in option_defaults(kind).items() if option != "seed"}


def everything(config) -> dict[str, object]:
    """Every key of a configuration, with the options that keep their defaults."""
    tables = config.to_tables()
    tables.pop("first_stage")
    keys = flatten(tables)
    for family, kinds in FAMILIES.items():
        for option, value in defaults_of(kinds[getattr(config, family).name]).items():
            keys.setdefault(f"{family}.{option}", value)
    if config.first_stage is not None:
        keys |= {f"stage1.{key}": value for key, value in everything(config.first_stage).items()}
    return keys


@pytest.fixture(scope="module")
def resolved(toy_split):
    """The configuration of a method on a benchmark, by name."""

    def named(dataset: str) -> Split:
        metadata = dataclasses.replace(toy_split.metadata, dataset=dataset, tail_up_to=TAIL_UP_TO[dataset])
        return Split(toy_split.table, metadata)

    splits = {dataset: named(dataset) for dataset in AUTHORS_BENCHMARKS}

    @cache
    def of(method: str, dataset: str) -> dict[str, object]:
        return everything(resolve(method, splits[dataset]))

    of.splits = splits
    return of


def wrong_values(of, method: str, key: str, cell: str) -> list[str]:
    key = key.strip("`").removeprefix("stage2.")
    if cell == "-":
        return [f"{method} on {dataset} knows {key}" for dataset in AUTHORS_BENCHMARKS if key in of(method, dataset)]
    problems = []
    for dataset, value in values_in(cell).items():
        keys = of(method, dataset)
        if key not in keys:
            problems.append(f"{method} on {dataset} knows no {key}")
            continue
        real = "none" if keys[key] is None else keys[key]
        if real != value or isinstance(real, bool) != isinstance(value, bool):
            problems.append(f"{key} of {method} on {dataset} is {real!r}, not {value!r}")
    return problems


def test_the_index_has_every_method_and_every_page():
    base = [name for name in METHODS if not name.endswith(FORMS)]
    assert [name for name in base if name not in index()] == []
    assert [path.name for path in FOLDER.glob("*.md") if path.name not in {*PAGES, "README.md"}] == []


@pytest.mark.parametrize("method", list(index()))
def test_the_entries_of_the_index_exist(method):
    assert method in METHODS and (FOLDER / index()[method]).is_file()


@every_page
def test_a_page_has_its_sections(page):
    assert [section for section in page_sections(page) if section in SECTIONS] == SECTIONS
    assert all(page_sections(page)[section].strip() for section in SECTIONS)
    assert (FOLDER / page).read_text().startswith("# ")


@every_page
def test_the_switches_exist_and_their_defaults_are_true(page, resolved):
    switches = tables_headed(page, "Switches", "key")
    assert switches
    named: dict[str, set[str]] = {}
    problems = []
    for heading, rows in switches:
        inside = re.search(r"`([\w-]+)`", heading)
        method = inside[1] if inside else PAGES[page][0]
        assert method in METHODS, heading
        for row in rows:
            assert row["meaning"] and row["source"], row
            named.setdefault(method, set()).add(row["key"].strip("`").removeprefix("stage2."))
            problems += wrong_values(resolved, method, row["key"], row["default"])
    problems += [
        f"the recipe of {method} sets {key}, which no table says"
        for method, keys in named.items()
        for key in flatten(METHODS[method].tables)
        if key not in keys
    ]
    assert not problems


def test_the_shared_values_are_true(resolved):
    tables = [rows for _, rows in tables_of((FOLDER / "README.md").read_text()) if "default" in rows[0]]
    assert [len(rows) > 5 for rows in tables] == [True]
    assert not [problem for row in tables[0] for problem in wrong_values(resolved, "bce", row["key"], row["default"])]


@every_page
def test_the_differences_of_the_forms_are_listed_and_true(page, resolved):
    tables = [rows for _, rows in tables_headed(page, "Recipe", "key")]
    problems, compared = [], set()
    for rows in tables:
        methods = {column: column.strip("`") for column in rows[0] if column != "key"}
        assert set(methods.values()) <= METHODS.keys(), methods
        compared |= set(methods.values())
        for column, method in methods.items():
            for row in rows:
                problems += wrong_values(resolved, method, row["key"], row[column])
        first, *others = methods.values()
        differing = {
            key
            for other in others
            for dataset in AUTHORS_BENCHMARKS
            for key in (resolved(first, dataset).keys() | resolved(other, dataset).keys()) - {"method", *NAMED_IN_INDEX}
            if not key.startswith("stage1.")
            if resolved(first, dataset).get(key) != resolved(other, dataset).get(key)
            # Of two aggregators the names alone are compared.
            if key == "aggregator.name"
            or not key.startswith("aggregator.")
            or len({resolved(method, dataset)["aggregator.name"] for method in (first, other)}) == 1
        }
        said = {row["key"].strip("`").removeprefix("stage2.") for row in rows}
        problems += [f"{key} differs among {', '.join(methods)}" for key in differing - said]
        problems += [
            f"{key} is the same in {', '.join(methods)}"
            for key in said - differing - NAMED_IN_INDEX
            if "stage1." not in key
        ]
    assert not problems
    for method in PAGES[page]:
        compat = f"{method}-compat"
        if compat in METHODS and compat not in compared:
            same = dict.fromkeys({"method", *NAMED_IN_INDEX})
            alike = [resolved(name, "videolt") | same for name in (method, compat)]
            assert alike[0] == alike[1], f"{page} does not say in what {compat} differs"


def numbers(row: dict[str, str]) -> tuple[float, ...]:
    return tuple(float(row[group]) for group in GROUPS)


@every_page
def test_the_published_numbers_are_the_recipes(page):
    got, wanted = [], []
    for _, rows in tables_of(page_sections(page)[SECTIONS[-1]]):
        if not {"source", "dataset", "encoder", "aggregator"} <= rows[0].keys():
            continue
        for row in rows:
            method = row.get("method", PAGES[page][0]).strip("`")
            got.append((method, row["source"], row["dataset"], row["encoder"], row["aggregator"], numbers(row)))
    for method in PAGES[page]:
        for row in METHODS[method].published:
            source = PUBLISHED_TABLES[row.table]
            of = (row.dataset, row.encoder, row.aggregator, dataclasses.astuple(row.mAP))
            wanted.append((method, source, *of))
    assert sorted(got) == sorted(wanted)


def measured() -> dict[str, tuple[float, ...]]:
    """The simulated measurement of each method in docs/baselines.md."""
    rows = next(rows for _, rows in tables_of(MEASURED.read_text()) if "seconds" in rows[0])
    return {row["method"]: numbers(row) for row in rows}


@every_page
def test_the_simulated_numbers_are_those_that_were_measured(page):
    rows = [row for _, rows in tables_headed(page, SECTIONS[-1], "simulated") for row in rows]
    got = {next(iter(row.values())).strip("`"): numbers(row) for row in rows if set(GROUPS) <= row.keys()}
    known = measured()
    assert {name: value for name, value in got.items() if name in known and known[name] != value} == {}
    own = [name for name in known if name.removesuffix("-compat") in PAGES[page]]
    assert [name for name in own if name not in got] == []


@every_page
def test_the_differences_are_those_of_the_published_rows(page):
    for _, rows in tables_headed(page, SECTIONS[-1], "minus"):
        for row in rows:
            encoder = next(iter(row.values()))
            of = {
                method: published.mAP
                for method in ("bce", PAGES[page][0])
                for published in METHODS[method].published
                if (published.table, published.encoder) == ("modelzoo", encoder)
            }
            base, own = dataclasses.astuple(of["bce"]), dataclasses.astuple(of[PAGES[page][0]])
            assert numbers(row) == tuple(round(a - b, 3) for a, b in zip(own, base, strict=True)), row


def commands(text: str) -> list[list[str]]:
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in blocks.splitlines()]
    return [shlex.split(line) for line in lines if "meidbench train" in line]


@every_page
def test_the_commands_of_a_page_are_valid(page, resolved, tmp_path, monkeypatch):
    found = commands(page_sections(page)["Recipe"])
    assert found
    monkeypatch.chdir(tmp_path)
    trained = set()
    for words in found:
        arguments = words[words.index("train") + 1 :]
        for option in {"--features", "--first-stage"} & set(words):
            Path(words[words.index(option) + 1]).mkdir(parents=True, exist_ok=True)
        said = train.make_context("train", list(arguments)).params
        settings = [*said["settings"], *([f"schedule.epochs={said['epochs']}"] if said["epochs"] else [])]
        resolve(said["method"], resolved.splits[said["split"]], aggregator=said["aggregator"], settings=settings)
        trained.add(said["method"])
    assert trained & {name + form for name in PAGES[page] for form in ("", *FORMS)}


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (FOLDER / page).read_text()):
        assert (FOLDER / target).exists(), target


def test_cells_are_read():
    assert values_in("`0.5`") == dict.fromkeys(AUTHORS_BENCHMARKS, 0.5)
    assert values_in("`none`") == dict.fromkeys(AUTHORS_BENCHMARKS, "none") and values_in("`[30, 60]`")["videolt"] == [
        30,
        60,
    ]
    of = values_in("`0.001` on videolt; `0.05` on charadeslt, charadesegolt")
    assert of == {"videolt": 0.001, "charadeslt": 0.05, "charadesegolt": 0.05}
    for wrong in ("0.5", "`1` on videolt", "about `3`"):
        with pytest.raises(AssertionError):
            values_in(wrong)
    assert tables_of("### `a`\n\n| x | y |\n|---|---|\n| 1 | `a\\|b` |\n") == [("### `a`", [{"x": "1", "y": "`a|b`"}])]


def test_the_first_of_two_stages_has_its_own_keys(resolved):
    config = resolve("bce", resolved.splits["videolt"])
    keys = everything(dataclasses.replace(config, first_stage=resolve("eql", resolved.splits["videolt"])))
    assert (keys["loss.name"], keys["stage1.loss.name"], keys["stage1.loss.tail_up_to"]) == ("bce", "eql", 100)
    assert keys["aggregator.dropout"] == 0.5 and "sampler.seed" not in keys


BENCHMARKS = {"CharadesLT": "charadeslt", "VideoLT": "videolt"}
READINGS = {
    "`batch`": {"distill_var": "batch"},
    "`unit`": {"distill_var": "unit"},
    "`all`": {"distill_var": "all"},
    "compiled necks": {"distill_var": "unit", "neck_act": "lrelu", "neck_norm": "l2"},
}


def naive_ratio(logits, targets, necks, classes, reading):
    """lambda L_d over the focal loss, equations 5 to 7 and 13, in numpy."""
    probabilities = 1 / (1 + np.exp(-logits))
    right = np.where(targets > 0, probabilities, 1 - probabilities)
    focal = np.mean((1 - right) * -np.log(right))
    spreads = []
    for name, members in classes.items():
        units = logits[:, members] @ necks[f"{name}.linear.weight"].T + necks[f"{name}.linear.bias"]
        if "neck_act" in reading:
            units = np.where(units > 0, units, 0.2 * units)
            units = units / np.sqrt((units**2).sum(axis=1, keepdims=True))
        spreads.append(np.var(units, axis={"batch": 0, "unit": 1, "all": None}[reading["distill_var"]]))
    return 0.1 * np.sqrt(np.mean((spreads[0] - spreads[1]) ** 2)) / focal


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_ratio_of_penalty_and_loss_is_what_the_page_says(name):
    """With new necks: on the first logits of an expert one, after the first steps, and with each class's log-odds."""
    manifest, assignment = load_manifest(BENCHMARKS[name]), load_assignment(BENCHMARKS[name])
    positives = np.array(assignment.positives["train"])
    groups = Groups.from_counts(positives, manifest.head_above, manifest.tail_up_to)
    classes = {
        "head": np.flatnonzero(positives > manifest.head_above),
        "tail": np.flatnonzero(positives <= manifest.tail_up_to),
    }
    shares = torch.from_numpy(positives / assignment.symbols.count("t")).float()
    count, generator = len(shares), torch.Generator().manual_seed(0)
    targets = (torch.rand((128, count), generator=generator) < shares).float()
    drawn = torch.randn((128, count), generator=generator)
    inputs = ModelInputs(2048, count, np.full(count, 100), groups, None, False, lambda width: Mean(width, count))
    torch.manual_seed(0)
    features = torch.randn((128, 1, 2048), generator=generator).relu().expand(-1, 4, -1)
    with torch.no_grad():
        moments = {"first weights": ExpertOne(inputs).eval()(features).logits, "mean -3, deviation 1": drawn - 3}
    moments["log-odds of each class, deviation 1"] = drawn + torch.logit(shares)
    loss = Focal(np.full(count, 100), 1000, gamma=1.0)
    [rows] = [rows for _, rows in tables_of(page_sections("meid.md")["Equations"]) if "logits" in rows[0]]
    assert {row["logits"] for row in rows} == set(moments) and {row["benchmark"] for row in rows} == set(BENCHMARKS)
    for row in (row for row in rows if row["benchmark"] == name):
        logits = moments[row["logits"]]
        for cell, reading in READINGS.items():
            torch.manual_seed(1)
            switches = ExpertSwitches(**reading)
            distillation = VarianceDistillation(groups, count, switches)
            with torch.no_grad():
                ratio = float(switches.distill_weight * distillation(logits) / loss(logits, targets))
            necks = {key.removeprefix("necks."): value.numpy() for key, value in distillation.state_dict().items()}
            naive = naive_ratio(logits.double().numpy(), targets.numpy(), necks, classes, reading)
            assert ratio == pytest.approx(naive, rel=1e-3, abs=1e-7)
            told = row[cell]
            if told.startswith("< "):
                assert ratio < float(told[2:]), (row, cell, ratio)
            else:
                assert ratio == pytest.approx(float(told), rel=0.25), (row, cell, ratio)
