"""Backbones, the model around a cell, and what it costs."""

from __future__ import annotations

import importlib
import json
import pickle
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import Dpc
from torch.utils.flop_counter import FlopCounterMode

from dpcdsl import Cell, DpcError, parse_cell
from dpcdsl.segmentation import BACKBONES, Backbone, SegmentationModel, load_backbone_weights, model_cost

#: Multiply-adds that the authors' model zoo publishes, 1025x2049, output stride 16, single scale. Its MobileNet-v2 has
#: no ASPP: image pooling and a 1x1 convolution.
IMAGE_POOLING = "cell pooling { (F, avgpool grid 1x1, Y1) (F, conv1x1, Y2) }"
PUBLISHED = [
    ("mobilenet-v2", IMAGE_POOLING, None, 21.27e9),
    ("xception65", "aspp", "deeplabv3+", 418.64e9),
]


def on_meta(*rest: Any, **options: Any) -> SegmentationModel:
    with torch.device("meta"):
        return SegmentationModel(*rest, eager=True, **options).eval()


# Shapes


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_of_images_of_16k_plus_1(name: str, output_stride: int) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, output_stride).eval()
        for height, width in ((513, 513), (769, 769), (1025, 2049), (17, 33)):
            low, high = backbone(torch.empty(1, 3, height, width))
            assert high.shape[2:] == ((height - 1) // output_stride + 1, (width - 1) // output_stride + 1)
            assert low.shape[2:] == ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
            assert (low.shape[1], high.shape[1]) == (backbone.low_channels, backbone.channels)
    assert backbone.channels == (320 if name == "mobilenet-v2" else 2048)


def test_another_backbone_of_timms() -> None:
    model = on_meta("resnet18", "top1", 5)
    assert model(torch.empty(1, 3, 65, 97, device="meta")).shape == (1, 5, 5, 7)


@pytest.mark.parametrize(("decoder", "stride"), [(None, 16), ("deeplabv3+", 4)])
def test_logits(decoder: str | None, stride: int) -> None:
    model = on_meta("mobilenet-v2", "top1", 19, decoder=decoder)
    found = model(torch.empty(2, 3, 129, 65, device="meta"))
    assert found.shape == (2, 19, 128 // stride + 1, 64 // stride + 1)


# Fused and eager


@pytest.mark.parametrize("decoder", [None, "deeplabv3+"])
def test_fused_and_eager_have_one_state(decoder: str | None) -> None:
    cell = Cell(branches=parse_cell(IMAGE_POOLING).branches, filters=16)
    torch.manual_seed(0)
    fused = SegmentationModel("mobilenet-v2", cell, 4, decoder=decoder, projection=16).eval()
    eager = SegmentationModel("mobilenet-v2", cell, 4, decoder=decoder, projection=16, eager=True).eval()
    eager.load_state_dict(fused.state_dict(), strict=True)
    images = torch.rand(1, 3, 65, 49) * 2 - 1
    with torch.no_grad():
        expected = eager(images)
        torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_output_stride_reaches_the_cell() -> None:
    model = on_meta("mobilenet-v2", "top1", 19, output_stride=8)
    assert model.head.cell.settings.conventions.rate_multiplier == 2


# Cost


@pytest.mark.parametrize(("backbone", "cell", "decoder", "madds"), PUBLISHED)
def test_cost_is_what_the_authors_publish(backbone: str, cell: str, decoder: str | None, madds: float) -> None:
    value = parse_cell(cell) if "{" in cell else cell
    assert model_cost(value, backbone, decoder=decoder).madds == pytest.approx(madds, rel=2e-3)


@pytest.mark.parametrize("decoder", [None, "deeplabv3+"])
@pytest.mark.parametrize("cell", ["aspp", "top1"])
@pytest.mark.parametrize("backbone", ["mobilenet-v2", "xception65", "xception71"])
def test_cost_is_what_torch_counts(backbone: str, cell: str, decoder: str | None) -> None:
    found = model_cost(cell, backbone, decoder=decoder)
    model = on_meta(backbone, cell, 19, decoder=decoder)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 1025, 2049, device="meta"))
    assert found.madds == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 4) + model.head.logits.out_channels
    assert found.params == weights
    assert found.features == (65, 129)


def test_dpc_cost_of_a_model(dpc: Dpc) -> None:
    arguments = ("cost", "top1", "--backbone", "xception71", "--decoder")
    data = json.loads(dpc(*arguments, "--json").out)
    cost = model_cost("top1", "xception71", decoder="deeplabv3+")
    assert (data["params"], data["madds"], data["features"]) == (cost.params, cost.madds, [65, 129])
    assert [part["name"] for part in data["parts"]] == ["backbone", "cell", "decoder", "logits"]
    text = dpc(*arguments, "--image", "513x513", "--output-stride", "8").out
    assert text.startswith("top1 on xception71, image 513x513, output stride 8 (map 65x65), 19 classes, counting")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "513x513"), "--image goes with --backbone"),
        (("--backbone", "xception65", "--size", "9x9"), "--size does not go with --backbone"),
    ],
)
def test_options_that_do_not_go_together(dpc: Dpc, arguments: tuple[str, ...], message: str) -> None:
    found = dpc("cost", "top1", *arguments)
    assert found.code == 2
    assert message in found.err


# Mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backbone("xception56"), "there is no backbone `xception56`; did you mean `xception65`?"),
        (lambda: Backbone("vit_tiny_patch16_224"), "vit_tiny_patch16_224"),
        (lambda: Backbone("xception65", 32), "output_stride must be 16 or 8, not 32"),
        (lambda: on_meta("mobilenet-v2", "top1", 0), "classes must be a whole number"),
        (lambda: on_meta("mobilenet-v2", "top1", 19, decoder="unet"), 'decoder must be "deeplabv3.*" or None'),
        (lambda: model_cost("top1", image=(1, 1), decoder="deeplabv3+", output_stride=4), "output_stride must be 16"),
    ],
)
def test_what_cannot_be_is_told(make: Any, message: str) -> None:
    with pytest.raises(DpcError, match=message):
        make()


# Weights


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(1)
    return Backbone("mobilenetv2_035")


def changed(backbone: Backbone) -> dict[str, torch.Tensor]:
    state = backbone.network.state_dict()
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("how", ["safetensors", "pth", "nested"])
def test_weights_of_a_file(how: str, backbone: Backbone, tmp_path: Path) -> None:
    state = changed(backbone) | {"classifier.weight": torch.ones(3)}
    path = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pth")
    if how == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if how == "nested" else state, path)
    load_backbone_weights(backbone, path)
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, state[name])


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("missing", "w.pth cannot be read"),
        ("text", "w.pth cannot be read"),
        ("harm", "w.pth cannot be read"),
        ("list", "holds something else than named tensors"),
        ("part", "has no weights"),
        ("shape", "is of shape"),
    ],
)
def test_weights_that_do_not_fit(
    content: str, message: str, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, before, state = tmp_path / "w.pth", changed(backbone), changed(backbone)
    first = next(iter(state))
    if content == "text":
        path.write_text("no weights")
    elif content == "harm":
        path.write_bytes(pickle.dumps(Harm()))
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "part":
        torch.save({first: state[first]}, path)
    elif content == "shape":
        torch.save(state | {first: torch.ones(1)}, path)
    with pytest.raises(DpcError, match=message) as caught:
        load_backbone_weights(backbone, path)
    assert "[DPC091]" in str(caught.value)
    assert not (tmp_path / "harm").exists()
    assert all(torch.equal(a, b) for a, b in zip(changed(backbone).values(), before.values(), strict=True))


def test_every_public_name_is_what_it_says_however_it_is_asked_for() -> None:
    """A module of the same name would take a function's place once it has been imported."""
    import dpcdsl.segmentation as room

    for found in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
        importlib.import_module(found.name)
    for name in room.__all__:
        assert not isinstance(getattr(room, name), ModuleType), name
    assert set(room.__all__) <= set(dir(room))
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        _ = room.missing
