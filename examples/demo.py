"""The main job on real input: the published top-1 cell, read from DeepLab's JSON and taken all the way."""

from __future__ import annotations

import time
from pathlib import Path

import dpcdsl
from dpcdsl.cost import paper_table1
from dpcdsl.explain import table

HERE = Path(__file__).parent
OUT = Path("demo")


def heading(text: str) -> None:
    print(f"\n── {text} " + "─" * max(0, 76 - len(text)))


def main() -> None:
    OUT.mkdir(exist_ok=True)

    heading("The published cell, DeepLab JSON to text")
    published = (HERE / "top1_deeplab.json").read_text(encoding="utf-8")
    print(published)
    top1 = dpcdsl.from_deeplab(published)
    print(dpcdsl.format_cell(top1, "top1"))
    assert top1 == dpcdsl.zoo()["top1"].value, "the zoo's top1 is the published cell"
    dpcdsl.parse(dpcdsl.format_cell(top1, "top1"))
    print("valid, and equal to `top1` of the zoo")

    heading("What a mistake looks like")
    try:
        dpcdsl.parse("cell mine {\n  (F,  sepconv rate 6x6, Y1)\n  (Y7, conv1x1,          Y2)\n}\n", name="mine.dpc")
    except dpcdsl.DpcError as error:
        print(error)

    heading("Explained")
    print(dpcdsl.explain(top1, name="top1"))

    heading("Drawn")
    picture = dpcdsl.draw(top1, title="top1")
    for name in ("top1.svg", "top1.png"):
        picture.save(OUT / name)
    dpcdsl.draw_receptive_field(top1).save(OUT / "top1_receptive_field.svg")
    dpcdsl.draw(dpcdsl.read_space("dpc"), title="the paper's space").save(OUT / "space.svg")
    for path in sorted(OUT.glob("*.svg")) + sorted(OUT.glob("*.png")):
        print(f"{path}  {path.stat().st_size:,} bytes")

    heading("Cost beside the paper's Table 1")
    print("convolutions only, image 1025x2049, output stride 16\n")
    aspp = dpcdsl.read_cell("aspp")
    rows = paper_table1(top1, aspp)
    lines = [["backbone", "module", "params", "paper", "MAdds", "paper"]]
    lines += [[r.backbone, r.module, f"{r.params:,}", r.paper_params, f"{r.madds:,}", r.paper_madds] for r in rows]
    print(table(lines, right=(2, 3, 4, 5)))
    for note in dict.fromkeys(row.note for row in rows if row.note):
        print(f"Note: {note}.")

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


if __name__ == "__main__":
    main()
