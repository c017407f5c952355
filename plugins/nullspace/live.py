"""What the running subject loses when a projection is applied at its hook point: overall, and on the label's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.context import Context
from workbench.erasing import edit_of
from workbench.plugins.nullspace.tasks import NO_CLASS, Labelled, Task
from workbench.probes import Projection, bootstrap_weights
from workbench.probes.statistics import percentile_interval
from workbench.splice import chunks, image_path, next_token, stored_examples
from workbench.subjects.protocol import Batch, Edit, Subject

CLEAN = "none"
LEAST_TOKENS = 10  # occurrences, for a token to be listed
LEAST_PREDICTIONS = 20
CONTEXT_TOKENS = 16
QUANTITIES = ("loss", "divergence", "right")


@dataclass
class Tally:
    """Sums per document and kind of prediction, for one condition.

    Attributes
    ----------
    sums : dict of str to np.ndarray
        [documents, classes + 1, classes + 1] of loss, divergence from the clean subject, and right first guesses, by
        the label's class where the prediction is made and at the token predicted; 0 is no class.
    """

    sums: dict[str, np.ndarray]


@dataclass
class Live:
    """What was measured.

    Attributes
    ----------
    measure : str
        ``cross-entropy`` (nats), or ``output error`` where the subject predicts no next token.
    count : np.ndarray
        [documents, classes + 1, classes + 1] predictions.
    tallies : dict of str to Tally
        By condition; ``none`` is the subject as it is.
    tokens : list of dict
        Tokens whose prediction suffers most where the label holds.
    examples : list of dict
        Single predictions that suffer most.
    """

    measure: str
    count: np.ndarray
    tallies: dict[str, Tally]
    tokens: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


def run_live(
    context: Context, subject: Subject, hook_point: str, task: Task, conditions: Mapping[str, Projection], shown: str
) -> Live:
    """Run sequences of test documents through the subject as it is and under each condition.

    Parameters
    ----------
    context : Context
        Of the run.
    subject : Subject
        That the store is of.
    hook_point : str
        Where.
    task : Task
        Test documents, and the label.
    conditions : mapping of str to Projection
        By name.
    shown : str
        The condition of which tokens and examples are listed.
    """
    sequences, owner, n_documents = drawn_sequences(context, task)
    special: bool | Literal["only"] = "only" if context.store.origins["special"].all() else False  # class tokens alone
    edits: dict[str, Edit] = {name: edit_of(erase, special=special) for name, erase in conditions.items()}
    classes = class_of_tokens(context, task.label)
    bounds = context.store.examples.bounds
    size = len(task.label.classes) + 1
    live = Live("cross-entropy" if subject.causal else "output error", np.zeros((n_documents, size, size)), {})
    for name in (CLEAN, *conditions):
        live.tallies[name] = Tally({each: np.zeros((n_documents, size, size)) for each in QUANTITIES})
    worst = Worst(subject, context.config.live.examples, 1 if task.label.binary else 0)
    done = 0
    with context.progress(len(sequences), "sequences", "live") as ticker:
        for chunk in chunks(subject, stored_examples(context.store, sequences.tolist())):
            here = sequences[done : done + len(chunk)]
            batch = subject.batch(chunk)
            length = batch.mask.shape[1]
            of_token = np.full((len(chunk), length), NO_CLASS)
            for row, sequence in enumerate(here):
                found = classes[bounds[sequence] : bounds[sequence + 1]]
                of_token[row, : len(found)] = found
            clean = subject.run(batch).value
            assert clean is not None
            measure = _predictions if subject.causal else _errors
            reference = measure(clean, clean, batch)
            cells = _cells(of_token, owner[done : done + len(chunk)], reference.counted, size, subject.causal)
            live.count += np.bincount(cells, minlength=live.count.size).reshape(live.count.shape)
            _add(live.tallies[CLEAN], reference, cells)
            for name, edit in edits.items():
                value = subject.intervene(batch, {hook_point: edit})
                under = measure(value, clean, batch)
                _add(live.tallies[name], under, cells)
                if name == shown and subject.causal:
                    worst.look(batch, of_token, reference, under)
            done += len(chunk)
            ticker.advance(len(chunk))
    live.tokens, live.examples = worst.tokens(), worst.examples()
    return live


def drawn_sequences(context: Context, task: Task) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw whole sequences of test documents until there are enough tokens.

    Returns
    -------
    sequences : np.ndarray
        [n] sequences of the store, ascending.
    owner : np.ndarray
        [n] document of each, from 0 (identical ones count as one).
    n_documents : int
        How many.
    """
    store = context.store
    rows = task.rows[task.at(2)]
    group_of = np.full(len(store.documents), -1)
    group_of[store.origins["document"][rows]] = task.groups[task.at(2)]
    sequences = np.unique(store.origins["sequence"][rows])
    sequences = context.rng(f"live {task.label.name}").permutation(sequences)
    lengths = np.diff(store.examples.bounds)[sequences]
    n = int(np.searchsorted(np.cumsum(lengths), context.config.live.tokens)) + 1
    kept = np.sort(sequences[:n])
    members, owner = np.unique(group_of[store.examples.sequence_document[kept]], return_inverse=True)
    return kept, owner, len(members)


def class_of_tokens(context: Context, label: Labelled) -> np.ndarray:
    """Return the class of every token of the store's sequences, side by side; −1 where it has none or no row."""
    store = context.store
    found = np.full(int(store.examples.bounds[-1]), NO_CLASS)
    at = store.examples.bounds[store.origins["sequence"]] + store.origins["position"]
    found[at] = np.where(store.ordinary, label.codes, NO_CLASS)
    return found


def why_not(context: Context, hook_point: str) -> str | None:
    """Say why the projection cannot be applied live, if it cannot."""
    if not context.config.live.tokens:
        return "live.tokens=0"
    if not context.has_subject:
        return "the store does not say which model it is of, and none was given (--model)"
    if context.store.examples.modality == "vision":
        paths = [image_path(context.store, sequence) for sequence in range(len(context.store.examples.paths))]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            return f"{len(missing)} images are no longer where they were, {missing[0]} among them"
    if context.subject().hook_points[hook_point].axes[:2] != ("batch", "pos"):
        return f"{hook_point} has no value of its own at each position"
    return None


@dataclass(frozen=True)
class Predictions:
    """Of a batch: [batch, predictions] each."""

    counted: np.ndarray
    loss: np.ndarray
    divergence: np.ndarray
    right: np.ndarray
    guess: np.ndarray
    targets: np.ndarray


def _predictions(value: Tensor, clean: Tensor, batch: Batch) -> Predictions:
    log_p, targets, counted = next_token(value, batch)
    reference = next_token(clean, batch)[0]
    loss = -log_p.gather(2, targets[:, :, None])[:, :, 0]
    divergence = (reference.exp() * (reference - log_p)).sum(-1)
    guess = log_p.argmax(-1)
    parts = (counted, loss.double(), divergence.double(), (guess == targets).double(), guess, targets)
    return Predictions(*(part.cpu().numpy() for part in parts))


def _errors(value: Tensor, clean: Tensor, batch: Batch) -> Predictions:
    """Squared distance of the output from the clean one, as a share of the clean output's squared length."""
    moved, length = (value - clean).double().pow(2).sum(-1), clean.double().pow(2).sum(-1)
    if moved.ndim == 1:
        moved, length = moved[:, None], length[:, None]
        counted = torch.ones_like(moved, dtype=torch.bool)
    else:
        counted = batch.mask
    error = (moved / length.clamp_min(1e-30)).cpu().numpy()
    nothing = np.zeros_like(error)
    return Predictions(counted.cpu().numpy(), error, nothing, nothing, nothing, nothing)


def _cells(of_token: np.ndarray, owner: np.ndarray, counted: np.ndarray, size: int, causal: bool) -> np.ndarray:
    """Return the cell (document, class here, class of the token predicted) of each counted prediction."""
    here, there = (of_token[:, :-1], of_token[:, 1:]) if causal else (of_token, of_token)
    if here.shape != counted.shape:  # one output for each example: its class, if all of it has one
        highest = of_token.max(axis=1, keepdims=True)
        same = (np.where(of_token == NO_CLASS, highest, of_token) == highest).all(axis=1, keepdims=True)
        here = there = np.where(same, highest, NO_CLASS)
    cells = (owner[:, None] * size + here - NO_CLASS) * size + there - NO_CLASS
    return np.asarray(cells[counted])


def _add(tally: Tally, found: Predictions, cells: np.ndarray) -> None:
    for name, sums in tally.sums.items():
        values = getattr(found, name)[found.counted]
        sums += np.bincount(cells, weights=values, minlength=sums.size).reshape(sums.shape)


class Worst:
    """The predictions that suffer most where the label holds (has any class): by token, and one by one."""

    def __init__(self, subject: Subject, n_examples: int, lowest: int) -> None:
        self.subject, self.n_examples, self.lowest = subject, n_examples, lowest
        self.change: dict[int, list[float]] = {}
        self.kept: list[tuple[float, dict[str, Any]]] = []

    def look(self, batch: Batch, of_token: np.ndarray, clean: Predictions, under: Predictions) -> None:
        """Look at a batch, where the class is the lowest that counts or above."""
        chosen = clean.counted & (of_token[:, :-1] >= self.lowest)
        rise = np.where(chosen, under.loss - clean.loss, -np.inf)
        for token, change in zip(clean.targets[chosen].tolist(), rise[chosen].tolist(), strict=True):
            self.change.setdefault(token, []).append(change)
        inputs = batch.inputs.cpu().numpy()
        for row in range(len(rise)):  # one of each sequence, so that no document fills the list
            at = int(rise[row].argmax())
            if not np.isfinite(rise[row, at]):
                continue
            said = {
                "context": inputs[row, max(0, at + 1 - CONTEXT_TOKENS) : at + 1].tolist(),
                "token": int(clean.targets[row, at]),
                "p_before": float(np.exp(-clean.loss[row, at])),
                "p_after": float(np.exp(-under.loss[row, at])),
                "guess_before": int(clean.guess[row, at]),
                "guess_after": int(under.guess[row, at]),
            }
            self.kept.append((float(rise[row, at]), said))
        self.kept = sorted(self.kept, key=lambda each: -each[0])[: self.n_examples]

    def tokens(self) -> list[dict[str, Any]]:
        """Return tokens by the mean rise of their loss, with at least ten occurrences."""
        often = {t: changes for t, changes in self.change.items() if len(changes) >= LEAST_TOKENS}
        order = sorted(often, key=lambda t: (-float(np.mean(often[t])), t))[: self.n_examples]
        texts = self.subject.decode(order) if order else []
        return [
            {"token": text, "n": len(often[t]), "rise": float(np.mean(often[t]))}
            for t, text in zip(order, texts, strict=True)
        ]

    def examples(self) -> list[dict[str, Any]]:
        """Return the single predictions, tokens as text."""
        rows = []
        for rise, said in self.kept:
            text = {k: self.subject.decode([said[k]])[0] for k in ("token", "guess_before", "guess_after")}
            rows.append({**said, **text, "context": "".join(self.subject.decode(said["context"])), "rise": rise})
        return rows


def live_rows(context: Context, live: Live, label: Labelled) -> list[dict[str, Any]]:
    """Return one row per condition and kind of prediction, with 95 % intervals over documents, changes paired."""
    n_documents = len(live.count)
    weights = bootstrap_weights(n_documents, context.config.draws, context.rng(f"live documents {label.name}"))
    once = np.ones((1, n_documents))
    rows: list[dict[str, Any]] = []
    for where, cells in kinds_of_prediction(label.classes, causal=live.measure == "cross-entropy").items():
        count = live.count[:, cells].sum(axis=1)
        if count.sum() < LEAST_PREDICTIONS:
            continue
        for name, tally in live.tallies.items():
            row: dict[str, Any] = {"where": where, "method": name, "n": int(count.sum())}
            row["n_documents"] = int((count > 0).sum())
            for quantity, sums in tally.sums.items():
                total = sums[:, cells].sum(axis=1)
                row[quantity] = float(total.sum() / count.sum())
                if quantity != "loss":
                    continue
                rise = total - live.tallies[CLEAN].sums["loss"][:, cells].sum(axis=1)
                with np.errstate(invalid="ignore", divide="ignore"):
                    draws = (weights @ rise) / (weights @ count)
                row["rise"] = float(((once @ rise) / (once @ count))[0])
                row["lo"], row["hi"] = percentile_interval(draws)
            rows.append(row)
    return rows


def kinds_of_prediction(classes: Sequence[str], *, causal: bool) -> dict[str, np.ndarray]:
    """Return masks [classes + 1, classes + 1] of kinds: everywhere, by class here, by what changes (two classes)."""
    size = len(classes) + 1
    kinds = {"everywhere": np.ones((size, size), dtype=bool)}
    for each, title in enumerate(classes, start=1):
        kinds[f"at {title}"] = np.arange(size)[:, None] == np.full(size, each)
    if causal and len(classes) == 2:
        for a in (1, 2):
            for b in (1, 2):
                mask = np.zeros((size, size), dtype=bool)
                mask[a, b] = True
                kinds[f"{classes[a - 1]} → {classes[b - 1]}"] = mask
    return kinds
