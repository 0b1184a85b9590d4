"""``dpc init`` and ``dpc completion``: to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from dpcdsl.cli.common import json_option, print_json
from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole

_FIRST_FILE = """\
dpc 1  # the version of the language

# Names can be taken from the zoo that comes with dpcdsl, or from files of your own: from "other.dpc" import NAME.
from zoo import top1, paper, dpc

# A cell is a list of branches (input, operator, output). F is the backbone's last feature map, and a branch may read F
# or the output of an earlier branch. The cell's output is the concatenation of all branch outputs.
cell mine {
  (F,  conv1x1,               Y1)
  (F,  sepconv3x3 rate 6x6,   Y2)
  (Y2, sepconv3x3 rate 12x12, Y3)
  (Y1, avgpool grid 1x1,      Y4)
}

# An operator set lists choices. Sets in braces multiply: this one has 1 + 3 * 3 operators.
ops small = conv1x1 | sepconv3x3 rate {1, 6, 12} x {1, 6, 12}

# A space is the same list with choices left open: `any` input, a set of operators, optional branches, `_` for the next
# output. B is a parameter with a default; write tiny(B=4) for another value.
space tiny(B = 3) {
  B * (any, small, _)
  optional (F, avgpool grid 1x1, _)
}

# Conditions keep part of a space. params and madds count convolutions only, as the paper's Table 1 does.
space cheap = dpc where params(F=320) <= 0.40M and madds(F=320, at=65x129) <= 3.0G
space near = dpc where distance(top1) <= 2
"""


@click.command()
@click.argument("directory", metavar="[DIR]", default=".")
@json_option
def init(directory: str, as_json: bool) -> None:
    """Write a commented first file, cells.dpc, to start from."""
    path = Path(directory) / "cells.dpc"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DpcError.of("DPC060", f"{directory} cannot be made: {(error.strerror or str(error)).lower()}") from None
    if path.exists():
        raise DpcError.of("DPC060", f"{path} exists already", hint="name another folder, or move the file away")
    write_whole(path, _FIRST_FILE)
    if as_json:
        print_json({"file": str(path)})
    else:
        click.echo(f"wrote {path}\nnow try:  dpc check {path}\n          dpc explain {path}:mine")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete dpc's commands, options and names.

    \b
    bash: eval "$(dpc completion bash)"             in ~/.bashrc
    zsh:  eval "$(dpc completion zsh)"              in ~/.zshrc
    fish: dpc completion fish > ~/.config/fish/completions/dpc.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    command = click.get_current_context().find_root().command
    click.echo(found(command, {}, "dpc", "_DPC_COMPLETE").source())
