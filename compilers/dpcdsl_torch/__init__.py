"""The PyTorch compiler of dpcdsl: a cell becomes an ``nn.Module``.

``compile_cell`` makes the fused module, by a plan and kernels; ``EagerCell`` is plain PyTorch, one module a layer: the
oracle that everything faster is judged by. Both have the same parameters.
"""

from dpcdsl_torch import eager, fused, lowering
from dpcdsl_torch.deeplab_variables import load_deeplab_variables
from dpcdsl_torch.depthwise import depthwise_conv2d
from dpcdsl_torch.loss import upsampled_cross_entropy
from dpcdsl_torch.module import CompiledCell, compile_cell
from dpcdsl_torch.reference import EagerCell, parameter_groups, weight_decay_parameters

__all__ = [
    "CompiledCell",
    "EagerCell",
    "compile_cell",
    "depthwise_conv2d",
    "eager",
    "fused",
    "load_deeplab_variables",
    "lowering",
    "parameter_groups",
    "upsampled_cross_entropy",
    "weight_decay_parameters",
]
