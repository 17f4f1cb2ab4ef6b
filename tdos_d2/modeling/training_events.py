"""Training statistics beside losses for Detectron2's event storage (metrics.json, TensorBoard)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.utils.events import get_event_storage
from torch import Tensor

from .criterion import IGNORE

# Iterations between two counts of the negatives, as between two lines of metrics.json.
_PERIOD = 20


def record_batch(labels: Tensor, mask_logits: Tensor, num_known: int) -> None:
    """Record the share of OOD pixels in a batch, and the activity of each negative prompt.

    ``ood_share`` is relative to the pixels that are not void. ``negative_activity/<i>`` is the
    share of OOD pixels at which negative i has the largest mask logit of all M + 1 OOD queries (the
    OOD word has the rest): a negative that stays at 0 has no effect. Outside a trainer this does
    nothing.

    Args:
        labels: (B, H, W) with ``num_known`` for OOD.
        mask_logits: (B, N, h, w) of the last decoder output, before merging.
        num_known: K.
    """
    try:
        storage = get_event_storage()
    except AssertionError:
        return
    ood = labels == num_known
    storage.put_scalar("ood_share", float(ood.sum() / (labels != IGNORE).sum().clamp(min=1)))
    if storage.iter % _PERIOD:
        return
    size = mask_logits.shape[-2:]
    small = F.interpolate(ood[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
    queries = mask_logits.detach()[:, num_known:]  # the OOD word, then the negatives
    strongest = queries.argmax(1)[small]
    if not len(strongest) or queries.shape[1] < 2:
        return
    counts = torch.bincount(strongest, minlength=queries.shape[1])[1:] / len(strongest)
    for i, share in enumerate(counts.tolist()):
        storage.put_scalar(f"negative_activity/{i:02d}", share)
