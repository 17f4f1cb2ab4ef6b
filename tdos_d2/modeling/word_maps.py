"""Words added at test time: the similarity of each pixel to a word.

A word's plain text embedding, before the context decoder, is compared with the dense visual
embedding. This needs no training and does not change the other outputs. The result is meaningful
only with text and image encoders that were trained together, as CLIP's were.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Smallest spread of the known names' cosines: CLIP's temperature, below which they do not differ.
MIN_SPREAD = 0.01


def word_maps(dense: Tensor, names: Tensor, num_known: int) -> Tensor:
    """Cosines of words, and the words' chances against the known names.

    The range of cosines between text and image depends on the model. The chance does not: it is
    sigmoid((cos_w - max_k cos_k) / s), with k over the known names and s the standard deviation of
    their cosines at the same position (at least ``MIN_SPREAD``). At 1/2 the word fits as well as
    the best known name.

    Args:
        dense: (B, D, h, w) dense visual embedding in text space, of any length.
        names: (K + W, D) text embeddings of the K known names and of W words, of any length.
        num_known: K.

    Returns:
        (B, 2 W, h, w) float32: W cosines in [-1, 1], then W chances in [0, 1].
    """
    with torch.autocast(dense.device.type, enabled=False):  # half precision would cause ties
        unit = F.normalize(dense.float(), dim=1)
        cosines = torch.einsum("nd,bdhw->bnhw", F.normalize(names.float(), dim=1), unit)
    known, words = cosines[:, :num_known], cosines[:, num_known:]
    spread = known.std(dim=1, keepdim=True, correction=0).clamp(min=MIN_SPREAD)
    margin = words - known.amax(dim=1, keepdim=True)
    return torch.cat([words, (margin / spread).sigmoid()], dim=1)
