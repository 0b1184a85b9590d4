"""The main job on real input: the published top-1 cell, read from DeepLab's JSON and taken all the way."""

from __future__ import annotations

import time
from pathlib import Path

import dpcdsl
from dpcdsl.cost import paper_table1
from dpcdsl.explain import spelled_histogram, table

HERE = Path(__file__).parent
OUT = Path("demo")


def heading(text: str) -> None:
    print(f"\n── {text} " + "─" * max(0, 76 - len(text)))


def read() -> dpcdsl.Cell:
    heading("The published cell, DeepLab JSON to text")
    published = (HERE / "top1_deeplab.json").read_text(encoding="utf-8")
    print(published)
    top1 = dpcdsl.from_deeplab(published)
    print(dpcdsl.format_cell(top1, "top1"))
    assert top1 == dpcdsl.zoo()["top1"].value, "the zoo's top1 is the published cell"
    dpcdsl.parse(dpcdsl.format_cell(top1, "top1"))
    print("valid, and equal to `top1` of the zoo")
    return top1


def mistake() -> None:
    heading("What a mistake looks like")
    try:
        dpcdsl.parse("cell mine {\n  (F,  sepconv rate 6x6, Y1)\n  (Y7, conv1x1,          Y2)\n}\n", name="mine.dpc")
    except dpcdsl.DpcError as error:
        print(error)


def explained(top1: dpcdsl.Cell) -> None:
    heading("Explained")
    print(dpcdsl.explain(top1, name="top1"))


def drawn(top1: dpcdsl.Cell) -> None:
    heading("Drawn")
    picture = dpcdsl.draw(top1, title="top1")
    for name in ("top1.svg", "top1.png"):
        picture.save(OUT / name)
    dpcdsl.draw_receptive_field(top1).save(OUT / "top1_receptive_field.svg")
    dpcdsl.draw(dpcdsl.read_space("dpc"), title="the paper's space").save(OUT / "space.svg")
    for path in sorted(OUT.glob("*.svg")) + sorted(OUT.glob("*.png")):
        print(f"{path}  {path.stat().st_size:,} bytes")


def counted(top1: dpcdsl.Cell) -> None:
    heading("One of 4.2e11")
    space = dpcdsl.read_space("dpc")
    cells = dpcdsl.enumerator(space)
    print(f"top1 is number {cells.rank(top1):,} of {cells.count:,}: {dpcdsl.cell_id(top1, space, 'dpc')}")
    assert cells.unrank(cells.rank(top1)) == top1
    print(f"its canonical form, whatever the order of its branches:\n  {dpcdsl.canonical(top1)}")
    print(
        f"cells that differ from it in one input or operator: {dpcdsl.neighbours(top1).count}; five others, at random:"
    )
    for cell in cells.sample(5, seed=0):
        print(f"  {cell}")
    print("\nHow many cells there are, exactly:\n")
    cheap = dpcdsl.read_space("dpc where params(F=320) <= 0.40M and madds(F=320, at=65x129) <= 3.0G")
    head = ["B", "genomes", "up to isomorphism", "functions at 33x33", "functions at 13x13"]
    lines = [head]
    for branches in (1, 2, 3, 4, 5, 6, 8):
        one = dpcdsl.read_space(f"dpc(B={branches})")
        counts = [dpcdsl.count(one), dpcdsl.count(one, "isomorphism")]
        counts += [dpcdsl.count(one, "function", at=at) for at in ((33, 33), (13, 13))]
        lines.append([str(branches), *(f"{count:,}" for count in counts)])
    print(table(lines, right=(0, 1, 2, 3, 4)))
    print(f"\nwith at most 0.40M parameters and 3.0G multiply-adds: {dpcdsl.count(cheap):,}")
    print("\nParameters over the whole space, on 320 channels:\n")
    values = dpcdsl.distribution(space, dpcdsl.parse_measure("params(F=320)"))
    print(spelled_histogram({value: count for (value,), count in values.items()}, 20, "params(F=320)"))


def costed(top1: dpcdsl.Cell) -> None:
    heading("Cost beside the paper's Table 1")
    print("convolutions only, image 1025x2049, output stride 16\n")
    aspp = dpcdsl.read_cell("aspp")
    rows = paper_table1(top1, aspp)
    lines = [["backbone", "module", "params", "paper", "MAdds", "paper"]]
    lines += [[r.backbone, r.module, f"{r.params:,}", r.paper_params, f"{r.madds:,}", r.paper_madds] for r in rows]
    print(table(lines, right=(2, 3, 4, 5)))
    for note in dict.fromkeys(row.note for row in rows if row.note):
        print(f"Note: {note}.")


def run(top1: dpcdsl.Cell) -> None:
    heading("Run: forward and backward on a 320-channel 65x129 map")
    import torch

    torch.manual_seed(0)
    module = dpcdsl.compile(top1, in_channels=320, projection=256)
    features = torch.randn(1, 320, 65, 129, requires_grad=True)
    began = time.perf_counter()
    output = module(features)
    output.square().mean().backward()
    took = time.perf_counter() - began
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    print(f"{tuple(features.shape)} -> {tuple(output.shape)}, gradient norm {features.grad.norm():.3e}, {took:.2f} s")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    top1 = read()
    mistake()
    for step in (explained, drawn, counted, costed, run):
        step(top1)


if __name__ == "__main__":
    main()
