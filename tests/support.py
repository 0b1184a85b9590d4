"""Helpers that tests import."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """Compares text with a file under tests/golden, or writes it there."""

    def __init__(self, update: bool):
        self.update = update

    def check(self, relative_path: str, text: str) -> None:
        path = GOLDEN / relative_path
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{relative_path} is missing; run pytest --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8")


@dataclass
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


#: Runs ``dpc`` with these arguments, and ``stdin=`` for standard input.
Dpc = Callable[..., Outcome]


class Postgresql:
    """A server of PostgreSQL on this machine, from nothing, that trusts whoever comes."""

    def __init__(self, programs: Path) -> None:
        self.programs, self.count = programs, 0
        self.folder = Path(tempfile.mkdtemp(prefix="dpcdsl-postgresql"))
        self.user: list[str] = []
        if os.getuid() == 0:  # it refuses to run as root; the package has made a user for it
            known = pwd.getpwnam("postgres")
            os.chown(self.folder, known.pw_uid, known.pw_gid)
            self.user = ["runuser", "-u", "postgres", "--"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        command = [*self.user, str(self.programs / program), *arguments]
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        log = str(self.folder / "log")
        with Path(os.devnull).open("w") as nowhere:  # a server that keeps our pipe would keep us waiting
            command = [*self.user, str(self.programs / "pg_ctl"), "-D", str(self.folder / "data"), "-l", log, "-w"]
            subprocess.run(
                [*command, "-o", options, "start"], cwd="/", stdout=nowhere, stderr=nowhere, timeout=120, check=True
            )

    def stop(self, how: str = "fast") -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "-w", "stop")

    def database(self) -> str:
        self.count += 1
        name = f"test{self.count}"
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)
