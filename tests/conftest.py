"""What all tests share: golden text, Hypothesis profiles, and skipping by what this machine has."""

from __future__ import annotations

import gc
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from support import Dpc, Golden, Outcome, Postgresql

from dpcdsl import operators
from dpcdsl.cli import main

# Tests run side by side, and so do the processes that they start: a thread for each is enough.
os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("brute_force", "searches")
settings.register_profile("test", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("test")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")
    parser.addoption("--soak", action="store_true", help="run the long tests too")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.config.getoption("--update-golden"))


@pytest.fixture
def dpc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dpc:
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: str | bytes = "") -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        code = left.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def postgresql_server(needs: Callable[[str], str]) -> Iterator[Postgresql]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian has them, off the path
    server = Postgresql(Path(needs("initdb")).parent if not programs else programs[-1])
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgresql(postgresql_server: Postgresql) -> Callable[[], str]:
    """Makes an empty database, and gives its URL."""
    return postgresql_server.database


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a study may be kept."""
    if request.param == "sqlite":
        return str(tmp_path / "search.db")
    database: Callable[[], str] = request.getfixturevalue("postgresql")
    return database()


@pytest.fixture
def studies_are_closed() -> Iterator[None]:
    """Those that `searches` has opened for a test."""
    import searches

    yield
    while searches.OPEN:
        searches.OPEN.pop().close()


@pytest.fixture
def shipped_operators() -> Iterator[None]:
    """Only the paper's kinds are registered, whatever other test modules have added: messages list them."""
    shipped = {name: kind for name, kind in operators.kinds().items() if name in ("conv1x1", "sepconv3x3", "avgpool")}
    with patch.object(operators, "_registry", shipped):
        yield


@pytest.fixture(scope="session")
def needs() -> Callable[[str], str]:
    """``needs("g++")`` skips the test where a program is missing, or fails it under DPCDSL_REQUIRE=all."""

    def check(program: str) -> str:
        found = shutil.which(program)
        if found is None:
            reason = f"{program} is not installed (`make deps` brings it)"
            if os.environ.get("DPCDSL_REQUIRE") == "all":
                pytest.fail(reason)
            pytest.skip(reason)
        return found

    return check


def pytest_collection_finish() -> None:
    """What has been imported and collected will not go away: the garbage collector need not look at it ever again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what ends now may look for what is still there


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        soak = [item for item in items if "soak" in item.keywords]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if "soak" not in item.keywords]
