"""``dpc doctor``: what is installed, what is active, and why."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata

import click

from dpcdsl.cli.common import json_option, print_json

_EXTRAS = {
    "segmentation": (
        *("torch", "timm", "torchvision", "torchmetrics", "tensorboard", "safetensors", "matplotlib", "scipy"),
        "filelock",
    ),
    "search": ("optuna", "scipy", "psycopg"),
    "cluster": ("ray", "fsspec"),
}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this installation can do, and what would bring the rest."""
    facts = {
        "dpcdsl": metadata.version("dpcdsl"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: _version(name) for name in ("lark", "pydantic", "numpy", "networkx")},
        "diagrams": _diagrams(),
        "compilers": _compilers(),
        **_torch(),
        **{name: _extra(name) for name in _EXTRAS},
        "C++ compiler": _program("g++", "c++", "clang++"),
    }
    if as_json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for name, fact in facts.items():
        click.echo(f"{name:<{width}}  {fact}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"missing; pip install {name}"


def _extra(name: str) -> str:
    """Whether what an extra brings is there."""
    missing = [package for package in _EXTRAS[name] if _version(package).startswith("missing")]
    return f"without {', '.join(missing)}; pip install 'dpcdsl[{name}]'" if missing else "ready"


def _program(*names: str) -> str:
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        return "none found"
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path}, which does not run: {error}"
    return shown.splitlines()[0] if shown else path


def _diagrams() -> str:
    if shutil.which("dot"):
        return "SVG, PNG and PDF, by the `dot` of this system"
    version = _version("pygraphviz")
    if version.startswith("missing"):
        return "only DOT text; install Graphviz or pip install pygraphviz"
    return f"SVG, PNG and PDF, by the Graphviz inside pygraphviz {version}"


def _compilers() -> str:
    from dpcdsl.compilers import targets

    return ", ".join(targets()) or "none"


def _torch() -> dict[str, str]:
    version = _version("torch")
    if version.startswith("missing"):
        return {"torch": "missing; pip install 'dpcdsl[torch]' brings the eager module and its exports"}
    probe = (
        "import json, torch; a = torch.cuda.is_available();"
        "print(torch.get_num_threads(), torch.cuda.get_device_name(0) if a else 'none', sep='\\n');"
        "from dpcdsl_torch import build, launch; print(json.dumps(build.status() | launch.status()))"
    )
    # In a process of its own: a broken installation must not take the report with it.
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"torch": f"{version}, which does not import: {done.stderr.strip().splitlines()[-1:]}"}
    threads, device, kernels = done.stdout.strip().splitlines()
    missing = [name for name in ("onnx", "onnxscript") if _version(name).startswith("missing")]
    return {
        "torch": f"{version}, {threads} threads",
        "CUDA device": device,
        **json.loads(kernels),
        "ONNX export": f"needs {' and '.join(missing)}; pip install 'dpcdsl[onnx]'" if missing else "available",
    }
