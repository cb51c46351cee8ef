"""The parts of a study: its trials, the facts that it is bound to, its folder, and its storage."""

import csv
import hashlib
import io
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meidbench.baselines.configuration import Config, without_execution
from meidbench.baselines.inputs import Inputs
from meidbench.baselines.search import Searched
from meidbench.checks import read_json, show
from meidbench.errors import MeidbenchError, RequestError, bullet_list, missing_package
from meidbench.evaluation.results import GROUPS_SHOWN, MeanAP
from meidbench.files import locked, render_json, written_whole
from meidbench.names import WATERMARKS

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

FORMAT_VERSION = 1
COMPLETE, PRUNED, FAILED, UNFINISHED = "complete", "pruned", "failed", "unfinished"


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a study.

    Attributes
    ----------
    number : int
        From 0; trial 0 has the published values.
    state : str
        ``complete``, ``pruned`` (its run ended early), ``failed`` (its training diverged, or memory was not enough), or
        ``unfinished``.
    value : float or None
        The objective, of a complete trial.
    values : dict
        The searched values by key.
    settings : tuple of str
        All settings that ``resolve`` and ``meidbench train --set`` take for this run.
    mAP : MeanAP or None
        On val, of a complete trial.
    steps : int
        Steps of the optimiser, in all stages.
    reason : str
        Why it failed.
    path : Path
        The run's folder, where the trial ran in this study's folder.
    """

    number: int
    state: str
    value: float | None
    values: Mapping[str, Any]
    settings: tuple[str, ...]
    mAP: MeanAP | None
    steps: int
    reason: str
    path: Path


@dataclass(frozen=True)
class StudyFacts:
    """The facts that a study is bound to."""

    base: Config
    inputs: Inputs
    searched: tuple[Searched, ...]
    objective: str
    seed: int

    def to_tables(self) -> dict[str, Any]:
        """Return tables for JSON."""
        return {
            "config": self.base.to_tables(),
            "inputs": vars(self.inputs),
            "space": {entry.key: _describe_range(entry) for entry in self.searched},
            "objective": self.objective,
            "seed": self.seed,
        }

    def name(self) -> str:
        """Return the name of the study in its storage: of the same facts on every machine, of no other ones."""
        inputs = self.inputs
        content = {
            **self.to_tables(),
            "config": without_execution(self.base.to_tables()),
            "inputs": [inputs.split_digest, inputs.content_digest, inputs.features_digest, inputs.recipe_digest],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"meidbench-{inputs.dataset}-{self.base.method}-{digest[:16]}"

    @property
    def watermark(self) -> str:
        """The text that marks numbers on features of which no video was seen; empty for others."""
        return WATERMARKS.get(self.inputs.backbone, "")

    def list_differences(self, there: Mapping[str, Any]) -> list[str]:
        """Return one line per difference from a study's file; raise ``KeyError`` and the like for damage."""
        lines = Config.from_tables(there["config"]).differences(self.base)
        lines += Inputs.from_table(there["inputs"]).differences(self.inputs)
        here, before = self.to_tables(), {f"{key} of the space": value for key, value in there["space"].items()}
        now = {f"{key} of the space": value for key, value in here["space"].items()}
        for name in ("objective", "seed"):
            before[name], now[name] = there[name], here[name]
        lines += [
            f"{key}: {_show_fact(before, key)} in the run, {_show_fact(now, key)} asked for"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        return [line.replace(" in the run", " in the study") for line in lines]


def _describe_range(entry: Searched) -> dict[str, Any]:
    if entry.choices:
        return {"choices": list(entry.choices)}
    return {"low": entry.low, "high": entry.high, "log": entry.log}


def _show_fact(facts: Mapping[str, Any], key: str) -> str:
    if key not in facts:
        return "no search"
    fact = facts[key]
    if not isinstance(fact, dict):
        return show(fact)
    return ", ".join(f"{name} {show(fact[name])}" for name in ("low", "high", "log", "choices") if name in fact)


class StudyFolder:
    """``STUDY/``: study.json, study.db, trials.csv, and one run per trial in ``trials/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = path / "study.json"
        self.database = path / "study.db"
        self.table = path / "trials.csv"
        self.trials = path / "trials"

    def run(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.trials / f"{number:04d}"

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from taking trials here; wait for them."""
        return locked(self.facts, lambda: None)

    @contextmanager
    def claim(self, number: int) -> Iterator[None]:
        """Keep a trial for this process; raise ``BlockingIOError`` where another process has it."""

        def refuse() -> None:
            raise BlockingIOError

        with locked(self.run(number), refuse):
            yield

    def open(self, facts: StudyFacts, storage: str | None = None) -> str:
        """Begin a study, or make sure that the folder holds this one; return the name by which a storage knows it."""
        kind = "file" if storage is None else "server"
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock():
            if not self.facts.is_file():
                if any(self.path.glob("[!.]*")):
                    raise MeidbenchError(
                        f"{self.path} is not empty and holds no study; name another folder with out=..."
                    )
                self._write_facts(
                    {"format_version": FORMAT_VERSION, "folder": secrets.token_hex(8), **facts.to_tables()}
                )
            there = read_json(self.facts)
            try:
                if there["format_version"] != FORMAT_VERSION:
                    raise MeidbenchError(f"it is of version {show(there['format_version'])}, not {FORMAT_VERSION}")
                problems, owner = facts.list_differences(there), str(there["folder"])
                began = there.get("storage", kind)  # it is not known before a storage was opened
            except (MeidbenchError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise MeidbenchError(f"{self.facts} is damaged: {str(error)[:500]}") from None
        if problems:
            raise MeidbenchError(
                f"{self.path} holds another study:\n{bullet_list(problems, 8)}\n"
                "Name another folder with out=..., or use the settings and inputs that the study began with."
            )
        if began != kind:
            raise RequestError(
                f"the study of {self.path} is in its file {self.database.name}; leave out storage=..."
                if kind == "server"
                else f"the study of {self.path} is in the database of a server; name its address with storage=..."
            )
        self.trials.mkdir(exist_ok=True)
        return owner

    def is_bound(self) -> bool:
        """Return whether a storage of this study was opened before."""
        return "storage" in read_json(self.facts)

    def bind(self, storage: str | None) -> None:
        """Record the kind of the storage that was opened; the folder is locked."""
        if not self.is_bound():
            self._write_facts({**read_json(self.facts), "storage": "file" if storage is None else "server"})

    def _write_facts(self, content: Mapping[str, Any]) -> None:
        with written_whole(self.facts) as temporary:
            temporary.write_text(render_json(content), encoding="utf-8")

    def write_table(self, records: Sequence[TrialRecord], facts: StudyFacts) -> None:
        """Write one row per trial, with a column per searched key."""
        keys = [entry.key for entry in facts.searched]
        rows: list[list[Any]] = [["trial", "state", "value", *GROUPS_SHOWN, "steps", "reason", "watermark", *keys]]
        for record in records:
            means = {} if record.mAP is None else asdict(record.mAP)
            numbers = [record.value, *map(means.get, GROUPS_SHOWN)]
            cells = ["" if number is None or math.isnan(number) else number for number in numbers]
            values = [record.values.get(key, "") for key in keys]
            rows.append([record.number, record.state, *cells, record.steps, record.reason, facts.watermark, *values])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        with written_whole(self.table) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def find_best(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial with the best value, of equal ones the first; None where none is complete."""
    complete = [record for record in records if record.value is not None]
    return max(complete, key=lambda record: (record.value or 0.0, -record.number), default=None)


# --- the storage ----------------------------------------------------------------------------------------------------


@contextmanager
def open_storage(url: str | None, database: Path) -> Iterator["optuna.storages.RDBStorage"]:
    """Open a SQLite file, or the database of a server; its connections end with the block."""
    storage = _connect(url, database)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _connect(url: str | None, database: Path) -> "optuna.storages.RDBStorage":
    import sqlalchemy
    from optuna.storages import RDBStorage

    if url is None:
        # No address has to be made of a path, which may hold any character.
        connect = partial(sqlite3.connect, database.absolute(), timeout=60)
        return RDBStorage("sqlite://", {"creator": connect, "poolclass": sqlalchemy.pool.NullPool})
    address = _read_address(url).render_as_string(hide_password=False)
    for attempt in range(5):
        try:
            # A connection may be hours old, as the training of a trial takes as long.
            return RDBStorage(address, {"pool_pre_ping": True})
        except (sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            if attempt == 4:
                raise
            time.sleep(0.5)  # another machine makes the tables at this moment
        except ImportError as error:
            cause = error.__cause__
            if not isinstance(cause, ModuleNotFoundError):
                raise error from None
            if cause.name == "psycopg":
                raise missing_package(cause) from None
            raise MeidbenchError(
                f"the driver of such a database is the Python module {cause.name}, which is not installed; its "
                "package may have another name"
            ) from None
    raise AssertionError


def _read_address(url: str) -> "sqlalchemy.engine.URL":
    """Return the address of a database; refuse SQLite, which several machines cannot share."""
    import sqlalchemy

    example = "such as postgresql+psycopg://USER@HOST/DATABASE"
    try:
        address = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise RequestError(f"storage is no address of a database; expected one {example}") from None
    if address.get_backend_name() == "sqlite":
        raise RequestError(
            f"storage is for the server of a database, {example}; without storage=... the study is a SQLite file in "
            "its folder, which the processes of one machine share"
        )
    return address.set(drivername="postgresql+psycopg") if address.drivername == "postgresql" else address


@contextmanager
def telling_of_storage(url: str | None, folder: StudyFolder) -> Iterator[None]:
    """Make a plain error of a storage that fails, without the password in its address."""
    import sqlalchemy
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        if url is None:
            raise MeidbenchError(
                f"{folder.database} cannot be used: {reason}\nThe same command goes on when it can; of a damaged file, "
                "put back a copy, or begin again in another folder"
            ) from None
        address = _read_address(url)
        # Drivers also take a password after the question mark: ?password= and ?sslpassword=, MySQL's ?passwd=.
        query = {key: "***" for key in address.query if "passw" in key.lower()}
        secrets = [address.password, *(part for key in query for part in _as_tuple(address.query[key]))]
        for secret in filter(None, secrets):
            reason = reason.replace(str(secret), "***")
        shown = address.update_query_dict(query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
        kept = "\nThe trials are kept; the same command goes on" if folder.is_bound() else ""
        raise MeidbenchError(f"the storage {shown} cannot be used: {reason}{kept}") from None


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
