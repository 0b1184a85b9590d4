"""``dpc check``, ``dpc fmt`` and ``dpc convert``: the language itself."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import click

from dpcdsl.cli.common import as_value, cell_argument, cell_of, json_option, print_json, read_stdin
from dpcdsl.errors import Diagnostic, DpcError, Source
from dpcdsl.files import read_text, write_whole
from dpcdsl.interchange import FORMS, cell_from_text, spell
from dpcdsl.references import read_space
from dpcdsl.syntax import MAX_CHARACTERS, format_text, is_definable, parse

_limit = click.option(
    "--max-characters", type=click.IntRange(1), default=MAX_CHARACTERS, show_default=True, help="Largest text to read."
)


def _source(file: str, max_characters: int) -> tuple[Source, Path]:
    if file == "-":
        return Source("<stdin>", read_stdin()), Path()
    return read_text(Path(file), max_characters), Path(file).parent


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@_limit
@json_option
def check(files: tuple[str, ...], max_characters: int, as_json: bool) -> None:
    """Validate files; tell all mistakes of all of them."""
    report: list[dict[str, Any]] = []
    errors = 0
    for file in files:
        try:
            contents = _contents(file, max_characters)
            report.append({"file": file, "ok": True, **contents, "diagnostics": []})
            if not as_json:
                click.echo(f"{file}: ok, {_counted(contents)}")
        except DpcError as error:
            errors += len(error.diagnostics) + error.more
            click.echo(str(error), err=True)
            report.append({"file": file, "ok": False, "diagnostics": [_as_json(d, file) for d in error.diagnostics]})
    if as_json:
        print_json({"ok": not errors, "files": report})
    if errors:
        click.echo(f"{errors} mistake{'s' if errors > 1 else ''}", err=True)
        sys.exit(1)


def _contents(file: str, max_characters: int) -> dict[str, list[str]]:
    source, folder = _source(file, max_characters)
    if source.text.lstrip()[:1] in ("[", "{"):
        cell_from_text(source.text, name=source.name, max_characters=max_characters)
        return {"cells": [""], "operator_sets": [], "spaces": []}
    document = parse(source.text, name=source.name, folder=folder, max_characters=max_characters)
    return {
        "cells": list(document.cells),
        "operator_sets": list(document.operator_sets),
        "spaces": [d.name for d in document if d.noun == "space"],
    }


def _counted(contents: dict[str, list[str]]) -> str:
    words = {"cells": "cell", "operator_sets": "operator set", "spaces": "space"}
    parts = [f"{len(n)} {words[k]}{'s' if len(n) > 1 else ''}" for k, n in contents.items() if n]
    return ", ".join(parts) or "nothing in it"


def _as_json(d: Diagnostic, file: str) -> dict[str, Any]:
    line, column = d.span.position if d.span else (None, None)
    file = d.span.source.name if d.span else file
    return {"code": d.code, "message": d.message, "help": d.hint, "file": file, "line": line, "column": column}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 and show what would change.")
@_limit
@json_option
def fmt(files: tuple[str, ...], only_check: bool, max_characters: int, as_json: bool) -> None:
    """Lay files out in the one style, in place (- from standard input to standard output)."""
    changed: list[str] = []
    failed = False
    for file in files:
        try:
            source, _ = _source(file, max_characters)
            text = format_text(source.text, name=source.name, max_characters=max_characters)
            original = source.text if file == "-" else Path(file).read_bytes().decode("utf-8")
            if text != original:
                changed.append(file)
                if only_check and not as_json:
                    lines = difflib.unified_diff(
                        source.text.splitlines(), text.splitlines(), file, f"{file}, formatted", lineterm=""
                    )
                    click.echo("\n".join(lines))
                elif not only_check and file != "-":
                    write_whole(Path(file), text)
            if file == "-" and not only_check and not as_json:
                click.echo(text, nl=False)
        except DpcError as error:
            click.echo(str(error), err=True)
            failed = True
    if as_json:
        print_json({"ok": not failed and not (only_check and changed), "changed": changed})
    elif changed != ["-"] and changed:
        click.echo(f"{len(changed)} of {len(files)} {'would change' if only_check else 'changed'}", err=True)
    if failed or (only_check and changed):
        sys.exit(1)


@click.command()
@cell_argument
@click.option("--to", "form", type=click.Choice(FORMS), required=True, help="The form to write.")
@click.option("--space", metavar="SPACE", help="The space of a vector or an ID; default the paper's.")
@click.option("--name", help="The cell's name in the text.")
@json_option
def convert(cell: str, form: str, space: str | None, name: str | None, as_json: bool) -> None:
    """Write a cell in another of its forms."""
    found, value = cell_of(cell, space)
    if name is not None and not is_definable(name):
        raise DpcError.of("DPC033", f"`{name[:60]}` cannot be the name of a cell", hint="choose a plain word")
    called = name if name is not None else found if is_definable(found) else None
    text = spell(value, form, name=called, space=read_space(space) if space else None, space_name=space)
    if as_json:
        print_json({"form": form, "cell": as_value(text, form)})
    else:
        click.echo(text)
