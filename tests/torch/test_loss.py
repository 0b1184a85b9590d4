"""The loss: cross-entropy of logits that are never stored at the labels' size, beside the plain formula."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch_subjects import DEVICES, Subject

from dpcdsl import DpcError
from dpcdsl_torch import upsampled_cross_entropy
from dpcdsl_torch.primitives import CrossEntropy

GOLDEN = Path(__file__).parent / "golden" / "loss"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
OP = torch.ops.dpcdsl.upsampled_cross_entropy


# The passes


@dataclass(frozen=True)
class Case:
    """Sizes of a loss; tensors are drawn from ``seed``."""

    n: int = 2
    classes: int = 5
    size: tuple[int, int] = (3, 4)
    labels: tuple[int, int] = (17, 21)
    dtype: torch.dtype = torch.float32
    whole: torch.dtype = torch.int64
    layout: str = "channels_last"
    align_corners: bool = True
    weighted: bool = True
    chosen: bool = True
    ignored: int = 255
    seed: int = 0

    def draw(self) -> CrossEntropy:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.n, self.classes, *self.size)
        logits = (torch.randint(-99, 99, shape, generator=generator) / 16).to(self.dtype)
        if self.layout == "channels_last":
            logits = logits.contiguous(memory_format=torch.channels_last)
        elif self.layout == "sliced":
            whole = torch.full((self.n, self.classes + 3, *self.size), 9.0, dtype=self.dtype)
            whole[:, 1:-2] = logits
            logits = whole.contiguous(memory_format=torch.channels_last)[:, 1:-2]
        # Some of no class, and some ignored.
        labels = torch.randint(0, self.classes + 2, (self.n, *self.labels), generator=generator)
        labels[labels == self.classes] = self.ignored
        chosen = torch.rand(labels.shape, generator=generator) < 0.7
        return CrossEntropy(
            logits,
            labels.to(self.whole),
            torch.rand(self.classes, generator=generator) if self.weighted else None,
            self.ignored,
            self.align_corners,
            chosen if self.chosen else None,
        )


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> Case:
    sides, large = st.integers(1, 6), st.integers(1, 40)
    return Case(
        n=draw(st.integers(0, 2)),
        classes=draw(st.sampled_from([1, 2, 5, 8, 19, 31, 33, 70])),
        size=(draw(sides), draw(sides)),
        labels=(draw(large), draw(large)),
        dtype=draw(st.sampled_from(dtypes)),
        whole=draw(st.sampled_from([torch.uint8, torch.int64])),
        layout=draw(st.sampled_from(["contiguous", "channels_last", "sliced"])),
        align_corners=draw(st.booleans()),
        weighted=draw(st.booleans()),
        chosen=draw(st.booleans()),
        ignored=draw(st.sampled_from([255, 0, 3])),
        seed=draw(st.integers(0, 999)),
    )


def plainly(loss: CrossEntropy) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, losses and gradient by autograd, in double precision, from the definition alone."""
    logits = loss.logits.double().requires_grad_()
    classes = logits.shape[1]
    labels = loss.labels.long()
    counted = labels != loss.ignored
    known = counted & (labels < classes)
    large = F.interpolate(logits, tuple(labels.shape[1:]), mode="bilinear", align_corners=loss.align_corners)
    weight = None if loss.weights is None else loss.weights.double()
    each = F.cross_entropy(large, labels.masked_fill(~known, -100), weight, reduction="none")
    each = each * (known if loss.chosen is None else known & loss.chosen)
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    sums = torch.stack([each.sum().detach(), counted.sum(), (counted & ~known).sum()])
    return sums, each.detach(), gradient


def assert_same(subject: Subject, case: Case) -> None:
    loss = case.draw()
    expected = plainly(loss) if case.n else None
    given = CrossEntropy(
        *map(subject.cast, (loss.logits, loss.labels, loss.weights)),
        loss.ignored,
        loss.align_corners,
        subject.cast(loss.chosen),
    )
    found = []
    for _ in range(2):
        losses = torch.full(loss.labels.shape, 9.0, device=subject.device)
        gradient = torch.full(loss.logits.shape, 9.0, device=subject.device).contiguous(
            memory_format=torch.channels_last
        )
        sums = subject.primitives.cross_entropy(given, losses, gradient)
        found.append((sums, losses, gradient))
    if expected is None:
        assert found[0][0].tolist() == [0, 0, 0]
        return
    bare = subject.primitives.cross_entropy(given, None, None)
    for one, again, wanted in zip(*found, expected, strict=True):
        assert torch.equal(one, again)
        allowed = TOLERANCE[case.dtype] * max(1.0, float(wanted.abs().max()))
        assert float((one.cpu().double() - wanted).abs().max()) <= allowed
    torch.testing.assert_close(bare, found[0][0])


def test_it_is_the_plain_formula(subject: Subject) -> None:
    @settings(max_examples=subject.examples)
    @given(case=cases(subject.dtypes))
    def check(case: Case) -> None:
        assert_same(subject, case)

    check()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("labels", [(1, 1), (3, 4), (2, 9), (97, 65), (129, 40)])
def test_sizes(subject: Subject, labels: tuple[int, int], align_corners: bool) -> None:
    """As large as the logits, smaller, and with cells of more pixels than a block has threads."""
    assert_same(subject, Case(labels=labels, align_corners=align_corners))


def test_the_number_of_threads_changes_nothing() -> None:
    logits, labels = torch.randn(2, 19, 9, 9), torch.randint(0, 19, (2, 65, 65))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(OP(logits, labels, None, 255, 1.0, True, True))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_small_and_large_logits(subject: Subject, scale: float) -> None:
    """No difference of large numbers: exp is never of more than 0."""
    logits, labels = scale * torch.randn(1, 7, 3, 3), torch.randint(0, 7, (1, 33, 33))
    expected, _, of_logits = plainly(CrossEntropy(logits, labels, None, 255, True))
    gradient = torch.empty_like(logits, memory_format=torch.channels_last, device=subject.device)
    given = CrossEntropy(subject.cast(logits), subject.cast(labels), None, 255, True)
    sums = subject.primitives.cross_entropy(given, None, gradient)
    torch.testing.assert_close(sums.cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.cpu().double(), of_logits, rtol=1e-4, atol=1e-4)


def test_nan_is_not_hidden(subject: Subject) -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0, 0] = float("nan")
    given = CrossEntropy(subject.cast(logits), subject.cast(torch.zeros(1, 5, 5, dtype=torch.long)), None, 255, True)
    assert subject.primitives.cross_entropy(given, None, None)[0].isnan()


# The published code


@pytest.mark.parametrize("name", ["h_loss_mean", "h_loss_all_ignored"])
def test_the_authors_arrays(name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in ("logits", "labels", "loss", "grad_logits")}
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    logits = arrays["logits"].permute(0, 3, 1, 2).requires_grad_()
    loss = upsampled_cross_entropy(logits, arrays["labels"][..., 0], ignore_label=facts["ignore_label"])
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = arrays["grad_logits"].permute(0, 3, 1, 2)
    assert abs(float(loss.detach()) - float(arrays["loss"])) <= 1e-5
    assert float((gradient - wanted).norm()) <= 1e-5 * float(wanted.norm())


# The function


def hard(logits: Tensor, labels: Tensor, hardest: float) -> Tensor:
    """DeepLab's mining of hard pixels: the mean over the largest losses that are not 0."""
    large = F.interpolate(logits, tuple(labels.shape[1:]), mode="bilinear", align_corners=True)
    each = F.cross_entropy(large, labels, reduction="none", ignore_index=255).flatten()
    top = each.sort(descending=True).values[: int(hardest * each.numel())]
    return top.sum() / (top != 0).sum().clamp(min=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hardest", [1.0, 0.25, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_mean_over_the_hardest_pixels(dtype: torch.dtype, hardest: float, device: str) -> None:
    logits = torch.randn(2, 5, 4, 4, device=device).to(dtype).requires_grad_()
    labels = torch.randint(0, 5, (2, 33, 29), device=device)
    labels[:, ::3] = 255
    loss = upsampled_cross_entropy(logits, labels, hardest=hardest)
    assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    expected = hard(exact, labels, hardest) if hardest < 1 else hard(exact, labels, 1) * 1.0
    (wanted,) = torch.autograd.grad(expected, exact)
    assert gradient.dtype is dtype
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert float((gradient.double() - wanted).norm()) <= (1e-2 if dtype.itemsize == 2 else 1e-5) * float(wanted.norm())


@pytest.mark.parametrize("whole", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_whole_type(whole: torch.dtype) -> None:
    logits, labels = torch.randn(1, 5, 3, 3), torch.randint(0, 5, (1, 9, 9))
    expected = upsampled_cross_entropy(logits, labels)
    assert torch.equal(upsampled_cross_entropy(logits, labels.to(whole)), expected)
    turned = labels.transpose(1, 2).contiguous().transpose(1, 2).to(whole)
    assert torch.equal(upsampled_cross_entropy(logits, turned), expected)


def test_class_weights_do_not_enter_the_divisor() -> None:
    logits, labels = torch.randn(1, 3, 3, 3), torch.randint(0, 3, (1, 9, 9))
    once, twice = (upsampled_cross_entropy(logits, labels, class_weights=torch.full((3,), w)) for w in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once)


def test_no_images_and_nothing_but_ignored() -> None:
    for n, label in ((0, 0), (2, 255)):
        logits = torch.randn(n, 3, 2, 2, requires_grad=True)
        for hardest in (1.0, 0.5):
            loss = upsampled_cross_entropy(logits, torch.full((n, 5, 5), label), hardest=hardest)
            assert loss.item() == 0
            (gradient,) = torch.autograd.grad(loss, logits)
            assert not gradient.any()


def test_it_learns_nothing_it_is_not_asked_for() -> None:
    logits, labels = torch.randn(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 5, 5, dtype=torch.long)
    with torch.no_grad():
        assert not upsampled_cross_entropy(logits, labels).requires_grad
    assert OP(logits.detach(), labels, None, 255, 1.0, True, False)[1].numel() == 0


@pytest.mark.parametrize("hardest", [1.0, 0.5])
def test_derivatives(hardest: float) -> None:
    logits = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.randint(0, 3, (1, 5, 7)), torch.rand(3, dtype=torch.float64)
    labels[0, 1] = 255

    def loss(x: Tensor) -> Tensor:
        return upsampled_cross_entropy(x, labels, class_weights=weights, hardest=hardest, align_corners=False)

    assert gradcheck(loss, logits)
    assert gradgradcheck(loss, logits)


@pytest.mark.filterwarnings("ignore::FutureWarning:torch.*")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hardest", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, hardest: float, device: str) -> None:
    logits = torch.randn(2, 4, 3, 3, device=device).to(dtype).requires_grad_()
    labels = torch.randint(0, 4, (2, 9, 9), device=device)
    for weights in (None, torch.rand(4, device=device)):
        torch.library.opcheck(OP.default, (logits, labels, weights, 255, hardest, True, True))
        torch.library.opcheck(OP.default, (logits.detach(), labels, weights, 255, hardest, True, False))


REFUSED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (torch.randn(2, 3, 4), torch.zeros(2, 4, 4), {}, "logits of shape"),
    (torch.ones(2, 3, 4, 4, dtype=torch.long), torch.zeros(2, 4, 4), {}, "logits of shape"),
    (torch.randn(2, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), {}, "labels of shape"),
    (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4), {}, "labels of torch.float32"),
    (
        torch.randn(2, 3, 4, 4),
        torch.zeros(2, 4, 4, dtype=torch.long),
        {"class_weights": torch.ones(2)},
        "class weights",
    ),
    (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), {"hardest": 0.0}, "the hardest 0.0"),
    (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), {"hardest": 1.5}, "the hardest 1.5"),
]


@pytest.mark.parametrize(("logits", "labels", "options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_told(logits: Tensor, labels: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DpcError, match=f"^error: cross-entropy: {message}") as caught:
        upsampled_cross_entropy(logits, labels, **options)
    assert "[DPC062]" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_label_of_no_class_is_told(dtype: torch.dtype) -> None:
    labels = torch.zeros(2, 5, 5, dtype=torch.long)
    labels[1, 2, 3] = 7
    labels[1, 4, 4] = -1
    with pytest.raises(DpcError) as caught:
        upsampled_cross_entropy(torch.randn(2, 3, 4, 4, dtype=dtype), labels)
    assert str(caught.value) == (
        "error: cross-entropy: the label 7 in image 1, row 2, column 3, is neither one of 3 classes nor the ignored 255"
        " [DPC062]\n    help: 2 pixels have such labels: map them to classes, or to 255\n"
    ).rstrip("\n")


@pytest.mark.skipif("cuda" not in DEVICES, reason="there is no GPU")
def test_a_label_of_no_class_is_nan_on_a_gpu() -> None:
    logits, labels = torch.randn(1, 3, 2, 2, device="cuda"), torch.full((1, 5, 5), 9, device="cuda")
    assert upsampled_cross_entropy(logits, labels).isnan()
