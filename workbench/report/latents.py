"""The report's page of latents: what a plugin fills in, and how it becomes a section's data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LatentContext:
    """A stretch of a document in which a latent is active.

    Attributes
    ----------
    document : str
        The document's name.
    tokens : list of str
        Token texts in order, white space as it is; joined they are the stretch of text.
    activations : list of float
        The latent's activation at each token; 0 where it is not active.
    peak : int
        Position in `tokens` for which the context was chosen.
    """

    document: str
    tokens: list[str]
    activations: list[float]
    peak: int


@dataclass(frozen=True)
class LatentPage:
    """What is shown of one latent.

    Attributes
    ----------
    index : int
        The latent's number in its dictionary.
    density : float
        Share of the rows on which it is active, 0 to 1.
    mean_activation, max_activation : float
        Over the rows on which it is active.
    histogram_counts, histogram_edges : list
        Rows in each bin of activation, and the bins' edges (one more than counts); both empty if never active.
    contexts : list of LatentContext
        Top activating ones, strongest first.
    top_tokens, bottom_tokens : list of (str, float)
        Output tokens that the latent raises and lowers most, with the direct effect on their logits.
    labels : list of (str, float)
        Nearest labels and how near, best first.
    neighbours : list of (int, float)
        Latents with the most similar decoder direction, and the similarity, nearest first.
    """

    index: int
    density: float
    mean_activation: float
    max_activation: float
    histogram_counts: list[int]
    histogram_edges: list[float]
    contexts: list[LatentContext]
    top_tokens: list[tuple[str, float]]
    bottom_tokens: list[tuple[str, float]]
    labels: list[tuple[str, float]]
    neighbours: list[tuple[int, float]]


def latents_section(
    pages: Sequence[LatentPage],
    *,
    n_latents: int,
    label_measure: str = "AUROC",
    token_measure: str = "logit effect",
    neighbour_measure: str = "cosine",
) -> dict[str, Any]:
    """Turn pages into the data of a section of kind "latents".

    Parameters
    ----------
    pages : sequence of LatentPage
        Some hundreds at most; listed in this order until the reader sorts them.
    n_latents : int
        In the whole dictionary, of which `pages` is a choice.
    label_measure, token_measure, neighbour_measure : str
        What the numbers beside labels, output tokens and neighbours are.

    Returns
    -------
    dict
        For `Result.add_section(name, "latents", data, description)`. Floats are rounded to four digits.

    Raises
    ------
    ValueError
        For a page whose lists do not fit each other, or an index given twice; names the latent.
    """
    indices = [page.index for page in pages]
    if repeated := sorted({index for index in indices if indices.count(index) > 1}):
        raise ValueError(f"latents {repeated} have more than one page")
    return {
        "n_latents": int(n_latents),
        "measures": {"labels": label_measure, "tokens": token_measure, "neighbours": neighbour_measure},
        "latents": [_page(page) for page in pages],
    }


def _page(page: LatentPage) -> dict[str, Any]:
    bins, edges = len(page.histogram_counts), len(page.histogram_edges)
    if edges != (bins + 1 if bins else 0):
        raise ValueError(f"latent {page.index}: {bins} bins of a histogram need {bins + 1} edges, not {edges}")
    return {
        "index": int(page.index),
        "density": _rounded(page.density),
        "mean_activation": _rounded(page.mean_activation),
        "max_activation": _rounded(page.max_activation),
        "histogram": {
            "counts": [int(count) for count in page.histogram_counts],
            "edges": [_rounded(edge) for edge in page.histogram_edges],
        },
        "contexts": [_context(page.index, context) for context in page.contexts],
        "top_tokens": [[token, _rounded(effect)] for token, effect in page.top_tokens],
        "bottom_tokens": [[token, _rounded(effect)] for token, effect in page.bottom_tokens],
        "labels": [[label, _rounded(score)] for label, score in page.labels],
        "neighbours": [[int(index), _rounded(similarity)] for index, similarity in page.neighbours],
    }


def _context(index: int, context: LatentContext) -> dict[str, Any]:
    tokens, activations = len(context.tokens), len(context.activations)
    if tokens != activations or not 0 <= context.peak < tokens:
        raise ValueError(
            f"latent {index}, context in {context.document!r}: {tokens} tokens, {activations} activations, "
            f"peak {context.peak}: give one activation per token and a peak among them"
        )
    return {
        "document": context.document,
        "tokens": list(context.tokens),
        "activations": [_rounded(activation) for activation in context.activations],
        "peak": int(context.peak),
    }


def _rounded(value: float) -> float | None:
    """Four significant digits keep the page small; JSON has no NaN."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
