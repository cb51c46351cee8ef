"""Published settings beside equal budgets: the CharadesLT rows of Table 3 on the proxy task of words.

    python tests/benchmarks/budgets.py Charades/ --trials 20 --seed 1 --seed 2 --out budgets > docs/budgets.md

Prints the page. The folder holds the official annotations of Charades. Runs two commands, which resume after an
interruption: ``meidbench reproduce table3 --proxy words`` with the published settings into OUT/published, and the same
with ``--tuned N`` into OUT/tuned; and fits the linear probe. Then it compares all runs (``meidbench.compare``): the
budgets and the mAP of each method in both, and its difference to MEID with its interval over videos (a star: it holds
after Holm's correction); below them the order of the methods, and the differences between two methods that hold with
the published settings and that survive. OUT/report.html compares all runs. ``--row`` takes some methods alone; the last
one is the reference. All numbers are of a proxy task without vision; do not judge methods by them.
"""

import argparse
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import meidbench as mb
from meidbench.evaluation.budget import describe_budgets, describe_inequality
from meidbench.evaluation.compare import Comparison, MethodResult
from meidbench.names import WATERMARKS
from meidbench.report.text import format_interval, format_signed

METHODS = {"ldam": "LDAM", "eql": "EQL", "cbs": "CBS", "cbloss": "CBLoss", "mixup": "Mixup", "framestack": "FrameStack",
           "meid": "MEID"}  # fmt: skip
PROBE = "linear_probe"
NAMES = METHODS | {PROBE: "linear probe"}
ROW = "{}-charadeslt"
GROUPS = ("overall", "head", "medium", "tail")
_INTRODUCTION = """# Published settings beside equal budgets

{watermark}.

On CharadesLT the published baselines take 300 steps of Adam at 1e-4, and MEID 1,800 in each of two stages, the first
at 1e-3. A part of MEID's lead may be its budget. Here are rows of Table 3 twice, on the words of the official
descriptions ([word features](features.md)): with the published settings, and with {trials} trials of a search for
each method ([equal budgets](reproducing.md#equal-budgets)). Both have the settings `{settings}`. val chooses the
checkpoint and the trial, and test is scored once. The [linear probe](methods/linear_probe.md) stands beside them; it
takes no steps, and is the same in both tables. This page is the output of the command:

```console
$ python tests/benchmarks/budgets.py {arguments} > docs/budgets.md
```

It runs `meidbench reproduce table3 --proxy words` without and with `--tuned {trials}`, and resumes after an
interruption. `{out}/report.html` compares all runs. The tables have mAP on test, the mean of the seeds with the
lowest and the highest seed, and the difference to the last method with its 95 % interval over videos. A star marks a
difference that holds after Holm's correction.
"""
_LIMITS = """\
**Limits.** The task has real labels and no vision. The models are small, and so is the number of trials: a search
of this size finds a good rate, not the best settings of a method. Equal trials are not equal steps, and a trial of MEID
costs two trainings. The intervals cover the choice of the test videos, not the choice of the trials. Features of
videos may give another order; the same commands run on them."""


def reproduce(folder: Path, out: Path, rows: list[str], seeds: list[int], settings: list[str], trials: int) -> None:
    """Run one of the two commands, and print it."""
    command = ["reproduce", "table3", "--proxy", "words", "--annotations", str(folder), "--out", str(out)]
    command += [text for name in rows for text in ("--row", ROW.format(name))]
    command += [text for seed in seeds for text in ("--seed", str(seed))]
    command += [text for setting in settings for text in ("--set", setting)]
    command += ["--tuned", str(trials)] if trials else []
    print("$ meidbench", *command, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "meidbench", *command], check=True, stdout=subprocess.DEVNULL)


def find_predictions(out: Path, names: list[str]) -> dict[str, list[Path]]:
    """Return the prediction files of each row of a reproduced table."""
    rows = {row["name"]: row for row in json.loads((out / "table3.json").read_text(encoding="utf-8"))["rows"]}
    found = {}
    for name in names:
        runs = rows[ROW.format(name)]["ours"]["runs"]
        folders = [out / run if "/" in run else out / "runs" / run for run in runs]
        found[name] = [folder / "predictions-test.parquet" for folder in folders]
    return found


def fit_probe(out: Path, split: Path, settings: list[str]) -> Path:
    """Fit the linear probe, which has no published budget and nothing to search, and return its predictions."""
    (features,) = (out / "published" / "features").glob("*.h5")
    command = ["train", "--split", str(split), "--features", str(features), "--method", PROBE]
    command += ["--out", str(out / PROBE)]
    for setting in settings:
        if setting.startswith("proxy.frames="):
            command += ["--set", setting.replace("proxy.frames", "frames.test")]
    print("$ meidbench", *command, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "meidbench", *command], check=True, stdout=subprocess.DEVNULL)
    return out / PROBE / "predictions-test.parquet"


def compare(runs: dict[str, list[Path]], split: Path, replicates: int) -> Comparison:
    """Compare the methods with the last one."""
    seeds = {name: paths if len(paths) > 1 else paths[0] for name, paths in runs.items()}
    return mb.compare(seeds, split, reference=list(runs)[-1], replicates=replicates)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def describe(method: MethodResult, comparison: Comparison) -> list[str]:
    """Return the cells of a method: budget, means, and the differences to the reference overall and in the tail."""
    budget = describe_budgets(method.budgets)
    cells = [NAMES[method.name], *(budget[name] for name in ("steps", "rate", "batch"))]
    cells += [f"{method.mAP[group].value:.3f}" for group in GROUPS]
    if method.seed_spread is not None:
        cells[4] += f" ({method.seed_spread['overall'].low:.3f} to {method.seed_spread['overall'].high:.3f})"
    for group in ("overall", "tail"):
        if method.difference is None or method.corrected is None:
            cells.append("")
            continue
        entry = method.difference[group]
        star = "*" if method.corrected[group] <= 0.05 else ""
        cells.append(f"{format_signed(entry.value)}{star} {format_interval(entry.low, entry.high, with_sign=True)}")
    return cells


def list_order(comparison: Comparison, group: str) -> list[str]:
    """Return the names of the methods, the best first."""
    return [m.name for m in sorted(comparison.methods, key=lambda method: -method.mAP[group].value)]


def holds(comparison: Comparison, one: str, other: str, group: str) -> bool:
    """Return whether one method is better than another after Holm's correction."""
    against = {method.name: method for method in comparison.with_reference(other).methods}[one]
    assert against.difference is not None and against.corrected is not None
    return against.difference[group].value > 0 and against.corrected[group] <= 0.05


def print_conclusions(both: dict[str, Comparison]) -> None:
    """Print the lead of the last method, the orders, and the pairs whose order holds in one and not in the other."""
    for group in ("overall", "tail"):
        leads = []
        for title, comparison in both.items():
            last, value = comparison.reference, {m.name: m.mAP[group].value for m in comparison.methods}
            other = max(value.keys() - {last, PROBE}, key=value.__getitem__)
            leads.append(f"{value[last] - value[other]:.3f} over {NAMES[other]} ({title})")
        print(f"- {NAMES[last]}'s lead over the best other row, {group}: {', '.join(leads)}.")
        for title, comparison in both.items():
            order = ", ".join(NAMES[name] for name in list_order(comparison, group))
            print(f"- Order, {group}, {title}: {order}.")
        kept, lost, turned = [], [], []
        published, tuned = both.values()
        for pair in combinations([method.name for method in published.methods], 2):
            for one, other in (pair, pair[::-1]):
                if holds(published, one, other, group):
                    text = f"{NAMES[one]} over {NAMES[other]}"
                    same, opposite = holds(tuned, one, other, group), holds(tuned, other, one, group)
                    (kept if same else turned if opposite else lost).append(text)
        total = len(kept) + len(lost) + len(turned)
        print(f"- Of {total} differences that hold with the published settings, {group}, {len(kept)} survive", end="")
        for what, texts in (("are gone", lost), ("are turned round", turned)):
            print(f"; {len(texts)} {what}" + (f" ({'; '.join(texts)})" if texts else ""), end="")
        print(".")
    print()


def main() -> None:
    """Run, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--row", choices=METHODS, action="append", dest="rows")
    parser.add_argument("--seed", type=int, action="append", dest="seeds")
    parser.add_argument("--set", action="append", dest="settings", default=None, metavar="KEY=VALUE")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("budgets"))
    asked = parser.parse_args()
    rows = asked.rows or list(METHODS)
    settings = asked.settings or ["proxy.frames=16", "aggregator.name=nonlinear"]
    for kind, trials in (("published", 0), ("tuned", asked.trials)):
        reproduce(asked.annotations, asked.out / kind, rows, asked.seeds or [1, 2], settings, trials)
    split = next((asked.out / "published" / "splits").glob("words-charadeslt-*.parquet"))
    probe = {PROBE: [fit_probe(asked.out, split, settings)]}
    runs = {kind: probe | find_predictions(asked.out / kind, rows) for kind in ("published", "tuned")}
    titles = ["published settings", f"{asked.trials} trials each"]
    both = {title: compare(runs[kind], split, asked.replicates) for title, kind in zip(titles, runs, strict=True)}
    every = {f"{name}, {kind}": paths for kind, of_kind in runs.items() for name, paths in of_kind.items()}
    reference = f"{rows[-1]}, published"
    page = mb.comparison_html(mb.compare(every, split, reference=reference, replicates=asked.replicates))
    (asked.out / "report.html").write_text(page, encoding="utf-8")
    facts = {"trials": asked.trials, "settings": " ".join(settings), "out": asked.out}
    arguments = " ".join(["Charades/", *sys.argv[2:]])
    print(_INTRODUCTION.format(watermark=WATERMARKS["words"], arguments=arguments, **facts))
    if "meid" not in rows:
        print("MEID is not among these rows: its runs are the longest.\n")
    columns = [f"{group}, to {METHODS[rows[-1]]}" for group in ("overall", "tail")]
    for title, comparison in both.items():
        searched = {method.name: method.budgets for method in comparison.methods if method.name != PROBE}
        unequal = describe_inequality(searched) or "The trials are equal; the steps differ by at most a factor of 2."
        print(f"## {title[0].upper()}{title[1:]}\n\n{unequal}\n")
        cells = [describe(method, comparison) for method in comparison.methods]
        print_table(["method", "steps", "rate", "batch", *GROUPS, *columns], cells)
    print("## Which conclusions survive\n")
    print_conclusions(both)
    print(_LIMITS)


if __name__ == "__main__":
    main()
