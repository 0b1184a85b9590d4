"""The paper's cell in torchvision's DeepLabV3, in the place of its atrous spatial pyramid pooling.

It needs torchvision: `pip install torchvision`. No weights are downloaded.
"""

import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

import dpcdsl


def parameters(module: nn.Module) -> str:
    return f"{sum(weight.numel() for weight in module.parameters()):,}"


def main() -> None:
    torch.manual_seed(0)
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)
    aspp = model.classifier[0]
    print(f"torchvision's ASPP: {parameters(aspp)} parameters of {parameters(model)}")

    # These lines are all that changes. The backbone keeps its map at an eighth of the image, and the cell's rates are
    # written for a sixteenth: output_stride=8 doubles them. Momentum and dropout are torchvision's, not the authors'.
    like_torchvision = {"batch_norm_momentum": 0.1, "dropout": 0.5, "dropout_place": "after_projection"}
    cell = dpcdsl.compile("top1", in_channels=2048, projection=256, output_stride=8, **like_torchvision)
    model.classifier[0] = cell
    print(f"the paper's cell:   {parameters(cell)} parameters of {parameters(model)}")

    images = torch.randn(2, 3, 129, 129)
    features = model.backbone(images)["out"]
    print(f"images {tuple(images.shape)}, features {tuple(features.shape)}, cell {tuple(cell(features).shape)}")
    scores = model(images)["out"]
    nn.functional.cross_entropy(scores, torch.randint(21, (2, 129, 129))).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    print(f"scores {tuple(scores.shape)}, and every parameter of the model has a gradient")


if __name__ == "__main__":
    main()
