"""The PyTorch compiler of dpcdsl: a cell becomes an ``nn.Module``.

``eager`` is plain PyTorch, one module a layer: the oracle that everything faster is judged by.
"""

from dpcdsl_torch import eager, lowering
from dpcdsl_torch.deeplab_variables import load_deeplab_variables
from dpcdsl_torch.module import CompiledCell, compile_cell
from dpcdsl_torch.reference import EagerCell, parameter_groups, weight_decay_parameters

__all__ = [
    "CompiledCell",
    "EagerCell",
    "compile_cell",
    "eager",
    "load_deeplab_variables",
    "lowering",
    "parameter_groups",
    "weight_decay_parameters",
]
