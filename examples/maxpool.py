"""An operator of one's own, in twenty lines: written in text, costed, drawn, and compiled.

`dpc --plugin examples/maxpool.py explain '(F, maxpool window 3x5, Y1)'` reads it on the command line.
"""

from dataclasses import dataclass

import dpcdsl

# What it is made of: a layer that knows no framework. Without weights, so cost needs nothing more.


@dataclass(frozen=True)
class MaxPool(dpcdsl.Layer):
    window: dpcdsl.Size

    def taps(self, axis: int) -> tuple[int, ...]:
        half = (self.window[axis] - 1) // 2
        return tuple(range(-half, self.window[axis] - half))


def maxpool(filters: int, window: dpcdsl.Size) -> list[dpcdsl.Layer]:
    return [MaxPool(window), dpcdsl.Convolution("conv", filters)]


dpcdsl.register_operator(dpcdsl.OperatorKind("maxpool", maxpool, (dpcdsl.Pair("window"),), label="Max pool\n{window}"))


def lower_to_torch() -> None:
    """How torch runs the layer. Only what compiles the cell needs torch."""
    from torch import nn

    from dpcdsl_torch import lowering

    @lowering.register(MaxPool)
    def lower_max_pool(layer: MaxPool, context: lowering.Context) -> nn.Module:  # noqa: ARG001
        before = [(size - 1) // 2 for size in layer.window]
        after = [size - 1 - b for size, b in zip(layer.window, before, strict=True)]
        padding = nn.ConstantPad2d((before[1], after[1], before[0], after[0]), float("-inf"))
        return nn.Sequential(padding, nn.MaxPool2d(layer.window, stride=1))


def main() -> None:
    import torch

    lower_to_torch()
    cell = dpcdsl.parse_cell("(F, maxpool window 3x5, Y1) (Y1, sepconv3x3 rate 6x6, Y2)")
    print(dpcdsl.explain(cell, features=64, size=(33, 33)))
    dpcdsl.draw(cell, title="with a maxpool").save("maxpool.svg")
    module = dpcdsl.compile(cell, in_channels=64)
    output = module(torch.randn(2, 64, 33, 33))
    output.sum().backward()
    print(f"\nran forward and backward: {tuple(output.shape)}; drew maxpool.svg")


if __name__ == "__main__":
    main()
