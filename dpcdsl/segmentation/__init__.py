"""From images to label maps: backbones, the model around a cell, data, training and evaluation. Needs torch and timm.

This is the one room of ``dpcdsl`` that imports torch; ``import dpcdsl`` does not import it.
"""

from typing import TYPE_CHECKING

from dpcdsl.later import read_later
from dpcdsl.segmentation.backbone import BACKBONES, Backbone, load_backbone_weights, load_timm_weights
from dpcdsl.segmentation.model import Head, PresenceClassifier, SegmentationModel
from dpcdsl.segmentation.price import ModelCost, ModelPart, model_cost

if TYPE_CHECKING:
    from dpcdsl.segmentation.analysis import branch_weights
    from dpcdsl.segmentation.cache import FeatureCache, Views
    from dpcdsl.segmentation.caching import build_cache, verify_cache
    from dpcdsl.segmentation.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
    from dpcdsl.segmentation.datasets import check_data, open_data
    from dpcdsl.segmentation.description import ModelDescription
    from dpcdsl.segmentation.evaluation import Evaluation, evaluate
    from dpcdsl.segmentation.labels import CITYSCAPES, PERSON_PART, VOC, LabelSet
    from dpcdsl.segmentation.pictures import overlay, write_labels, write_prediction
    from dpcdsl.segmentation.prediction import Predictor
    from dpcdsl.segmentation.proxy_task import ProxyResult, ProxySettings, proxy, proxy_many
    from dpcdsl.segmentation.schedule import Progress
    from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
    from dpcdsl.segmentation.training import TrainingSettings, train
    from dpcdsl.segmentation.transforms import Augmentation, Preprocessing

# Read when they are asked for: metrics, plots and data loading take seconds to import.
__getattr__, __dir__ = read_later(
    __name__,
    {
        "analysis": ["branch_weights"],
        "cache": ["FeatureCache", "Views"],
        "caching": ["build_cache", "verify_cache"],
        "checkpoints": ["Checkpoint", "read_checkpoint", "write_checkpoint"],
        "datasets": ["check_data", "open_data"],
        "description": ["ModelDescription"],
        "evaluation": ["Evaluation", "evaluate"],
        "labels": ["CITYSCAPES", "PERSON_PART", "VOC", "LabelSet"],
        "pictures": ["overlay", "write_labels", "write_prediction"],
        "prediction": ["Predictor"],
        "synthetic": ["STREET", "SyntheticSet", "write_synthetic"],
        "proxy_task": ["ProxyResult", "ProxySettings", "proxy", "proxy_many"],
        "schedule": ["Progress"],
        "training": ["TrainingSettings", "train"],
        "transforms": ["Augmentation", "Preprocessing"],
    },
)

__all__ = [
    "BACKBONES",
    "CITYSCAPES",
    "PERSON_PART",
    "STREET",
    "VOC",
    "Augmentation",
    "Backbone",
    "Checkpoint",
    "Evaluation",
    "FeatureCache",
    "Head",
    "LabelSet",
    "ModelCost",
    "ModelDescription",
    "ModelPart",
    "Predictor",
    "Preprocessing",
    "PresenceClassifier",
    "Progress",
    "ProxyResult",
    "ProxySettings",
    "SegmentationModel",
    "SyntheticSet",
    "TrainingSettings",
    "Views",
    "branch_weights",
    "build_cache",
    "check_data",
    "evaluate",
    "load_backbone_weights",
    "load_timm_weights",
    "model_cost",
    "open_data",
    "overlay",
    "proxy",
    "proxy_many",
    "read_checkpoint",
    "train",
    "verify_cache",
    "write_checkpoint",
    "write_labels",
    "write_prediction",
    "write_synthetic",
]
