"""Training losses: class, mask and dice of the decoder, cross entropy of the score map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.projects.point_rend.point_features import point_sample
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError
from ..value_checks import check_positive, check_share

IGNORE = 255


class TDOSCriterion(nn.Module):
    """Losses with a fixed assignment: merged query k is responsible for class k.

    The target of a class is one binary mask; a query whose class is absent is "no object". Every
    decoder output counts the same (deep supervision).

    Args:
        num_known: K; the OOD class is label K, "no object" is class K + 1.
        class_weight: weight of the class cross entropy.
        mask_weight: weight of the point-wise binary cross entropy.
        dice_weight: weight of the dice loss.
        score_map_weight: weight of the score map's cross entropy; 0 = without that term.
        ood_weight: weight of the OOD class in the class cross entropy.
        no_object_weight: weight of "no object" in the class cross entropy.
        num_points: points per mask, at most one per cell of the mask.
        oversample_ratio: candidates per point.
        importance_ratio: share of points chosen by their uncertainty, -|logit|.
        temperature: temperature of the score map's cross entropy.
        ignore_void: ignore points on void (255) in the mask and dice losses; False: void is outside
            every mask, as in the released code.
    """

    @configurable
    def __init__(
        self,
        num_known: int,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        score_map_weight: float = 1.0,
        ood_weight: float = 10.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        temperature: float = 0.07,
        ignore_void: bool = True,
    ) -> None:
        super().__init__()
        self.num_known = num_known
        self.class_weight, self.mask_weight = class_weight, mask_weight
        self.dice_weight, self.score_map_weight = dice_weight, score_map_weight
        self.num_points, self.temperature = num_points, temperature
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio
        self.ignore_void = ignore_void
        weights = torch.ones(num_known + 2)
        weights[-2:] = torch.tensor([ood_weight, no_object_weight])
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def from_config(cls, cfg, num_known: int) -> dict:
        check_positive(cfg, "MODEL.TDOS", "NUM_POINTS", "SCORE_MAP_TEMPERATURE")
        check_share(cfg, "MODEL.TDOS", "IMPORTANCE_SAMPLE_RATIO")
        node = cfg.MODEL.TDOS
        if node.OVERSAMPLE_RATIO < 1:
            raise UserError(
                f"MODEL.TDOS.OVERSAMPLE_RATIO must be 1 or greater, not {node.OVERSAMPLE_RATIO}"
            )
        return {
            "num_known": num_known,
            "class_weight": node.CLASS_WEIGHT,
            "mask_weight": node.MASK_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "score_map_weight": node.SCORE_MAP_WEIGHT,
            "ood_weight": node.OOD_WEIGHT,
            "no_object_weight": node.NO_OBJECT_WEIGHT,
            "num_points": node.NUM_POINTS,
            "oversample_ratio": node.OVERSAMPLE_RATIO,
            "importance_ratio": node.IMPORTANCE_SAMPLE_RATIO,
            "temperature": node.SCORE_MAP_TEMPERATURE,
            "ignore_void": node.IGNORE_VOID,
        }

    def forward(
        self, class_logits: Tensor, mask_logits: Tensor, score_map: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            class_logits: (O, B, K + 1, K + 2), merged, of all O decoder outputs.
            mask_logits: (O, B, K + 1, h, w), merged.
            score_map: (B, K + 1, h', w') merged cosines.
            labels: (B, H, W) int64 in 0..K and 255 (ignored).

        Returns:
            The weighted terms ``loss_class``, ``loss_mask``, ``loss_dice`` (summed over the
            outputs) and, unless its weight is 0, ``loss_score_map``.
        """
        classes = torch.arange(self.num_known + 1, device=labels.device)
        targets = labels[:, None] == classes[:, None, None]  # (B, K + 1, H, W)
        present = targets.flatten(2).any(-1)
        void = (labels == IGNORE) & self.ignore_void
        mask, dice = self._mask_losses(mask_logits.float(), targets, present, void)
        losses = {
            "loss_class": self.class_weight * self._class_loss(class_logits.float(), present),
            "loss_mask": self.mask_weight * mask,
            "loss_dice": self.dice_weight * dice,
        }
        if self.score_map_weight:
            term = self._score_map_loss(score_map, labels)
            losses["loss_score_map"] = self.score_map_weight * term
        return losses

    def _class_loss(self, logits: Tensor, present: Tensor) -> Tensor:
        """sum_q w[y_q] CE_q / sum_q w[y_q], summed over outputs."""
        classes = torch.arange(self.num_known + 1, device=logits.device)
        target = torch.where(present, classes, self.num_known + 1)  # (B, K + 1)
        weights = self.class_weights[target]
        losses = F.cross_entropy(
            logits.movedim(-1, 1), target.expand(len(logits), -1, -1), reduction="none"
        )
        # Weights of 0 may make the sum 0.
        return (losses * weights).sum() / weights.sum().clamp(min=1e-6)

    def _mask_losses(
        self, logits: Tensor, targets: Tensor, present: Tensor, void: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Binary cross entropy and dice at sampled points, mean over masks, summed over outputs."""
        outputs = len(logits)
        masks = logits[:, present]  # (O, n, h, w)
        count = torch.tensor(float(masks.shape[1]), device=logits.device)
        # Gradients are averaged over processes: dividing by the mean number of masks gives those of
        # the joint batch.
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(count)
        count = (count / comm.get_world_size()).clamp(min=1)
        if masks.shape[1] == 0:  # only void: keep the graph connected for distributed training
            zero = logits.sum() * 0
            return zero, zero
        with torch.no_grad():
            images = present.nonzero()[:, 0].repeat(outputs)  # the image of each of O * n masks
            on_void = partial(_in_cells, _void_cells(void), images)
            points = self._sample_points(masks, on_void)  # (O * n, P, 2)
            # Each target is sampled once for the points of all outputs.
            per_target = points.unflatten(0, (outputs, -1)).transpose(0, 1).flatten(1, 2)
            truth = _sample(targets[present][:, None].float(), per_target)
            truth = truth[:, 0].unflatten(1, (outputs, -1)).transpose(0, 1).flatten(0, 1)
            counts = (~on_void(points)).float()
            truth = truth * counts
        values = _sample(masks.flatten(0, 1)[:, None], points)[:, 0]
        mask = F.binary_cross_entropy_with_logits(values, truth, counts, reduction="none")
        mask = mask.sum(-1) / counts.sum(-1).clamp(min=1)
        share = values.sigmoid() * counts
        dice = 1 - (2 * (share * truth).sum(-1) + 1) / (share.sum(-1) + truth.sum(-1) + 1)
        return mask.sum() / count, dice.sum() / count

    def _sample_points(self, masks: Tensor, on_void: Callable[[Tensor], Tensor]) -> Tensor:
        """(O * n, P, 2) points in [0, 1]: some where the mask is least certain, some at random.

        The rule is PointRend's (section 3.1): of ``oversample_ratio`` * P random points those with
        the smallest |logit|, and further random points. Points ``on_void`` are chosen last, as no
        loss makes a mask certain there.
        """
        masks = masks.flatten(0, 1)[:, None]
        num_points = min(self.num_points, masks.shape[-2] * masks.shape[-1])
        num_uncertain = int(self.importance_ratio * num_points)
        candidates = torch.rand(
            len(masks), int(self.oversample_ratio * num_points), 2, device=masks.device
        )
        certainty = _sample(masks, candidates)[:, 0].abs()
        certainty = certainty.masked_fill(on_void(candidates), torch.inf)
        chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        others = torch.rand(len(masks), num_points - num_uncertain, 2, device=masks.device)
        return torch.cat([uncertain, others], dim=1)

    def _score_map_loss(self, score_map: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the cosines over a temperature, mean over pixels that are not void."""
        logits = score_map.float() / self.temperature
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear")
        valid = (labels != IGNORE).sum().clamp(min=1)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / valid


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """(n, 1, h, w) at (n, P, 2) points in [0, 1] -> (n, 1, P); border values extend outwards."""
    # All points in one row, as on a CPU grid_sample is vectorised only along the last axis.
    row = points[:, None]
    return point_sample(maps, row, padding_mode="border", align_corners=False)[:, :, 0]


def _void_cells(void: Tensor) -> Tensor:
    """(B, H, W) -> (B, H + 1, W + 1) bool: whether a pixel at a corner of the cell is void.

    A cell is the square between the centres of four pixels, so the labels of points outside these
    void cells are interpolated only from pixels that are not void.
    """
    padded = F.pad(void[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return F.max_pool2d(padded, 2, stride=1)[:, 0] > 0


def _in_cells(cells: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """(n, P) values of (B, H + 1, W + 1) ``cells`` at (n, P, 2) points of (n,) ``images``."""
    (height, width), (x, y) = (size - 1 for size in cells.shape[1:]), points.unbind(-1)
    return cells[images[:, None], (y * height + 0.5).long(), (x * width + 0.5).long()]
