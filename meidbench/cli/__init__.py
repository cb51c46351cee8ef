"""The command line ``meidbench``: one file a command; nothing heavy is imported until a command runs."""

from typing import Any

import click

from meidbench import __version__
from meidbench.cli.benchmarks import datasets, download
from meidbench.cli.evaluation import compare, evaluate
from meidbench.cli.features import extract_features, merge_features, pack_features, verify_features
from meidbench.cli.splits import audit, build_splits, import_split, stats
from meidbench.cli.training import demo, predict, reproduce, train
from meidbench.errors import MeidbenchError


class _Group(click.Group):
    """Ends with exit code 1 and a message, never a traceback, where the data is at fault."""

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
        return list(self.commands)  # in the order of use, not of the alphabet


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meidbench")
def main() -> None:
    r"""Long-tailed multi-label video recognition: exact splits, features, baselines and one evaluator.

    \b
    A first run, offline: meidbench demo
    \b
    With real annotations:
      meidbench download charadeslt --accept-licence
      meidbench build-splits charadeslt
      meidbench evaluate predictions.parquet --split charadeslt

    Results go to stdout, everything else to stderr. Exit code 0: done; 1: the data is at fault; 2: the call is.
    """


for command in (
    datasets,
    download,
    build_splits,
    import_split,
    stats,
    audit,
    extract_features,
    merge_features,
    pack_features,
    verify_features,
    train,
    predict,
    evaluate,
    compare,
    reproduce,
    demo,
):
    main.add_command(command)
