"""The methods as data, without torch: their names, titles, papers and published numbers, from ``recipes/NAME.toml``."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

from meidbench.checks import Table, parse_toml

METHOD_NAMES = (
    *("bce", "focal", "cb", "ldam", "eql", "cbs", "srs", "mixup", "framestack", "db", "asl", "logit_adjusted"),
    *("repeat_factor", "class_aware", "meid_block", "meid_one", "meid", "move_aggregator", "move"),
    *("linear_probe", "text_adapter"),
)
PUBLISHED_TABLES = {
    "table2": "MEID, Table 2",
    "table3": "MEID, Table 3",
    "table4": "MEID, Table 4",
    "supp5": "MEID, supplementary Table 5",
    "rivals": "MOVE, from a second-hand source",
    "modelzoo": "VideoLT, MODELZOO.md",
    "animalkingdom": "Animal Kingdom, README",
}
COMPAT_ENDING = "-compat"
# The forms of a method that behave like public code, by the section of its recipe: ending of the name, description.
PUBLIC_FORMS = {
    "compat": (COMPAT_ENDING, "as in VideoLT's public code"),
    "release": ("-release", "as its authors' public code has it"),
}
_GROUPS = ("overall", "head", "medium", "tail")


@dataclass(frozen=True)
class MethodFacts:
    """A method, or a form of it that behaves like public code."""

    name: str
    title: str
    paper: str  # authors, venue and year
    published: tuple[Table, ...]  # rows with table, dataset, encoder, aggregator and mAP, as the recipe has them
    form_of: str = ""  # the method that it is a form of; empty for the method itself

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks with published numbers."""
        return tuple(dict.fromkeys(row["dataset"] for row in self.published))

    def to_json(self) -> Table:
        """Return the content for JSON; mAP is by group."""
        rows = [
            {**row, "source": PUBLISHED_TABLES[row["table"]], "mAP": dict(zip(_GROUPS, row["mAP"], strict=True))}
            for row in self.published
        ]
        facts = {"method": self.name, "title": self.title, "paper": self.paper, "form_of": self.form_of or None}
        return {**facts, "benchmarks": list(self.benchmarks), "published": rows}


@cache
def read_recipe_file(name: str) -> Table:
    """Return the content of ``baselines/recipes/NAME.toml``."""
    path = resources.files("meidbench.baselines") / "recipes" / f"{name}.toml"
    return parse_toml(path.read_text(encoding="utf-8"))


def list_methods() -> list[MethodFacts]:
    """Return every method, each before its forms; the published numbers of a method stand at all its forms.

    Examples
    --------
    >>> [method.name for method in list_methods()][:2], list_methods()[0].benchmarks
    (['bce', 'bce-compat'], ('videolt', 'animalkingdom'))
    """
    methods = []
    for name in METHOD_NAMES:
        content = read_recipe_file(name)
        title, paper, published = content["title"], content["paper"], tuple(content["published"])
        methods.append(MethodFacts(name, title, paper, published))
        for section, (ending, description) in PUBLIC_FORMS.items():
            if section in content:
                methods.append(MethodFacts(f"{name}{ending}", f"{title}, {description}", paper, published, name))
    return methods


def methods_table() -> str:
    """Return the methods as lines of at most 80 characters, for a terminal."""
    lines = ["method           title (paper), and the benchmarks with published numbers", f"{'-' * 15}  {'-' * 63}"]
    every = list_methods()
    for method in (method for method in every if not method.form_of):
        forms = ", ".join(form.name.removeprefix(method.name) for form in every if form.form_of == method.name)
        lines.append(f"{method.name:15}  {method.title} ({method.paper})")
        lines.append(f"  {forms:13}  {', '.join(method.benchmarks) or 'no published numbers'}")
    forms = "NAME-compat behaves like VideoLT's public code, NAME-release like its authors'."
    example = "Train one: meidbench train --method NAME --split SPLIT --features FILE"
    return "\n".join([*lines, "", forms, example])
