"""Backbones: timm's, at output stride 16 or 8, and their weights from a file.

The paper's are MobileNet-v2 and the modified Xception (section 4): :data:`BACKBONES` has their names here and timm's.
Any other model of timm's that gives features at several strides will do, by timm's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpcdsl.errors import DpcError, nearest

__all__ = [
    "BACKBONES",
    "Backbone",
    "Features",
    "freeze_batch_norm",
    "load_backbone_weights",
    "load_timm_weights",
    "set_momentum",
    "timm_preprocessing",
]

#: The paper's backbones, by timm's names.
BACKBONES = {
    "mobilenet-v2": "mobilenetv2_100",
    "xception41": "xception41",
    "xception65": "xception65",
    "xception71": "xception71",
}

_OURS = "model.backbone.network."  # before the names in a checkpoint
_LOW_STRIDE = 4  # of the features that a decoder takes


class Features(NamedTuple):
    """What a backbone makes of images: maps at stride 4 and at the output stride."""

    low: Tensor
    high: Tensor


class Backbone(nn.Module):
    """Images [N, 3, H, W], scaled to [-1, 1], to :class:`Features`.

    name: of :data:`BACKBONES`, or timm's own. output_stride: 16 or 8; what would have been a stride beyond it becomes
    an atrous rate. Of an image of 16 k + 1 rows, the last map has k + 1 (2 k + 1 at output stride 8), and so along.

    ``channels`` and ``low_channels`` are those of the two maps. MobileNet-v2's last is the one of 320 channels, before
    the convolution to 1280, without an activation.

    Raises :class:`DpcError`: DPC090 for a name that timm does not have, or a model that cannot have the output stride;
    DPC062 for another output stride.
    """

    def __init__(self, name: str = "mobilenet-v2", output_stride: int = 16) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise DpcError.of("DPC062", f"output_stride must be 16 or 8, not {output_stride!r}")
        self.name, self.output_stride = name, output_stride
        self.network = _network(name, output_stride)
        strides = self.network.feature_info.reduction()
        if _LOW_STRIDE not in strides or strides[-1] != output_stride:
            raise DpcError.of(
                "DPC090",
                f"the backbone `{name}` has features at strides {', '.join(map(str, strides))}",
                hint=f"take one that has them at {_LOW_STRIDE} and can end at {output_stride}",
            )
        self._low = strides.index(_LOW_STRIDE)
        channels = self.network.feature_info.channels()
        self.low_channels: int = channels[self._low]
        self.channels: int = channels[-1]

    def forward(self, images: Tensor) -> Features:
        # Channels innermost: a step takes two thirds of the time on a CPU, and the compiled cell reads them so.
        maps = self.network(images.contiguous(memory_format=torch.channels_last))
        return Features(maps[self._low], maps[-1])

    def extra_repr(self) -> str:
        return f"{self.name}, output_stride={self.output_stride}"


def set_momentum(module: nn.Module, momentum: float) -> None:
    """Of every batch normalisation in a module: the share of a batch in the running statistics."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = momentum


def freeze_batch_norm(module: nn.Module) -> None:
    """Every batch normalisation in a module as in evaluation: until ``train()`` is called again."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def _network(name: str, output_stride: int) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        hint = "pip install 'dpcdsl[segmentation]'"
        raise DpcError.of("DPC090", f"a backbone needs {error.name}", hint=hint) from None
    known = BACKBONES.get(name, name)
    if not timm.is_model(known):
        near = nearest(name, [*BACKBONES, *timm.list_models()])
        raise DpcError.of(
            "DPC090",
            f"there is no backbone `{name}`" + (f"; did you mean `{near}`?" if near else ""),
            hint=f"{', '.join(f'`{one}`' for one in BACKBONES)}, or a model of timm's",
        )
    try:
        return timm.create_model(known, features_only=True, output_stride=output_stride)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise DpcError.of(
            "DPC090",
            f"the backbone `{name}` gives no features at output stride {output_stride}: {error}",
            hint="take a convolutional one that timm can dilate",
        ) from None


def load_backbone_weights(backbone: Backbone, path: str | Path) -> None:
    """Weights of a file into a backbone: ``.safetensors``, or ``.pth`` of which nothing but tensors is read.

    The file holds timm's names, as its ``state_dict`` has them, or under ``state_dict`` or ``model``, or it is a
    checkpoint of this library's, whose backbone is taken; what belongs to a classifier is left out. Nothing is loaded
    unless all of the backbone is there.

    Raises :class:`DpcError` (DPC091) for a file that cannot be read, or is not of this backbone.
    """
    path = Path(path)
    found = _read(path)
    own = {name.removeprefix(_OURS): value for name, value in found.items() if name.startswith(_OURS)}
    found = own or found
    wanted = backbone.network.state_dict()
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise DpcError.of(
            "DPC091",
            f"{path.name} has no weights `{missing[0]}`"
            + (f" and {len(missing) - 1} others" if missing[1:] else "")
            + f" of the backbone `{backbone.name}`",
            hint=f"weights of timm's {BACKBONES.get(backbone.name, backbone.name)}, by its names",
        )
    for name, own in wanted.items():
        if name in found and found[name].shape != own.shape:
            raise DpcError.of(
                "DPC091",
                f"`{name}` in {path.name} is of shape {tuple(found[name].shape)}, and in the backbone "
                f"`{backbone.name}` of {tuple(own.shape)}",
                hint="the file is of another backbone",
            )
    backbone.network.load_state_dict({name: found.get(name, own) for name, own in wanted.items()})


def load_timm_weights(backbone: Backbone) -> None:
    """Timm's pretrained weights, which it fetches if it has not kept them. Their images are preprocessed by
    :func:`timm_preprocessing`. Raises :class:`DpcError` (DPC091) where there are none, or they cannot be fetched.
    """
    try:
        import timm

        known = BACKBONES.get(backbone.name, backbone.name)
        network = timm.create_model(known, features_only=True, output_stride=backbone.output_stride, pretrained=True)
    except Exception as error:  # of the network, the hub, or timm
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DpcError.of(
            "DPC091",
            f"timm's weights of `{backbone.name}` cannot be had: {reason}",
            hint="fetch them on a machine with a network, and give the file",
        ) from None
    backbone.network.load_state_dict(network.state_dict())


def timm_preprocessing(name: str) -> dict[str, tuple[float, ...]]:
    """``mean`` and ``std``, of pixels from 0 to 1, that timm's weights of a backbone were trained with."""
    import timm

    known = BACKBONES.get(name, name)
    config = timm.get_pretrained_cfg(known) if timm.is_model(known) else None
    if config is None:
        return {}
    return {"mean": tuple(config.mean), "std": tuple(config.std)}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            data: Any = load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has exceptions of its own for a file that is none
        reason = " ".join(str(error).split())[:200]
        raise DpcError.of(
            "DPC091",
            f"the weights {path.name} cannot be read: {type(error).__name__}: {reason}",
            hint="a .safetensors file, or a .pth that holds tensors alone",
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise DpcError.of("DPC091", f"{path.name} holds something else than named tensors", hint="save a `state_dict`")
    return {str(name).removeprefix("module."): value for name, value in data.items()}
