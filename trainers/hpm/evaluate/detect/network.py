"""The detector: torchvision's Mask R-CNN, with ViTDet's heads, on a simple feature pyramid.

Unlike ViTDet's, box losses are torchvision's (smooth L1 below 1/9), and a mask is learned as the
share of each cell that it covers. The encoder may compute in bfloat16; the heads stay in float32,
in which boxes of large images keep fractions of pixels. Letters: B images of side S, O objects of
an image, R regions on objects, C classes, M side of a mask's grid.
"""

from typing import NamedTuple, final

import torch
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from hpm.evaluate.detect.config import Detect
from hpm.evaluate.detect.masks import crop_masks
from hpm.evaluate.detect.pyramid import Maps, Pyramid
from hpm.evaluate.detect.regions import RegionPool, Sampler

__all__ = ["Detections", "Detector", "Target"]

_BOX_SIDE, _MASK_SIDE = 7, 14
_ASPECTS = (0.5, 1.0, 2.0)
_LEVELS = 5


class Target(NamedTuple):
    """The objects of one image."""

    boxes: Tensor
    """[O, 4] float32: left, top, right, bottom in pixels."""
    labels: Tensor
    """[O] int64, from 1."""
    masks: Tensor
    """[O, S, S] bool."""


class Detections(NamedTuple):
    """What is found in one image, the likeliest first."""

    boxes: Tensor
    """[O, 4]: left, top, right, bottom in pixels of the view."""
    labels: Tensor
    """[O] int64, from 1."""
    scores: Tensor
    """[O], in (0.05, 1]."""
    grids: Tensor
    """[O, M, M]: how likely each cell of the box is on the object."""


@final
class Detector(nn.Module):
    """Proposes regions, then finds a class, a box and a mask for each.

    Anchors are 8 strides wide, but at most as wide as the image; so at 1024 pixels and patches of
    16 they are the usual 32 to 512.
    """

    def __init__(self, encoder: VisionTransformer, config: Detect, *, classes: int) -> None:
        super().__init__()
        patch_size: int = encoder.patch_embed.patch_size[0]
        self.reduced = config.optim.precision == "bfloat16"
        self.pyramid = Pyramid(encoder, config.channels)
        self.samplers = Sampler(config.anchors, 0.5), Sampler(config.regions, 0.25)
        self.proposer = _proposer(config, patch_size, self.samplers[0])
        self.heads = _heads(config, patch_size, self.samplers[1], classes=classes + 1)

    def losses(
        self, images_BCHW: Tensor, targets: list[Target], seeds_B2: list[list[int]]
    ) -> dict[str, Tensor]:
        """The five losses that are learned from; `seeds_B2` choose what of each image."""
        for sampler, seeds_B in zip(self.samplers, zip(*seeds_B2, strict=True), strict=True):
            sampler.seeds_B = seeds_B
        maps, sizes = self._maps(images_BCHW), [tuple(images_BCHW.shape[2:])] * len(targets)
        known = [target._asdict() for target in targets]
        proposals, proposing = self.proposer(ImageList(images_BCHW, sizes), maps, known)
        chosen, owners, labels, shifts = self.heads.select_training_samples(proposals, known)
        pooled = self.heads.box_head(self.heads.box_roi_pool(maps, chosen, sizes))
        class_loss, box_loss = fastrcnn_loss(*self.heads.box_predictor(pooled), labels, shifts)
        on = [(labels_A > 0).nonzero().flatten() for labels_A in labels]
        mask_loss = self._mask_loss(
            maps,
            targets,
            [boxes[i] for boxes, i in zip(chosen, on, strict=True)],
            [owner[i] for owner, i in zip(owners, on, strict=True)],
        )
        return {
            "anchor_class_loss": proposing["loss_objectness"],
            "anchor_box_loss": proposing["loss_rpn_box_reg"],
            "class_loss": class_loss,
            "box_loss": box_loss,
            "mask_loss": mask_loss,
        }

    def detect(self, images_BCHW: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Up to 100 objects of each image, which covers `sizes` (height, width) of its square."""
        maps = self._maps(images_BCHW)
        proposals, _ = self.proposer(ImageList(images_BCHW, sizes), maps)
        found, _ = self.heads(maps, proposals, sizes)
        return [
            Detections(one["boxes"], one["labels"], one["scores"], one["masks"][:, 0])
            for one in found
        ]

    def _maps(self, images_BCHW: Tensor) -> Maps:
        kind = images_BCHW.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.reduced):
            maps: Maps = self.pyramid(images_BCHW)
        return {name: map_BCHW.float() for name, map_BCHW in maps.items()}

    def _mask_loss(
        self, maps: Maps, targets: list[Target], boxes: list[Tensor], owners: list[Tensor]
    ) -> Tensor:
        sizes = [tuple(target.masks.shape[1:]) for target in targets]
        pooled = self.heads.mask_roi_pool(maps, boxes, sizes)
        logits_RCMM = self.heads.mask_predictor(self.heads.mask_head(pooled))
        if not len(logits_RCMM):
            nothing: Tensor = logits_RCMM.sum()
            return nothing
        together = list(zip(targets, boxes, owners, strict=True))
        labels_R = torch.cat([target.labels[owner] for target, _, owner in together])
        side: int = logits_RCMM.shape[-1]
        grids_RMM = torch.cat([crop_masks(t.masks, b, o, side) for t, b, o in together if len(b)])
        rows = torch.arange(len(labels_R), device=labels_R.device)
        return binary_cross_entropy_with_logits(logits_RCMM[rows, labels_R], grids_RMM)


def _proposer(config: Detect, patch_size: int, sampler: Sampler) -> RegionProposalNetwork:
    strides = [patch_size * 2**level // 4 for level in range(_LEVELS)]
    sizes = tuple((min(8 * stride, config.image_size),) for stride in strides)
    proposer = RegionProposalNetwork(
        AnchorGenerator(sizes, (_ASPECTS,) * _LEVELS),
        RPNHead(config.channels, len(_ASPECTS), conv_depth=2),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.anchors,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * config.proposals, "testing": config.proposals},
        post_nms_top_n={"training": config.proposals, "testing": config.proposals},
        nms_thresh=0.7,
    )
    proposer.fg_bg_sampler = sampler
    return proposer


def _heads(config: Detect, patch_size: int, sampler: Sampler, *, classes: int) -> RoIHeads:
    """Here `classes` counts the background, which is class 0."""
    channels, layers = config.channels, [config.channels] * config.convolutions
    heads = RoIHeads(
        RegionPool(_BOX_SIDE, patch_size),
        FastRCNNConvFCHead(
            (channels, _BOX_SIDE, _BOX_SIDE), layers, [config.box_width], norm_layer=LayerNorm2d
        ),
        FastRCNNPredictor(config.box_width, classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=RegionPool(_MASK_SIDE, patch_size),
        mask_head=MaskRCNNHeads(channels, layers, 1, norm_layer=LayerNorm2d),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
    )
    heads.fg_bg_sampler = sampler
    return heads
