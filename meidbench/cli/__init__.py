"""The command line ``meidbench``. Nothing heavy is imported until a command runs."""

from typing import Any

import click

from meidbench import __version__
from meidbench.cli.benchmarks import datasets, download
from meidbench.cli.evaluation import compare, evaluate
from meidbench.cli.features import extract_features, merge_features, pack_features, verify_features
from meidbench.cli.parameters import guarded_streams
from meidbench.cli.splits import audit, build_splits, import_split, stats
from meidbench.cli.training import demo, predict, reproduce, train
from meidbench.errors import MeidbenchError


class _Group(click.Group):
    """Commands in the order of use; a problem with the data ends with exit code 1 and a message, not a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        with guarded_streams():
            return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeidbenchError as error:
            raise click.ClickException(str(error)) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  meidbench demo\n"
    "  meidbench download charadeslt --accept-licence\n"
    "  meidbench build-splits charadeslt\n"
    "  meidbench evaluate predictions.npz --split charadeslt",
)
@click.version_option(__version__, prog_name="meidbench")
def main() -> None:
    """Long-tailed multi-label video recognition: exact splits, features, baselines and one evaluator.

    A first run, offline, is 'meidbench demo'. Results go to stdout, everything else to stderr. Exit code 0: success; 1:
    a problem with the data; 2: a wrong call.
    """


# In the order of use.
for command in (datasets, download, build_splits, import_split, stats, audit):
    main.add_command(command)
for command in (extract_features, merge_features, pack_features, verify_features):
    main.add_command(command)
for command in (train, predict, evaluate, compare, reproduce, demo):
    main.add_command(command)
