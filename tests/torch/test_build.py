"""The native kernels' library: built once, found again, never half of one, and never a reason to fail.

Every compiler here is a real one, or a script that stands before it; every process is a real process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpcdsl import DpcError
from dpcdsl_torch import build
from dpcdsl_torch.build import Absent, Native, Recipe
from dpcdsl_torch.cache import alone
from dpcdsl_torch.cache import folder as cache_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native kernels are built on Linux only")

SOURCE = """
#include "answer.h"
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC int answer() { return ANSWER; }
PUBLIC long sum(long n) {
    long total = 0;
#pragma omp parallel for reduction(+ : total)
    for (long i = 0; i < n; ++i) total += i;
    return total;
}
"""

#: A script that passes everything on to g++, and notes every compilation with its own process id.
WRAPPER = """#!/bin/sh
case " $* " in *" -c "*) echo $$ >> '{log}';; esac
{before}
exec g++ "$@"
"""

Wrapper = Callable[[str], str]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("CXX", "DPCDSL_NATIVE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DPCDSL_CACHE", str(tmp_path / "from_environment"))
    build.forget()
    yield
    build.forget()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "cpu.cpp").write_text(SOURCE)
    (folder / "answer.h").write_text("#ifndef ANSWER\n#define ANSWER 42\n#endif\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def wrapper(tmp_path: Path, log: Path) -> Wrapper:
    """Makes the path of a compiler that does something before it compiles."""

    def write(before: str = "") -> str:
        return script(tmp_path / "wrapper", WRAPPER.format(log=log, before=before))

    return write


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def native(outcome: Native | Absent) -> Native:
    assert isinstance(outcome, Native), outcome
    return outcome


def absent(outcome: Native | Absent) -> Absent:
    assert isinstance(outcome, Absent), outcome
    assert outcome.remedy
    return outcome


def compilations(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def run(code: str, *arguments: object, before: tuple[str, ...] = (), **environment: str) -> str:
    """What a new process prints, which has ``build`` and runs ``code``; nothing may be told on stderr."""
    code = "import os, sys\nfrom pathlib import Path\nimport torch\nfrom dpcdsl_torch import build\n" + code
    command = [*before, sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Building and finding


def test_built_then_found(sources: Path, cache: Path, wrapper: Wrapper, log: Path) -> None:
    compiler = wrapper(f"echo >> '{log}.all'")
    first = native(build.build(sources, cache, compiler))
    assert first.built
    assert first.uncached is None
    assert first.library.answer() == 42
    assert first.path.parent == cache
    assert " for " in first.maker
    started = Path(f"{log}.all").read_text()
    again = [native(build.build(sources, cache, compiler)) for _ in range(5)]
    assert not any(found.built for found in again)
    assert {(found.path, found.maker) for found in again} == {(first.path, first.maker)}
    assert min(found.seconds for found in again) < 0.06
    assert Path(f"{log}.all").read_text() == started, "no process is started to find a library"
    assert sorted(path.name for path in cache.iterdir()) == sorted([first.path.name, "lock"])


def test_whatever_decides_what_a_library_is_decides_its_key(sources: Path, tmp_path: Path) -> None:
    recipe = Recipe.of(sources)
    others = {
        "flags": replace(recipe, flags=(*recipe.flags, "-g")),
        "torch": replace(recipe, torch_version="2.11.0"),
        "openmp": replace(recipe, openmp=Path("lib/libgomp-a34b3233.so.1")),
        "processor": replace(recipe, processor=(("model name", "another"),)),
        "arguments": Recipe.of(sources, "g++ -O1"),
        "compiler": Recipe.of(sources, script(tmp_path / "other", "#!/bin/sh\n")),
    }
    script(tmp_path / "other", "#!/bin/sh\n# mended\n")
    others["mended compiler"] = Recipe.of(sources, str(tmp_path / "other"))
    (sources / "answer.h").write_text("#define ANSWER 43\n")
    others["header"] = Recipe.of(sources)
    (sources / "answer.h").rename(sources / "answers.h")
    others["name"] = Recipe.of(sources)
    keys = {recipe.key, *(other.key for other in others.values())}
    assert len(keys) == 1 + len(others), {name: other.key for name, other in others.items()}
    assert recipe.torch_version == torch.__version__


def test_the_same_recipe_has_the_same_key(sources: Path, tmp_path: Path) -> None:
    key = Recipe.of(sources).key
    (sources / "notes.txt").write_text("no source")
    os.utime(sources / "cpu.cpp", (0, 0))
    assert Recipe.of(sources).key == key
    moved = Path(shutil.copytree(sources, tmp_path / "moved"))
    assert Recipe.of(moved).key == key


def test_changed_sources_and_flags_are_built_anew(sources: Path, cache: Path) -> None:
    old = native(build.build(sources, cache))
    (sources / "answer.h").write_text("#ifndef ANSWER\n#define ANSWER 43\n#endif\n")
    new = native(build.build(sources, cache))
    flagged = native(build.build(sources, cache, flags=(*build.FLAGS, "-DANSWER=44")))
    assert [each.library.answer() for each in (old, new, flagged)] == [42, 43, 44]
    assert all(each.built for each in (old, new, flagged))


def test_cxx_may_have_arguments(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ '-DANSWER=6 * 7 + 3'")
    assert native(build.build(sources, cache)).library.answer() == 45


def test_nan_and_infinity_are_kept(sources: Path, cache: Path) -> None:
    (sources / "cpu.cpp").write_text(
        'extern "C" __attribute__((visibility("default"))) int kept(double x) { return (x != x) + 2 * (x - x != 0); }'
    )
    kept = native(build.build(sources, cache)).library.kept
    kept.argtypes = [build.ctypes.c_double]
    assert [kept(x) for x in (1.0, float("nan"), float("inf"))] == [0, 3, 2]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DPCDSL_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/kernels"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/dpcdsl/kernels"),
        ({"HOME": "/c"}, "/c/.cache/dpcdsl/kernels"),
        ({"DPCDSL_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/dpcdsl/kernels"),
        ({"DPCDSL_CACHE": "~/x", "HOME": "/c"}, "/c/x/kernels"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPCDSL_CACHE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


# Many processes, and some that die

FORKS = """
import signal
build.KERNELS = Path(sys.argv[1])
start, gate = os.pipe()
build._process.lock.acquire()  # as if another thread were loading
children = []
for _ in range(16):
    child = os.fork()
    if not child:
        signal.alarm(30)
        os.close(gate)
        os.read(start, 1)  # until all are there
        outcome = build.load()
        os._exit(2 + outcome.built if isinstance(outcome, build.Native) and outcome.library.answer() == 42 else 1)
    children.append(child)
os.close(gate)
print(sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_sixteen_processes_compile_once(sources: Path, cache: Path, wrapper: Wrapper, log: Path) -> None:
    """They are forked while a thread of their parent holds the lock, too: that must not stop them."""
    compiler = wrapper("sleep 0.3")
    ended = run(FORKS, sources, CXX=compiler, DPCDSL_CACHE=str(cache))
    assert ended.strip() == str([2] * 15 + [3])
    assert compilations(log) == 1


def test_threads_share_one_library(sources: Path, wrapper: Wrapper, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "KERNELS", sources)
    monkeypatch.setenv("CXX", wrapper("sleep 0.1"))
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: native(build.load()), range(8)))
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert compilations(log) == 1
    assert build.require() is outcomes[0]


def test_a_process_killed_half_way_is_in_nobodys_way(
    sources: Path, cache: Path, wrapper: Wrapper, log: Path, tmp_path: Path
) -> None:
    compiler = wrapper(f'case " $* " in *" -c "*) test -e \'{tmp_path}/on\' || sleep 60;; esac')
    code = "from dpcdsl_torch import build, eager\nimport sys\nfrom pathlib import Path\n"
    code += "build.build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])"
    process = subprocess.Popen([sys.executable, "-c", code, sources, cache, compiler])
    try:
        until(lambda: compilations(log) == 1)
        process.kill()
        process.wait()
        (tmp_path / "on").touch()
        # The compiler of the one that was killed still runs: it must not hold the lock.
        os.killpg(int(log.read_text()), 0)
        start = time.monotonic()
        outcome = native(build.build(sources, cache, compiler))
        assert time.monotonic() - start < 10
        assert outcome.built
        assert outcome.uncached is None
        assert outcome.library.answer() == 42
    finally:
        process.kill()
        process.wait()
        os.killpg(int(log.read_text().split()[0]), signal.SIGKILL)
    (left,) = cache.glob("part-*")
    os.utime(left, (time.time() - 7200,) * 2)
    native(build.build(sources, cache, flags=(*build.FLAGS, "-g")))
    assert not left.exists()


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_lock_that_is_never_given_back_is_waited_for_only_so_long(cache: Path) -> None:
    with alone(cache_made(cache), 1):
        start = time.monotonic()
        with alone(cache, 0.3):
            assert 0.3 <= time.monotonic() - start < 5
    with alone(cache, 5):
        assert time.monotonic() - start < 5


def cache_made(cache: Path) -> Path:
    cache.mkdir(mode=0o700)
    return cache


# A cache that is broken, or that is none


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
        lambda data: data + b"\0",
        lambda data: data[:64],
    ],
    ids=["empty", "half", "short", "flipped", "long", "digest"],
)
def test_a_damaged_library_is_replaced(
    damage: Callable[[bytes], bytes], sources: Path, cache: Path, tmp_path: Path
) -> None:
    whole = native(build.build(sources, cache))
    # In another folder: a process does not load a library a second time.
    damaged = cache_made(tmp_path / "damaged") / whole.path.name
    damaged.write_bytes(damage(whole.path.read_bytes()))
    outcome = native(build.build(sources, damaged.parent))
    assert (outcome.built, outcome.uncached, outcome.path) == (True, None, damaged)
    assert outcome.library.answer() == 42
    assert outcome.maker == whole.maker


@pytest.mark.parametrize("where", ["below a file", "/proc/dpcdsl", "a file", "no such user"])
def test_where_there_can_be_no_cache_the_library_is_built_aside(
    where: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    caches = {"below a file": tmp_path / "file" / "x" / "kernels", "a file": tmp_path / "file", "no such user": None}
    monkeypatch.setenv("DPCDSL_CACHE", "~no-such-user-9/x")
    outcome = native(build.build(sources, caches.get(where, Path(where))))
    assert outcome.built
    assert outcome.uncached
    assert outcome.library.answer() == 42
    assert not list((tmp_path / "temporary").iterdir()), "nothing is left of it"


def test_without_a_home_folder(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("DPCDSL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(build, "KERNELS", sources)
    outcome = native(build.load())
    assert outcome.library.answer() == 42
    fact = build.status()["native kernels"]
    assert fact.startswith(f"active, built with {outcome.maker} in every process, since the cache cannot be used: ")
    assert "file/home/.cache/dpcdsl" in fact


def test_no_place_at_all(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    outcome = absent(build.build(sources, tmp_path / "file" / "kernels"))
    assert outcome.reason.startswith("there is no place for their library: ")
    assert "DPCDSL_CACHE" in outcome.remedy


MOUNTED = """
sources, folder = map(Path, sys.argv[1:])
outcome = build.build(sources, folder)
print(type(outcome).__name__, outcome.built, outcome.uncached, outcome.library.answer())
"""


@pytest.mark.parametrize("options", ["ro", "size=8k", "noexec"])
def test_a_file_system_that_is_read_only_or_full_or_not_for_programs(options: str, sources: Path, cache: Path) -> None:
    enter = ("unshare", "--map-root-user", "--mount")
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    mount = f"mount -t tmpfs -o mode=700,{options} tmpfs '{cache_made(cache)}' && exec \"$@\""
    told = run(MOUNTED, sources, cache, before=(*enter, "sh", "-c", mount, "sh"))
    assert told.startswith("Native True ")
    assert told.endswith(" 42\n")
    told = told.removeprefix("Native True ")
    assert {"ro": "Read-only", "size=8k": "No space left", "noexec": "failed to map"}[options] in told, told


def test_a_cache_that_others_may_write_is_not_used(sources: Path, cache: Path) -> None:
    made = native(build.build(sources, cache))
    assert cache.stat().st_mode & 0o777 == 0o700
    assert made.path.stat().st_mode & 0o022 == 0
    cache.chmod(0o777)
    outcome = native(build.build(sources, cache))
    assert (outcome.built, outcome.uncached) == (True, f"{cache}: other users may change it")
    cache.chmod(0o700)
    made.path.chmod(0o666)
    assert native(build.build(sources, cache)).uncached == f"{made.path}: other users may change it"
    made.path.chmod(0o644)
    assert not native(build.build(sources, cache)).built


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["the folder", "the file"])
def test_what_belongs_to_another_user_is_not_loaded(whose: str, sources: Path, cache: Path) -> None:
    made = native(build.build(sources, cache))
    os.chown(cache if whose == "the folder" else made.path, 54321, 54321)
    outcome = native(build.build(sources, cache))
    assert outcome.built
    assert "other users may change it" in str(outcome.uncached)


def test_a_generous_umask_does_not_open_the_cache(sources: Path, cache: Path) -> None:
    before = os.umask(0)
    try:
        native(build.build(sources, cache))
    finally:
        os.umask(before)
    assert not native(build.build(sources, cache)).built


def test_libraries_that_nobody_uses_go(sources: Path, cache: Path) -> None:
    used, unused = (native(build.build(sources, cache, flags=(*build.FLAGS, flag))) for flag in ("-g1", "-g2"))
    for each in (used, unused):
        os.utime(each.path, (time.time() - 40 * 86_400,) * 2)
    assert not native(build.build(sources, cache, flags=(*build.FLAGS, "-g1"))).built
    native(build.build(sources, cache))
    assert used.path.exists()
    assert not unused.path.exists()


# Compilers that are missing, fail, hang, or are of another kind


def test_no_compiler(sources: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    outcome = absent(build.build(sources, cache))
    assert outcome == Absent("there is no C++ compiler (g++, c++)", "install g++, or set CXX to one")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/g++ -O1", "CXX names /nowhere/g++, and there is no such program"),
        ("'g++", "CXX='g++ cannot be read: No closing quotation"),
        ("true", "/true compiled nothing"),
        ("false", "/false failed (status 1)"),
    ],
)
def test_no_compiler_where_cxx_points(
    compiler: str, reason: str, sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    outcome = absent(build.build(sources, cache))
    assert reason in outcome.reason
    assert "CXX" in outcome.remedy


def test_a_compiler_that_cannot_be_started(sources: Path, cache: Path, tmp_path: Path) -> None:
    outcome = absent(build.build(sources, cache, script(tmp_path / "text", "not a program")))
    assert outcome.reason == "the compiler cannot be started: " + f"{tmp_path / 'text'}: Exec format error"


def test_a_compiler_that_fails(sources: Path, cache: Path) -> None:
    (sources / "cpu.cpp").write_text('#pragma GCC warning "much"\n' * 1000 + "int answer = no_such_name;\n")
    outcome = absent(build.build(sources, cache))
    assert "g++ failed (status 1): cpu.cpp:1001:14: error: " in outcome.reason
    assert "no_such_name" in outcome.reason
    assert "much" not in outcome.reason
    assert len(outcome.reason) < 500
    assert outcome.reason.isprintable()
    assert [path.name for path in cache.iterdir()] == ["lock"], "nothing is left of it"


def test_a_symbol_that_nothing_defines_is_found_when_linking(sources: Path, cache: Path) -> None:
    (sources / "cpu.cpp").write_text('extern "C" int elsewhere(); int here() { return elsewhere(); }\n')
    assert "undefined reference to `elsewhere'" in absent(build.build(sources, cache)).reason


def test_a_compiler_that_hangs_is_ended_with_its_children(
    sources: Path, cache: Path, wrapper: Wrapper, log: Path
) -> None:
    # Two processes: the script, and what it waits for.
    compiler = wrapper('case " $* " in *" -c "*) sleep 60; exit 1;; esac')
    outcome = absent(build.build(sources, cache, compiler, limit=0.5))
    assert outcome.reason == f"{compiler} took more than 0.5 s and was stopped"
    until(lambda: not alive(int(log.read_text())))


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_compiler_that_does_not_know_this_processor(sources: Path, cache: Path, wrapper: Wrapper, log: Path) -> None:
    refuse = "echo \"cc1plus: error: bad value ('native') for '-march=' switch\" >&2; exit 1"
    outcome = native(build.build(sources, cache, wrapper(f'case " $* " in *" -march=native "*) {refuse};; esac')))
    assert outcome.maker.endswith(f" for any {os.uname().machine}")
    assert outcome.library.answer() == 42
    assert compilations(log) == 2


def test_clang_is_told_apart(sources: Path, cache: Path, tmp_path: Path) -> None:
    clang = script(tmp_path / "c++", "#!/bin/sh\necho Debian clang version 14.0.6\n")
    outcome = absent(build.build(sources, cache, clang))
    assert outcome.reason == f"{clang} is Clang, which compiles OpenMP for another runtime than torch's, libgomp"
    assert outcome.remedy == "set CXX to a g++"


def test_no_sources(tmp_path: Path, cache: Path) -> None:
    assert "cannot be read" in absent(build.build(tmp_path / "nowhere", cache)).reason
    assert "are not in" in absent(build.build(tmp_path, cache)).reason


# OpenMP

OPENMP = """
outcome = build.build(Path(sys.argv[1]), Path(sys.argv[2]))
torch.set_num_threads(3)
assert torch.rand(1000, 1000).mul(2).sum() > 0
threads = len(os.listdir("/proc/self/task"))
assert outcome.library.sum(1000) == 499500
print(len(os.listdir("/proc/self/task")) - threads, threads >= 3)
maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
print(*(os.path.basename(path) for path in maps if "gomp" in path or "iomp" in path or "libomp" in path))
"""


def test_one_openmp_runtime_and_one_pool_of_threads(sources: Path, cache: Path) -> None:
    pool, runtimes = run(OPENMP, sources, cache, OMP_NUM_THREADS="3").splitlines()
    assert pool == "0 True", "the kernel runs on torch's threads"
    assert len(runtimes.split()) == 1, runtimes


def test_the_library_asks_for_the_openmp_that_torch_brings(sources: Path, tmp_path: Path) -> None:
    """Many of torch's wheels have libgomp under a name of their own; the system's must not come along with it."""
    stub, code = tmp_path / "libgomp-a34b3233.so.1", tmp_path / "stub.c"
    names = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
    code.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    command = ["g++", "-x", "c", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{stub.name}", "-o", stub, code]
    subprocess.run(command, check=True)
    recipe = Recipe.of(sources, "g++ -Wl,--no-as-needed")  # as many a linker has it
    assert recipe.openmp is None or recipe.openmp.parent == Path(torch.__file__).parent / "lib"
    for openmp, needed in ((stub, stub.name), (None, "libgomp.so.1")):
        folder = cache_made(tmp_path / f"for {needed}")
        library = build._compile(replace(recipe, openmp=openmp), folder, 60)
        names = {name for name in library.read_bytes().split(b"\0") if name.startswith(b"libgomp")}
        assert names == {needed.encode()}


# Once a process


def test_turned_off(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "KERNELS", sources)
    monkeypatch.setenv("DPCDSL_NATIVE", "0")
    outcome = absent(build.load())
    assert "DPCDSL_NATIVE=0" in outcome.reason
    assert build.status() == {"native kernels": f"not active: {outcome.reason}; {outcome.remedy}"}
    with pytest.raises(DpcError) as caught:
        build.require()
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "DPC080"
    assert outcome.reason in diagnostic.message
    assert diagnostic.hint == outcome.remedy
    monkeypatch.setenv("DPCDSL_NATIVE", "1")
    assert build.load() is outcome, "asked once a process"
    build.forget()
    assert native(build.load()).library.answer() == 42


def test_one_message_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(build.warn_once) for _ in range(20)]:
                done.result()
    (message,) = caught
    assert message.category is UserWarning
    outcome = absent(build.load())
    for part in (outcome.reason, "running on ATen, slower, same results", outcome.remedy):
        assert part in str(message.message)


def test_no_message_where_there_are_kernels(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "KERNELS", sources)
    build.warn_once()  # warnings are errors here
    outcome = native(build.load())
    fact = f"active, built with {outcome.maker}, cached at {outcome.path}"
    assert build.status() == {"native kernels": fact}
