"""Faster R-CNN (Ren et al. 2015) on a residual trunk: C4, or with a feature pyramid."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pipeline.config import ConfigError
from training.models.residual import ResidualTrunk
from training.models.trunk import Trunk
from training.transfer.dense.box_options import BoxModelOptions

# Shapes: B batch, C channels, H/W map size.


_STEM = ("conv1", "bn1", "relu", "maxpool")
_RATIOS = (0.5, 1.0, 2.0)


class _AsGiven(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Pads images, which have their final size, into a batch.

    torchvision can skip the resize in training only, and enlarges test images.
    """

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def build_box_model(trunk: Trunk, options: BoxModelOptions) -> nn.Module:
    """Put a detector with fresh weights around a trunk, from torch's global generator.

    It is called like torchvision's detectors: with a list of normalized images (3, H, W), which it
    pads, and in training with their boxes and labels, 0 being the background.

    Raises:
        ConfigError: The trunk is not residual.
    """
    if not isinstance(trunk, ResidualTrunk):
        raise ConfigError(
            f"detection needs a residual trunk, and {type(trunk).__name__} has no last stage to "
            "classify regions; take trunk.name small, resnet18 or resnet50."
        )
    if options.batch_norm == "sync":
        trunk.net = nn.SyncBatchNorm.convert_sync_batchnorm(trunk.net)  # type: ignore[no-untyped-call]
    sides = tuple(round(options.image_px * share) for share in (1 / 12, 1 / 6, 1 / 3, 2 / 3, 4 / 3))
    on_one_map = options.neck == "c4"
    parts = _c4(trunk, options) if on_one_map else _pyramid(trunk, options)
    anchors = (sides[1:4],) if on_one_map else tuple((side,) for side in sides)
    model: nn.Module = FasterRCNN(
        **parts,
        rpn_anchor_generator=AnchorGenerator(anchors, (_RATIOS,) * len(anchors)),
        rpn_pre_nms_top_n_test=4 * options.proposals,
        rpn_post_nms_top_n_test=options.proposals,
        rpn_post_nms_top_n_train=max(options.proposals, 4 * options.rois_per_image),
        box_batch_size_per_image=options.rois_per_image,
        box_score_thresh=options.score_threshold,
        box_detections_per_img=100,
    )
    model.transform = _AsGiven(0, 0, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    for part, stage in trunk_parts(trunk):
        if stage < options.frozen_stages:
            part.requires_grad_(False)
        if options.batch_norm == "frozen" and _is_batch_norm(part):
            part.requires_grad_(False)
    return model


def train_mode(model: nn.Module, trunk: Trunk, options: BoxModelOptions) -> None:
    """Set training mode, but keep BatchNorm that the options freeze in evaluation mode."""
    model.train()
    for part, stage in trunk_parts(trunk):
        if _is_batch_norm(part):
            part.train(options.batch_norm != "frozen" and stage >= options.frozen_stages)


def trunk_parts(trunk: Trunk) -> Iterator[tuple[nn.Module, int]]:
    """Yield the modules of a trunk that own weights, each with its stage, from 0."""
    for name, part in trunk.net.named_modules():
        if next(part.parameters(recurse=False), None) is not None:
            yield part, trunk.stage_of(name)


def _is_batch_norm(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._BatchNorm)


def _c4(trunk: ResidualTrunk, options: BoxModelOptions) -> dict[str, Any]:
    *lower, last = trunk.stage_names
    body = _stages(trunk, (*_STEM, *lower[1:]))
    # torchvision's detectors require this attribute of a backbone.
    body.out_channels = _channels(trunk)[-2]  # type: ignore[assignment]
    head = nn.Sequential(trunk.net.get_submodule(last), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return {
        "backbone": body,
        "box_roi_pool": MultiScaleRoIAlign(["0"], options.roi_px, sampling_ratio=2),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(trunk.width, options.num_classes + 1),
    }


def _pyramid(trunk: ResidualTrunk, options: BoxModelOptions) -> dict[str, Any]:
    stages = trunk.stage_names[1:]
    levels = {name: str(level) for level, name in enumerate(stages)}
    width, hidden = options.fpn_width, 4 * options.fpn_width
    body = BackboneWithFPN(
        trunk.net, levels, _channels(trunk)[1:], width, extra_blocks=LastLevelMaxPool()
    )
    return {
        "backbone": body,
        "box_roi_pool": MultiScaleRoIAlign(list(levels.values()), options.roi_px, sampling_ratio=2),
        "box_head": TwoMLPHead(width * options.roi_px**2, hidden),
        "box_predictor": FastRCNNPredictor(hidden, options.num_classes + 1),
    }


def _stages(trunk: ResidualTrunk, names: tuple[str, ...]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, trunk.net.get_submodule(name)) for name in names))


def _channels(trunk: ResidualTrunk) -> list[int]:
    """Return the channels of every stage's map."""
    was_training = trunk.training
    with torch.inference_mode():
        maps: list[Tensor] = trunk.eval().stages(torch.zeros(1, 3, 64, 64))
    trunk.train(was_training)
    return [one.shape[1] for one in maps]
