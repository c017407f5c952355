"""What a cluster is about: the tokens at which it is most active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.spelling import token_texts

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.circular.run import Findings

N_TOKENS = 8


def strongest_tokens(context: Context, findings: Findings) -> list[str]:
    """Return for each cluster the tokens that have most of its activation; their numbers where no text is known."""
    store = context.store
    key = "token" if store.examples.modality == "text" else "patch"
    tokens = store.origins[key][findings.rows]
    ids, place = np.unique(tokens, return_inverse=True)
    texts = token_texts(store)
    found = []
    for each in findings.ranked.found:
        activation = np.asarray(findings.reconstructions.codes[:, each.cluster.latents].sum(axis=1)).ravel()
        total = np.bincount(place, weights=activation, minlength=len(ids))
        best = [int(ids[i]) for i in np.argsort(-total, kind="stable")[:N_TOKENS] if total[i] > 0]
        found.append(", ".join(texts[i].strip() if texts else str(i) for i in best))
    return found
