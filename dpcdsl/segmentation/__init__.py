"""From images to label maps: backbones, the model around a cell, and what it costs. Needs torch and timm.

This is the one room of ``dpcdsl`` that imports torch; ``import dpcdsl`` does not import it.
"""

from dpcdsl.segmentation.backbone import BACKBONES, Backbone, load_backbone_weights
from dpcdsl.segmentation.model import SegmentationModel
from dpcdsl.segmentation.price import ModelCost, ModelPart, model_cost

__all__ = [
    "BACKBONES",
    "Backbone",
    "ModelCost",
    "ModelPart",
    "SegmentationModel",
    "load_backbone_weights",
    "model_cost",
]
