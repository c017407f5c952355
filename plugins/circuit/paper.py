"""The discrete SAE as its paper measures it: raw outputs, trials of one autoencoder each, area over heads alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from workbench.plugins.circuit.discrete_sae import SaeSettings, discrete_codes, node_via_pairs
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.head_outputs import Tokens, mean_head_outputs
from workbench.plugins.circuit.known import published_circuit
from workbench.plugins.circuit.measures import roc_auc
from workbench.plugins.circuit.tasks.task import Prompts
from workbench.subjects.protocol import Subject


class Trials(NamedTuple):
    """Areas under the ROC curve over heads, one for each trial, and what the autoencoders were like.

    Attributes
    ----------
    node : array [trial]
        By the number of codes that occur on positive prompts only.
    node_via_pairs : array [trial]
        By the best quarter of pairs: the paper's "edge" result.
    silent : array [trial]
        Share of head outputs on which no latent is active.
    """

    node: np.ndarray
    node_via_pairs: np.ndarray
    silent: np.ndarray


def run_trials(
    subject: Subject,
    record: Mapping[str, Any],
    prompts: Prompts,
    *,
    trials: int = 10,
    scaled: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    outputs: np.ndarray | None = None,
    on_trial: Callable[[], object] | None = None,
) -> Trials:
    """Repeat the paper's measurement.

    Parameters
    ----------
    subject : Subject
        The model that the labels are of, or one of its shape.
    record : mapping
        A published circuit (`workbench.plugins.circuit.known.published`): its labels and the task's penalty.
    prompts : Prompts
        Positive and negative ones; where the tokenizer has a token for the beginning and does not put it there, it is
        put there, as the paper's were.
    trials : int
        Autoencoders, each trained on 10 prompts of its own.
    scaled : bool
        Divide outputs by their root mean square, as `workbench run circuit` does and the paper does not.
    seed : int
        Of the trials.
    batch_size : int
        Prompts in a pass.
    outputs : array [example, head, d_model], optional
        From `outputs_of`, where it was made for other trials already.
    on_trial : callable, optional
        Called after each trial.

    Raises
    ------
    UserError
        If the subject has another number of layers or heads.
    """
    graph = Graph.of(subject)
    truth = published_circuit(record, graph).nodes[graph.head_sources]
    X = outputs_of(subject, prompts, batch_size) if outputs is None else outputs
    settings = SaeSettings(penalty=record["penalty"], scaled=scaled)
    found: list[tuple[float, float, float]] = []
    for trial in range(trials):
        codes = discrete_codes(X, len(prompts.positives), [np.random.default_rng([seed, trial])], settings)
        via = node_via_pairs(codes.pair_scores())[0]
        found.append((roc_auc(truth, codes.node_scores()[0]), roc_auc(truth, via), float(codes.silent[0])))
        if on_trial is not None:
            on_trial()
    return Trials(*np.array(found).reshape(-1, 3).T)


def outputs_of(subject: Subject, prompts: Prompts, batch_size: int = 32) -> np.ndarray:
    """Return mean outputs of heads on positive, then negative prompts [example, head, d_model]."""
    both = (with_beginning(subject, tokens) for tokens in (prompts.positives, prompts.negatives))
    return np.concatenate([mean_head_outputs(subject, tokens, batch_size) for tokens in both])


def with_beginning(subject: Subject, tokens: Tokens) -> Tokens:
    """Put the beginning-of-sequence token before prompts that lack it, where the tokenizer has one."""
    begin = getattr(subject.tokenizer, "bos_token_id", None)
    if begin is None or (tokens.ids[:, 0] == begin).all():
        return tokens
    return Tokens.of([[begin, *prompt] for prompt in tokens.prompts(0, len(tokens))])
