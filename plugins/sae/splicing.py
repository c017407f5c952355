"""What the subject loses when the reconstruction takes an activation's place, beside ablations and controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import Store
from workbench.context import Context
from workbench.dictionary import Dictionary
from workbench.plugins.sae.metrics import Resamples, choose_sequences
from workbench.probes.statistics import Interval
from workbench.splice import CLEAN, constant, image_path, reached, splice_losses, stored_examples
from workbench.subjects.protocol import At, Edit, Subject


@dataclass(frozen=True)
class Spliced:
    """Losses under each condition, with intervals over documents.

    Attributes
    ----------
    measure : str
        ``cross-entropy`` or ``output error``; see `workbench.splice`.
    loss : dict of str to Interval
        Mean per prediction (nats) or per output vector; conditions ``clean``, ``dictionary``, ``random``, ``mean``,
        ``zero``.
    recovered : dict of str to Interval
        Share of the loss under zero-ablation that is saved: 1 as the clean subject, 0 as with zeros.
    divergence : dict of str to Interval
        Kullback–Leibler divergence from the clean next-token distribution, nats; empty for ``output error``.
    n_predictions, n_documents : int
        What the means are taken over.
    """

    measure: str
    loss: dict[str, Interval]
    recovered: dict[str, Interval]
    divergence: dict[str, Interval]
    n_predictions: int
    n_documents: int


def splice(
    context: Context, subject: Subject, rows: NDArray[np.bool_], dictionaries: dict[str, Dictionary], mean: Tensor
) -> Spliced:
    """Run held-out sequences through the subject with each dictionary, the mean and zeros spliced in.

    Parameters
    ----------
    context : Context
        Of a run of `sae`.
    subject : Subject
        That the store was captured from.
    rows : bool array [rows]
        Held-out rows; whole sequences that have some are drawn.
    dictionaries : dict of str to Dictionary
        Of the same hook points, of which one is reconstructed; on one device.
    mean : Tensor [width]
        Of training rows.
    """
    store, config = context.store, context.config.evaluate
    hook_point = next(iter(dictionaries.values())).hook_out
    sequences = choose_sequences(store, rows, config.splice_tokens, context.rng("splice"))
    special = bool(store.origins["special"].all())  # then it is they that the dictionary was trained on
    edits = {name: dictionary.to(subject.device).edits(special=special) for name, dictionary in dictionaries.items()}
    for name, value in (("mean", mean), ("zero", torch.zeros_like(mean))):
        edits[name] = {hook_point: constant(value, special=special)}
    if special:
        for each in edits.values():
            each[hook_point] = at_special(each[hook_point])
    with context.progress(len(sequences), "sequences", "splicing") as ticker:
        found = splice_losses(
            subject,
            stored_examples(store, sequences.tolist()),
            edits,
            ticker=ticker,
        )
    owner = store.examples.sequence_document[sequences]
    _, at = np.unique(owner, return_inverse=True)
    n_documents = int(at.max()) + 1

    def by_document(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(at, weights=values, minlength=n_documents).astype(np.float64)

    count = by_document(found.count.astype(np.float64))
    loss = {name: by_document(values) for name, values in found.loss.items()}
    resamples = Resamples.draw(n_documents, config.draws, context.rng("splice-documents"))
    at_stake = loss["zero"] - loss[CLEAN]
    return Spliced(
        measure=found.measure,
        loss={name: resamples.ratio(values, count) for name, values in loss.items()},
        recovered={name: resamples.ratio(loss["zero"] - loss[name], at_stake) for name in edits},
        divergence={name: resamples.ratio(by_document(values), count) for name, values in found.divergence.items()},
        n_predictions=int(count.sum()),
        n_documents=n_documents,
    )


def at_special(edit: Edit) -> Edit:
    """Return an edit that does what another does at special positions, and nothing at the others."""

    def only(activation: Tensor, at: At) -> Tensor:
        chosen = at.batch.special.view(*at.batch.special.shape, *[1] * (activation.ndim - 2))
        return torch.where(chosen, edit(activation, at), activation)

    return only


def why_not(store: Store, subject: Subject, dictionary: Dictionary) -> str | None:
    """Return why nothing can be spliced in, or None: images that are gone, a hook point without positions."""
    if len(dictionary.hooks_out) > 1:
        return f"the dictionary reconstructs {dictionary.hook_out} at once"
    for name in (*dictionary.hooks_in, dictionary.hook_out):
        if subject.hook_points[name].axes[:2] != ("batch", "pos"):
            return f"{name} has no value of its own at each position"
    if store.examples.modality == "vision":
        paths = [image_path(store, sequence) for sequence in range(len(store.examples.paths))]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            return f"{len(missing)} images are no longer where they were, {missing[0]} among them"
    if dictionary.hook_in != dictionary.hook_out:
        batch = subject.batch(stored_examples(store, [0]))
        order = reached(subject, batch, [*dictionary.hooks_in, dictionary.hook_out])
        if order[-1] != dictionary.hook_out:
            return f"the dictionary reads {order[-1]}, which comes after {dictionary.hook_out}, which it reconstructs"
    return None
