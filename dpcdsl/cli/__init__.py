"""The command line, ``dpc``. One module for each group of commands; heavy imports stay inside the commands."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from dpcdsl.cli import (
    comparing,
    compiling,
    data,
    doctor,
    enumerating,
    evaluating,
    language,
    proxying,
    reporting,
    reranking,
    searching,
    start,
    training,
    views,
)
from dpcdsl.cli.common import load_plugins
from dpcdsl.errors import DpcError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dpcdsl", message="dpc %(version)s")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE|MODULE",
    help="Import a Python file or module first, for the operators it registers. May be repeated.",
)
def dpc(plugins: tuple[str, ...]) -> None:
    """Dense Prediction Cells: check, convert, draw, cost, count, sample and compile them.

    A CELL is a file, FILE.dpc:NAME, a name of the zoo (top1, aspp, pspnet, denseaspp), a JSON file (DeepLab's too), the
    cell itself such as '(F, conv1x1, Y1)', an ID such as dpc@0123456789ab:42, or - for standard input. A SPACE is a
    file, FILE.dpc:NAME, or a name of the zoo (dpc, aspp_subsets), with its parameters and a condition if need be:
    'dpc(B=8) where depth <= 3'.
    """
    load_plugins(plugins)


for command in (
    language.check,
    language.fmt,
    language.convert,
    views.cost_command,
    views.draw_command,
    views.explain_command,
    comparing.diff_command,
    enumerating.count_command,
    enumerating.sample_command,
    enumerating.enumerate_command,
    enumerating.rank_command,
    enumerating.unrank_command,
    enumerating.neighbours_command,
    comparing.distance_command,
    comparing.canonical_command,
    compiling.compile_command,
    data.data_command,
    training.train_command,
    evaluating.eval_command,
    evaluating.predict_command,
    evaluating.analyze_command,
    proxying.cache_command,
    proxying.proxy_command,
    searching.search_command,
    reranking.rerank_command,
    reranking.fidelity_command,
    reporting.report_command,
    start.init,
    start.completion,
    doctor.doctor,
):
    dpc.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``dpc`` and exit: 0 for success, 1 for invalid input or a failed check, 2 for wrong usage."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started this
        sys.exit(1)
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text, and a terminal need not be UTF-8
            stream.reconfigure(encoding="utf-8", errors=errors)
    try:
        code = dpc.main(args=list(arguments) if arguments is not None else None, prog_name="dpc", standalone_mode=False)
        sys.stdout.flush()
    except DpcError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader has gone, as `head` does
        _silence()
        sys.exit(141)
    except OSError as error:
        _silence()
        reason = (error.strerror or str(error)).lower()
        what = f"{error.filename} cannot be used" if error.filename else "standard output cannot be written"
        click.echo(f"error: {what}: {reason} [DPC060]", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _silence() -> None:
    """What is still to be written goes nowhere, so that closing it in the end fails no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
