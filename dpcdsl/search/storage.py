"""Where a study is kept: a SQLite file, or any database of Optuna's by its URL. What Optuna has no word for is here.

A worker reads what has changed since it last looked, and keeps nothing of the trials but what it needs: Optuna's own
reading keeps every trial in the memory of every worker.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import URL as _URL
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from dpcdsl.errors import DpcError
from dpcdsl.search.records import ATTRIBUTE, Record

__all__ = ["OUTAGE", "Pulse", "Seen", "changes", "open_storage", "patiently", "stale"]

T = TypeVar("T")

#: Seconds that a database may be away.
OUTAGE = 300.0


def open_storage(where: str, new: bool = True) -> RDBStorage:
    """``where``: a file, or a URL such as ``postgresql+psycopg://user@host/name``. new: a file need not be there yet.

    Raises :class:`DpcError` (DPC098) if it cannot be opened.
    """
    try:
        url = (
            sqlalchemy.make_url(where)
            if "://" in where
            else _URL.create("sqlite", database=str(Path(where).absolute()))
        )
    except SQLAlchemyError as error:
        raise DpcError.of("DPC098", f"this is no URL of a database: {error}", place=where) from None
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if is_file := url.get_backend_name() == "sqlite":
        engine["connect_args"] = {"timeout": 60}
        file = Path(url.database or "")
        if not file.parent.is_dir():
            raise DpcError.of("DPC098", f"there is no folder {file.parent}", place=where)
        if not new and not file.is_file():
            raise DpcError.of("DPC098", "there is no such file", place=where, hint="`dpc search SPACE` begins a study")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it warns of is told by the study
    try:
        storage = _made(url, engine)
        if is_file:
            with storage.engine.connect() as connection:  # readers and a writer do not wait for each other
                connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
            _lock_whole_transactions(storage.engine)
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError, RuntimeError) as error:
        said = str(getattr(error, "orig", None) or error.__cause__ or error).strip().splitlines()
        hint = "a file, or a URL of SQLAlchemy's; its driver has to be installed (psycopg for PostgreSQL)"
        if isinstance(error, RuntimeError):  # the database is of another version of Optuna's; it says what to do
            hint = "copy the database first: an upgrade cannot be undone"
        raise DpcError.of(
            "DPC098",
            f"the study's storage cannot be opened: {said[0] if said else type(error).__name__}",
            place=where,
            hint=hint,
        ) from None
    return storage


class _Storage(RDBStorage):
    """Leaves no connection behind where it cannot be made."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        try:
            super().__init__(*arguments, **options)
        except BaseException:
            if hasattr(self, "scoped_session"):
                self.scoped_session.remove()
                self.engine.dispose()
            raise


def _made(url: _URL, engine: dict[str, Any]) -> RDBStorage:
    """Several that come to an empty database at once all make its tables, of which only one succeeds."""
    for again in range(5):
        try:
            # As text it would have to be escaped: twice, since Optuna fills in templates.
            return _Storage(url.render_as_string(hide_password=False), engine_kwargs=engine)
        except (ProgrammingError, IntegrityError, OperationalError) as error:
            if again == 4 or not re.search("already exists|duplicate key|UNIQUE", str(error)):
                raise
            time.sleep(0.5)
    raise AssertionError


def _lock_whole_transactions(engine: sqlalchemy.Engine) -> None:
    """Has SQLite lock from a transaction's begin to its end, as other databases do by FOR UPDATE.

    By default a transaction begins with the first change: two workers may both see a trial wait, and both take it.
    """

    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # sqlite3 begins no transaction by itself

    def begins(connection: sqlalchemy.Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", connected)
    sqlalchemy.event.listen(engine, "begin", begins)
    engine.dispose()  # the connections until now


def _reading(storage: RDBStorage) -> sqlalchemy.Connection:
    """For one query: it needs no transaction."""
    return storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def patiently(call: Callable[[], T], outage: float = OUTAGE) -> T:
    """What ``call`` returns, tried again while the database is away, for ``outage`` seconds at most."""
    until, pause = time.monotonic() + outage, 0.05
    while True:
        try:
            return call()
        except (StorageInternalError, SQLAlchemyError) as error:
            if time.monotonic() > until:
                said = str(error.__cause__ or error).strip().splitlines()
                raise DpcError.of("DPC098", f"the study's storage does not answer: {said[0]}") from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


class Seen(NamedTuple):
    """A trial as it was seen. record: None before it is written, which takes a moment where Optuna has sampled it."""

    id: int
    number: int
    state: TrialState
    record: Record | None

    @property
    def is_lost(self) -> bool:
        """Whether its worker has gone, and no one has said why it should not be run again."""
        return (
            self.state == TrialState.FAIL
            and self.record is not None
            and self.record.failure is None
            and self.record.withdrawn is None
        )


def changes(storage: RDBStorage, study: int, after: int, unfinished: Iterable[int]) -> list[Seen]:
    """Trials with an ID above ``after``, and those of ``unfinished``, as they are now, by their numbers."""
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    query = (
        sqlalchemy.select(trial.trial_id, trial.number, trial.state, attribute.value_json)
        .outerjoin(attribute, sqlalchemy.and_(attribute.trial_id == trial.trial_id, attribute.key == ATTRIBUTE))
        .where(trial.study_id == study)
        .where(sqlalchemy.or_(trial.trial_id > after, trial.trial_id.in_(list(unfinished))))
        .order_by(trial.number)
    )
    with _reading(storage) as connection:
        return [
            Seen(row[0], row[1], row[2], None if row[3] is None else Record.model_construct(**json.loads(row[3])))
            for row in connection.execute(query)
            if row[1] is not None
        ]


def stale(storage: RDBStorage, study: int, grace: float) -> list[int]:
    """The IDs of running trials whose worker has not been heard of for ``grace`` seconds of the database's clock.

    A worker that dies before it has ever been heard of would be waited for forever: such a trial is given a first sign
    of life here, once.
    """
    trial, heartbeat = models.TrialModel, models.TrialHeartbeatModel
    query = (
        sqlalchemy.select(trial.trial_id, heartbeat.heartbeat, sqlalchemy.func.now())
        .outerjoin(heartbeat, heartbeat.trial_id == trial.trial_id)
        .where(trial.study_id == study, trial.state == TrialState.RUNNING)
    )
    with _reading(storage) as connection:
        rows = connection.execute(query).all()
    found = []
    for trial_id, last, now in rows:
        if last is None:
            storage.record_heartbeat(trial_id)
        elif now.replace(tzinfo=None) - last > timedelta(seconds=grace):
            found.append(trial_id)
    return found


class Pulse:
    """Signs of life of a trial while it runs, every ``interval`` seconds; an outage of the database is waited out."""

    def __init__(self, storage: RDBStorage, trial_id: int, interval: float) -> None:
        self._storage, self._id, self._interval = storage, trial_id, interval
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):  # the next one may get through
                self._storage.record_heartbeat(self._id)
            if self._ended.wait(self._interval):
                self._storage.remove_session()
                return
