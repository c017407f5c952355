"""The browsable page of latents: which are shown, and what is shown of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.dictionary import Dictionary
from workbench.logit_effect import direct_logit_effect, writes_to_stream
from workbench.plugins.sae import PagesConfig
from workbench.plugins.sae.activity import Activity
from workbench.report.latents import LatentContext, LatentPage
from workbench.subjects.protocol import Subject

BINS = 24
LABELS = 5
CANDIDATES = 20  # top rows looked through for each context kept, as one sequence gives one context only


@dataclass(frozen=True)
class Around:
    """What is known of each latent beside its own activity.

    Attributes
    ----------
    labels : list of str
        Names of labels.
    correlation : float64 array [latents, labels]
        With each label.
    cosine : float64 array [latents, n]
        With the nearest decoder directions, descending.
    neighbour : int64 array [latents, n]
        Whose these are.
    """

    labels: list[str]
    correlation: NDArray[np.float64]
    cosine: NDArray[np.float64]
    neighbour: NDArray[np.int64]


def choose_latents(found: Activity, around: Around, n: int, rng: np.random.Generator) -> list[int]:
    """Choose latents to show, one from each list in turn: close to a label, strong, dense, rare, random; all active."""
    active = np.flatnonzero(found.count)
    density, largest = found.density[active], found.largest()[active]
    orders = [
        active[np.argsort(-largest, kind="stable")],
        active[np.argsort(-density, kind="stable")],
        active[np.argsort(density, kind="stable")],
        rng.permutation(active),
    ]
    if around.labels:
        best = np.abs(around.correlation[active]).max(1)
        orders.insert(0, active[np.argsort(-best, kind="stable")])
    chosen: dict[int, None] = {}
    for turn in zip(*orders, strict=True):
        for latent in turn:
            if len(chosen) == n:
                return list(chosen)
            chosen.setdefault(int(latent))
    return list(chosen)


def make_pages(
    store: Store,
    subject: Subject,
    dictionary: Dictionary,
    found: Activity,
    around: Around,
    chosen: Sequence[int],
    config: PagesConfig,
) -> list[LatentPage]:
    """Collect what is shown of each chosen latent.

    Parameters
    ----------
    store : Store
        That the activity was found in.
    subject : Subject
        Gives the text of tokens, and the unembedding.
    dictionary : Dictionary
        Of the latents.
    found : Activity
        Over held-out rows.
    around : Around
        Labels and neighbours.
    chosen : sequence of int
        Latents, in the order shown.
    config : PagesConfig
        How many contexts and tokens.
    """
    text = token_text(store, subject)
    density, mean, largest = found.density, found.mean(), found.largest()
    tops = output_tokens(subject, dictionary, chosen, config.tokens)
    pages = []
    for latent, (top, bottom) in zip(chosen, tops, strict=True):
        _, values = found.of(latent)
        counts, edges = histogram(values)
        near = np.argsort(-np.abs(around.correlation[latent]), kind="stable")[:LABELS]
        pages.append(
            LatentPage(
                index=latent,
                density=float(density[latent]),
                mean_activation=float(mean[latent]),
                max_activation=float(largest[latent]),
                histogram_counts=counts,
                histogram_edges=edges,
                contexts=contexts(store, found, latent, config, text),
                top_tokens=top,
                bottom_tokens=bottom,
                labels=[(around.labels[label], float(around.correlation[latent, label])) for label in near],
                neighbours=[
                    (int(other), float(cosine))
                    for other, cosine in zip(around.neighbour[latent], around.cosine[latent], strict=True)
                ],
            )
        )
    return pages


def histogram(values: NDArray[np.float32]) -> tuple[list[int], list[float]]:
    """Count activations in equal bins from 0 to the largest; empty lists where there are none."""
    if not len(values):
        return [], []
    counts, edges = np.histogram(values, bins=BINS, range=(0, float(values.max())))
    return counts.tolist(), edges.tolist()


def contexts(
    store: Store, found: Activity, latent: int, config: PagesConfig, text: Callable[[list[int]], list[str]]
) -> list[LatentContext]:
    """Return a latent's top activating contexts, the strongest of each sequence."""
    rows, values = found.of(latent)
    order = np.argsort(rows)
    by_row, by_row_values = rows[order], values[order]
    kept: list[LatentContext] = []
    seen: set[int] = set()
    for row in rows[: CANDIDATES * config.contexts].tolist():
        window = store.context(row, config.before, config.after)
        if window.sequence in seen:
            continue
        seen.add(window.sequence)
        activations = np.zeros(len(window.ids))
        start = int(store.origins["position"][row]) - window.at
        positions = store.examples.positions_of(window.sequence)
        first = store.examples.rows_of(window.sequence).start
        inside = np.flatnonzero((positions >= start) & (positions < start + len(window.ids)))
        at = np.searchsorted(by_row, first + inside).clip(max=len(by_row) - 1)
        there = by_row[at] == first + inside
        activations[positions[inside[there]] - start] = by_row_values[at[there]]
        kept.append(LatentContext(window.document, text(window.ids.tolist()), activations.tolist(), window.at))
        if len(kept) == config.contexts:
            break
    return kept


def token_text(store: Store, subject: Subject) -> Callable[[list[int]], list[str]]:
    """Return what turns ids into texts: a language model's tokens, the numbers of an image's patches."""
    if store.examples.modality == "vision":
        return lambda ids: [f"[{patch}]" for patch in ids]
    return subject.decode


def output_tokens(
    subject: Subject, dictionary: Dictionary, chosen: Sequence[int], n: int
) -> list[tuple[list[tuple[str, float]], list[tuple[str, float]]]]:
    """Return for each latent the output tokens that one unit of it raises and lowers most, directly.

    Empty lists for subjects without unembedding, and hook points that are not in the residual stream.
    """
    effect = None
    if n and chosen and subject.modality == "text" and writes_to_stream(subject, dictionary.hook_out):
        effect = direct_logit_effect(subject, dictionary.W_dec[list(chosen)] / dictionary.scale)
    if effect is None:
        return [([], []) for _ in chosen]
    ends = []
    for sign in (1, -1):
        top = (sign * effect).topk(min(n, effect.shape[1]), dim=1)
        ends.append(
            [
                list(zip(subject.decode(ids), (sign * value for value in values), strict=True))
                for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
        )
    return list(zip(*ends, strict=True))
