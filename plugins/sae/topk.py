"""TopK (Gao et al. 2024), BatchTopK (Bussmann et al. 2024), Matryoshka (2025): as many latents as are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.plugins.sae.architecture import Architecture, Codes, Moment, SparseCodes, same_threshold
from workbench.plugins.sae.selection import batch_topk
from workbench.plugins.sae.settings import Settings
from workbench.plugins.sae.weights import Weights


class TopK(Architecture):
    """The k largest scores of each row, then ReLU (arXiv:2406.04093)."""

    factored = True

    def encode(self, centred: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Codes:
        """See `Architecture.encode`."""
        values, indices = weights.encode(centred, moment.k)
        return SparseCodes(values.relu(), indices)

    def error(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor]:
        """See `Architecture.error`."""
        assert isinstance(codes, SparseCodes)
        return weights.error(codes.values, codes.indices, y)

    def inference(self, weights: Weights, settings: Settings, smallest: float) -> dict[str, Any]:
        """See `Architecture.inference`."""
        return {"activation": "topk", "k": settings.k}


class BatchTopK(Architecture):
    """The k · rows largest positive scores of a whole batch (arXiv:2412.06410).

    A trained dictionary must not depend on which rows come together: it uses the threshold that the batches of the
    training had on average, the mean of their smallest activations.
    """

    def encode(self, centred: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Codes:
        """See `Architecture.encode`."""
        n_rows = moment.rows(centred)
        return SparseCodes(
            *batch_topk(centred, weights.W_enc, weights.b_enc, moment.k * n_rows, n_rows=n_rows, ranks=moment.ranks)
        )

    def smallest(self, codes: Codes) -> Tensor | None:
        """See `Architecture.smallest`."""
        assert isinstance(codes, SparseCodes)
        active = codes.values.detach()[codes.values > 0]
        return active.min() if len(active) else None

    def inference(self, weights: Weights, settings: Settings, smallest: float) -> dict[str, Any]:
        """See `Architecture.inference`."""
        return same_threshold(weights, smallest)


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents reconstruct alone, too: nested dictionaries in one (arXiv:2503.17547).

    The error that is trained on is the mean over the nested dictionaries, each the first few groups of latents.
    """

    def error(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor]:
        """See `Architecture.error`."""
        assert isinstance(codes, SparseCodes)
        left = y - weights.b_dec.to(y.dtype)
        errors, before = [], 0
        for end in settings.groups:
            inside = (codes.indices >= before) & (codes.indices < end)
            group = SparseCodes(codes.values * inside, codes.indices)
            left = left - group.decode(weights.W_dec).to(y.dtype)
            errors.append(left.pow(2).mean())
            before = end
        return torch.stack(errors).mean(), left
