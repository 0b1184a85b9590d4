"""The loss of segmentation: cross-entropy of logits at the labels' size, which are never stored at that size.

The operator ``dpcdsl::upsampled_cross_entropy``, its gradient, and the function that calls it. Like the others, one
operator for every device: it looks up the primitives of the logits'.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl_torch import aten, cuda, native
from dpcdsl_torch.maps import vector_dtype
from dpcdsl_torch.ops import define, empty_map, library
from dpcdsl_torch.primitives import CrossEntropy, Primitives

__all__ = ["upsampled_cross_entropy"]


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_label: int = 255,
    hardest: float = 1.0,
    align_corners: bool = True,
) -> Tensor:
    """Mean cross-entropy of the logits, resized bilinearly to the labels' size, over the pixels that are not ignored.

    logits: [N, classes, h, w], any strides, any floating type. labels: [N, H, W], any whole type. The scalar result is
    fp32 (fp64 for fp64 logits), and 0 where every pixel is ignored: what the published DeepLab code computes.

    class_weights: [classes], multiply the pixels' losses; they do not enter the mean's divisor.
    hardest: share of the pixels, above 0 and at most 1, that counts: those with the largest losses. The mean is then
        over those of them whose loss is not 0 (DeepLab's ``top_k_percent_pixels``).
    align_corners: of the resize; the published code has it.

    Differentiable with respect to the logits, any number of times. Neither forward nor backward stores more than one
    number a pixel, and without ``hardest`` none: the gradient is computed with the loss, at the logits' size.

    Raises :class:`DpcError` (DPC062) on arguments that do not fit together and, on the CPU, on a label that is neither
    a class nor ignored; on a GPU, which nothing waits for, the loss is then NaN.
    """
    gradient = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = torch.ops.dpcdsl.upsampled_cross_entropy(
        logits, labels, class_weights, ignore_label, hardest, align_corners, gradient
    )[0]
    return loss


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DpcError.of("DPC062", f"cross-entropy: {message}", hint=hint)


def _check(logits: Tensor, labels: Tensor, class_weights: Tensor | None, hardest: float) -> None:
    if logits.dim() != 4 or 0 in logits.shape[1:] or not logits.is_floating_point():
        _refuse(f"logits of shape {tuple(logits.shape)} and {logits.dtype}", "[N, classes, h, w] of a floating type")
    if labels.dim() != 3 or labels.shape[0] != logits.shape[0] or 0 in labels.shape[1:]:
        _refuse(
            f"labels of shape {tuple(labels.shape)} for logits of {tuple(logits.shape)}", "[N, H, W], with the same N"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        _refuse(f"labels of {labels.dtype}", "a whole type: torch.uint8 or torch.int64")
    devices = {tensor.device for tensor in (logits, labels, class_weights) if tensor is not None}
    if len(devices) > 1:
        _refuse(
            f"logits, labels and class weights on {', '.join(sorted(map(str, devices)))}", "move them to one device"
        )
    if class_weights is not None and class_weights.shape != (logits.shape[1],):
        _refuse(f"class weights of shape {tuple(class_weights.shape)} for {logits.shape[1]} classes")
    if not 0 < hardest <= 1:
        _refuse(f"the hardest {hardest} of the pixels", "a share above 0 and at most 1")


def _primitives(logits: Tensor) -> Primitives:
    kind = logits.device.type
    if kind == "cpu" and logits.dtype in native.DTYPES:
        return native.primitives() or aten.PRIMITIVES
    if kind == "cuda" and logits.dtype in cuda.DTYPES and logits.shape[1] <= cuda.MOST_CLASSES:
        return cuda.primitives(logits.device, required=False) or aten.PRIMITIVES
    return aten.PRIMITIVES


def _loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_label: int,
    hardest: float,
    align_corners: bool,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    _check(logits, labels, class_weights, hardest)
    wide = vector_dtype(logits.dtype)
    if labels.dtype is not torch.uint8:
        labels = labels.long()
    labels = labels.contiguous()
    given = CrossEntropy(logits, labels, class_weights, ignore_label, align_corners)
    primitives = _primitives(logits)
    gradient = empty_map(logits, logits.shape if needs_gradient else (0,), wide)
    wanted = gradient if needs_gradient else None
    if hardest == 1:
        sums = primitives.cross_entropy(given, None, wanted)
        total, count, wrong = sums
    else:
        losses = labels.new_empty(labels.shape, dtype=wide)
        _, _, wrong = primitives.cross_entropy(given, losses, None)
        top = losses.flatten().topk(max(1, int(hardest * losses.numel())) if losses.numel() else 0)
        total, count = top.values.sum(dtype=torch.float64), (top.values != 0).sum()
        if needs_gradient:
            chosen = torch.zeros_like(labels, dtype=torch.bool)
            chosen.view(-1)[top.indices] = True
            given = CrossEntropy(logits, labels, class_weights, ignore_label, align_corners, chosen)
            primitives.cross_entropy(given, None, wanted)
    if labels.device.type == "cpu" and wrong:
        _refuse_labels(labels, logits.shape[1], ignore_label)
    divisor = torch.where(wrong > 0, torch.nan, count.clamp(min=1))
    if needs_gradient:
        gradient.div_(divisor.to(wide))
    return (total / divisor).to(wide), gradient


def _refuse_labels(labels: Tensor, classes: int, ignored: int) -> NoReturn:
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignored)
    image, y, x = wrong.nonzero()[0].tolist()
    _refuse(
        f"the label {int(labels[image, y, x])} in image {image}, row {y}, column {x}, is neither one of {classes} "
        f"classes nor the ignored {ignored}",
        f"{int(wrong.sum())} pixels have such labels: map them to classes, or to {ignored}",
    )


def _loss_fake(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_label: int,
    hardest: float,
    align_corners: bool,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    _check(logits, labels, class_weights, hardest)
    wide = vector_dtype(logits.dtype)
    return logits.new_empty((), dtype=wide), empty_map(logits, logits.shape if needs_gradient else (0,), wide)


define(
    "upsampled_cross_entropy(Tensor logits, Tensor labels, Tensor? class_weights, int ignore_label, float hardest,"
    " bool align_corners, bool needs_gradient) -> (Tensor, Tensor)",
    _loss,
    _loss_fake,
)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, class_weights, *ctx.settings = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, labels, class_weights, output[1])


def _gradient(ctx: Any, of_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, labels, class_weights, gradient = ctx.saved_tensors
    nothing = (None,) * 6
    if of_loss is None:
        return None, *nothing
    ignore_label, hardest, align_corners, needs_gradient = ctx.settings
    if torch.is_grad_enabled() or not needs_gradient:  # a gradient of the gradient is wanted, or none was expected
        with torch.enable_grad():
            leaf = logits.view_as(logits)
            loss = _plain(leaf, labels, class_weights, ignore_label, hardest, align_corners)
            (found,) = torch.autograd.grad(loss, leaf, of_loss, create_graph=torch.is_grad_enabled())
        return found, *nothing
    return (gradient * of_loss).to(logits.dtype), *nothing


def _plain(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_label: int,
    hardest: float,
    align_corners: bool,
) -> Tensor:
    """The same by torch's operators, which are differentiable any number of times."""
    wide = vector_dtype(logits.dtype)
    large = F.interpolate(logits.to(wide), tuple(labels.shape[1:]), mode="bilinear", align_corners=align_corners)
    labels = labels.long()
    counted = labels != ignore_label
    index = torch.where(counted, labels, 0)
    each = -large.log_softmax(1).gather(1, index[:, None])[:, 0]
    if class_weights is not None:
        each = each * class_weights.to(wide)[index]
    each = torch.where(counted, each, 0)
    if hardest == 1:
        return each.sum() / counted.sum().clamp(min=1)
    top = each.flatten().topk(max(1, int(hardest * each.numel())) if each.numel() else 0).values
    return top.sum() / (top != 0).sum().clamp(min=1)


torch.library.register_autograd("dpcdsl::upsampled_cross_entropy", _gradient, setup_context=_context, lib=library)
