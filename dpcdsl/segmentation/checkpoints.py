"""Checkpoints: one safetensors file of a model's weights, what the model is, and where its training stands.

Nothing in such a file is ever run: it holds numbers, and a description that is checked field by field. It is written
beside its place and renamed, so that there is a whole one at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole
from dpcdsl.segmentation.backbone import Backbone, load_backbone_weights, load_timm_weights
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.model import PresenceClassifier, SegmentationModel

__all__ = ["FILE", "Checkpoint", "begin_with", "load_weights", "read_checkpoint", "write_checkpoint"]

#: The name of the file in a folder of training.
FILE = "checkpoint.safetensors"

_KEY = "dpcdsl"
_WEIGHT, _MOMENTUM = "model.", "momentum."


@dataclass(frozen=True)
class Checkpoint:
    """weights: the model's ``state_dict``. step: how many steps made them.

    training: the settings of the training, as JSON has them, and momentum: the optimizer's, by parameter; both are
    for going on with it.
    """

    description: ModelDescription
    weights: Mapping[str, Tensor]
    step: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    momentum: Mapping[str, Tensor] = field(default_factory=dict)

    def model(self, *, eager: bool = False, **options: Any) -> SegmentationModel | PresenceClassifier:
        """The model with these weights, in evaluation mode. options: of :class:`SegmentationModel`."""
        model = self.description.model(eager=eager, **options)
        load_weights(model, self.weights)
        return model.eval()

    def segmentation_model(self, *, eager: bool = False, **options: Any) -> SegmentationModel:
        """The same. Raises :class:`DpcError` (DPC095) for a checkpoint of a classifier."""
        model = self.model(eager=eager, **options)
        if not isinstance(model, SegmentationModel):
            raise DpcError.of("DPC095", "it is of a classifier, which has no cell", hint="give its folder to --weights")
        return model


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Raises :class:`DpcError` (DPC060) where the file cannot be written; one that was there is as it was, then."""
    tensors = {_WEIGHT + name: value.detach().cpu().contiguous() for name, value in checkpoint.weights.items()}
    tensors |= {_MOMENTUM + name: value.detach().cpu().contiguous() for name, value in checkpoint.momentum.items()}
    facts = {
        "description": checkpoint.description.model_dump(mode="json"),
        "step": checkpoint.step,
        "training": dict(checkpoint.training),
    }
    write_whole(path, save(tensors, {_KEY: json.dumps(facts)}))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """path: the file, or the folder of a training. Nothing in it is run, and no file it names is read.

    Raises :class:`DpcError` (DPC095) for a file that is damaged, or no checkpoint, or whose weights are not those of
    the model it describes, which is found out before any memory is taken for it.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        description = ModelDescription.model_validate(facts["description"])
        step, training = facts["step"], facts["training"]
        assert type(step) is int
        assert step >= 0
        assert isinstance(training, dict)
        _ = description.labels
    except DpcError as error:
        raise _unusable(path, "; ".join(one.message for one in error.diagnostics[:3])) from None
    except (SafetensorError, OSError) as error:
        raise _unusable(path, f"it cannot be read: {str(error)[:200]}") from None
    except Exception:  # whatever a file that was not written here can bring
        raise _unusable(path, "it is not a checkpoint of dpcdsl") from None
    weights = {name.removeprefix(_WEIGHT): value for name, value in tensors.items() if name.startswith(_WEIGHT)}
    momentum = {name.removeprefix(_MOMENTUM): value for name, value in tensors.items() if name.startswith(_MOMENTUM)}
    try:
        with torch.device("meta"):
            model = description.model(eager=True)
        _check(model, weights)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if any(shapes.get(name) != value.shape or value.dtype != torch.float32 for name, value in momentum.items()):
            raise DpcError.of("DPC095", "its momentum is not of its weights")
    except DpcError as error:
        raise _unusable(path, "; ".join(one.message for one in error.diagnostics[:3])) from None
    return Checkpoint(description, weights, step, training, momentum)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises :class:`DpcError` (DPC095) if they are not the model's; nothing is loaded, then."""
    _check(model, weights)
    model.load_state_dict(weights)


def begin_with(backbone: Backbone, weights: Path | str) -> None:
    """Weights into a backbone. weights: a file, the folder of a training, or "timm" for timm's own.

    Raises :class:`DpcError` (DPC091) if they are not of this backbone, or cannot be read or fetched.
    """
    if weights == "timm":
        load_timm_weights(backbone)
    else:
        load_backbone_weights(backbone, Path(weights) / FILE if Path(weights).is_dir() else weights)


def _check(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    if wrong := sorted(wanted.keys() ^ weights.keys()):
        raise DpcError.of("DPC095", f"its weights are not those of its model: `{wrong[0]}` and {len(wrong) - 1} others")
    for name, own in wanted.items():
        found = weights[name]
        if found.shape != own.shape or found.dtype != own.dtype:
            raise DpcError.of(
                "DPC095",
                f"its weight `{name}` is {found.dtype} of shape {list(found.shape)}, and its model's {own.dtype} of "
                f"{list(own.shape)}",
            )


def _unusable(path: Path, reason: str) -> DpcError:
    hint = "a checkpoint.safetensors that `dpc train` wrote, or its folder"
    return DpcError.of("DPC095", f"the checkpoint cannot be used: {reason}", place=str(path)[:200], hint=hint)
