"""How much a subject's output suffers when activations are replaced: reconstructions, zeros, means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workbench.errors import UserError
from workbench.provenance import recorded_dataset
from workbench.subjects.protocol import At, Batch, Edit, Edits, Subject, TokenWindow

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.dictionary import Dictionary
    from workbench.progress import Ticker

CLEAN = "clean"
TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 1 << 26  # numbers, so 256 MB for a vocabulary's logits; each condition holds a few such

Measure = Literal["cross-entropy", "output error"]


@dataclass(frozen=True)
class SpliceLosses:
    """What each example loses when activations are replaced, in sums, so that examples can be pooled and resampled.

    Attributes
    ----------
    measure : str
        ``cross-entropy``: of the next token, nats, for causal language models. ``output error``: squared distance of
        the output from the clean one, for everything else.
    loss : dict of str to array [examples]
        For each condition the summed loss; ``clean`` is the subject as it is (0 for ``output error``).
    divergence : dict of str to array [examples]
        For each condition the summed Kullback–Leibler divergence KL(clean ‖ condition) of next-token distributions,
        nats; empty for ``output error``.
    count : array [examples]
        Terms in each sum: predictions made at ordinary positions, or output vectors.
    """

    measure: Measure
    loss: dict[str, NDArray[np.float64]]
    divergence: dict[str, NDArray[np.float64]]
    count: NDArray[np.int64]


def constant(value: Tensor, *, special: bool = False) -> Edit:
    """Return an edit that puts one vector at every position.

    Parameters
    ----------
    value : Tensor [width]
        Zeros for zero-ablation, a mean for mean-ablation; trailing axes of the hook point laid side by side.
    special : bool
        Replace special tokens too; by default they and padding are left as they are, as in `Dictionary.edit`.
    """

    def edit(activation: Tensor, at: At) -> Tensor:
        chosen = at.batch.mask if special else at.batch.mask & ~at.batch.special
        replaced = activation.flatten(2).clone()
        replaced[chosen] = value.to(activation)
        return replaced.view_as(activation)

    return edit


def reconstruction_of(dictionary: Dictionary, *, special: bool = False) -> Edit:
    """Return an edit that puts a dictionary's reconstruction in the activation's place; see `Dictionary.edit`."""
    if dictionary.hook_in != dictionary.hook_out or len(dictionary.hooks_in) > 1:
        raise UserError(
            f"dictionary {dictionary.address} reads {dictionary.hook_in} and reconstructs {dictionary.hook_out}: an "
            "edit needs one hook point that is both"
        )

    def splice(activation: Tensor, at: At) -> Tensor:
        name = at.hook_point.name
        flat = activation.flatten(2)
        fits = at.hook_point.axes[:2] == ("batch", "pos") and flat.shape[2] == dictionary.width
        if name != dictionary.hook_out or not fits:
            raise UserError(
                f"dictionary {dictionary.address} reconstructs {dictionary.hook_out} [batch, pos, {dictionary.width}], "
                f"not {name} {tuple(activation.shape)}"
            )
        chosen = at.batch.mask if special else at.batch.mask & ~at.batch.special
        spliced = flat.clone()
        spliced[chosen] = dictionary.to(activation.device).reconstruct(flat[chosen]).to(activation.dtype)
        return spliced.view_as(activation)

    return splice


def edits_of(dictionary: Dictionary, *, special: bool = False) -> dict[str, Edit]:
    """Return edits that put a reconstruction where it belongs, wherever it is read; see `Dictionary.edits`."""
    if dictionary.hook_in == dictionary.hook_out and len(dictionary.hooks_in) == 1:
        return {dictionary.hook_out: reconstruction_of(dictionary, special=special)}
    return rewriting(dictionary, lambda held, x, there: held.reconstruct(x), special=special)


Rewrite = Callable[["Dictionary", Tensor, Tensor], Tensor]


def rewriting(dictionary: Dictionary, rewrite: Rewrite, *, special: bool = False) -> dict[str, Edit]:
    """Return edits that rewrite what a dictionary reconstructs, from what it reads in the same forward pass.

    Parameters
    ----------
    dictionary : Dictionary
        Of any kind that reconstructs one hook point.
    rewrite : function
        ``rewrite(dictionary, x, there)`` gets the dictionary on the activations' device, the rows that it reads
        [rows, width] and those that stand where it writes [rows, width of hook_out], and returns the latter anew.
    special : bool
        Rewrite special tokens too.

    Raises
    ------
    UserError
        For a dictionary that reconstructs several hook points; when used, if a hook point that is read comes after the
        one that is written, or has another width.
    """
    if len(dictionary.hooks_out) > 1:
        raise UserError(
            f"dictionary {dictionary.address} reconstructs {dictionary.hook_out} at once: in one forward pass there is "
            "no moment at which all of that could be put in place"
        )
    read: dict[str, tuple[Batch, Tensor]] = {}

    def chosen(at: At) -> Tensor:
        return at.batch.mask if special else at.batch.mask & ~at.batch.special

    def remember(activation: Tensor, at: At) -> Tensor:
        read[at.hook_point.name] = at.batch, activation.flatten(2)[chosen(at)]
        return activation

    def put(activation: Tensor, at: At) -> Tensor:
        if at.hook_point.name in dictionary.hooks_in:
            remember(activation, at)
        flat = activation.flatten(2)
        for hook in dictionary.hooks_in:
            if hook not in read or read[hook][0] is not at.batch:
                raise UserError(
                    f"dictionary {dictionary.address} reads {hook}, which the subject reaches only after "
                    f"{at.hook_point.name}, where the reconstruction is to be put"
                )
        if flat.shape[2] != len(dictionary.b_dec):
            raise UserError(
                f"dictionary {dictionary.address} reconstructs {len(dictionary.b_dec)} numbers, but "
                f"{at.hook_point.name} has {flat.shape[2]}"
            )
        x = dictionary.rows_in({hook: rows.to(flat.device) for hook, (_, rows) in read.items()})
        spliced = flat.clone()
        spliced[chosen(at)] = rewrite(dictionary.to(flat.device), x, flat[chosen(at)]).to(flat.dtype)
        read.clear()
        return spliced.view_as(activation)

    return {**dict.fromkeys(dictionary.hooks_in, remember), dictionary.hook_out: put}


def reached(subject: Subject, batch: Batch, names: Sequence[str]) -> list[str]:
    """Return hook points in the order in which a forward pass reaches them."""
    order: list[str] = []

    def note(activation: Tensor, at: At) -> Tensor:
        order.append(at.hook_point.name)
        return activation

    subject.run(batch, edits=dict.fromkeys(names, note))
    return order


def image_path(store: Store, sequence: int) -> Path:
    """Return where an image of a store was when it was captured: paths count from the dataset's folder."""
    return Path(recorded_dataset(store).folder, store.examples.paths[sequence])


def stored_examples(store: Store, sequences: Sequence[int]) -> list[Any]:
    """Return sequences of a store as a subject's `batch` takes them: whole windows of tokens, or paths of images."""
    examples = store.examples
    if examples.modality == "vision":
        return [image_path(store, sequence) for sequence in sequences]
    windows = []
    for sequence in sequences:
        at = slice(int(examples.bounds[sequence]), int(examples.bounds[sequence + 1]))
        windows.append(TokenWindow(examples.ids[at].astype(np.int64), examples.special[at], examples.offsets[at]))
    return windows


def splice_losses(
    subject: Subject, examples: Sequence[Any], conditions: Mapping[str, Edits], *, ticker: Ticker | None = None
) -> SpliceLosses:
    """Run examples through a subject as it is and under each condition.

    Parameters
    ----------
    subject : Subject
        Language or vision.
    examples : sequence
        What `Subject.batch` takes; each `TokenWindow` says which tokens are special.
    conditions : mapping of str to edits
        Name of each condition, other than ``clean``, to its edits.
    ticker : Ticker, optional
        Advanced by the number of examples done.

    Returns
    -------
    SpliceLosses
        Next-token losses count where the prediction is made at an ordinary position: edits leave special tokens alone.
    """
    loss: dict[str, list[Tensor]] = {name: [] for name in (CLEAN, *conditions)}
    divergence: dict[str, list[Tensor]] = {name: [] for name in conditions}
    counts: list[Tensor] = []
    for chunk in chunks(subject, examples):
        batch = subject.batch(chunk)
        clean = subject.run(batch).value
        assert clean is not None
        if subject.causal:
            reference, targets, counted = next_token(clean, batch)
            counts.append(counted.sum(1))
            loss[CLEAN].append(cross_entropy(reference, targets, counted))
        else:
            counts.append(torch.full((len(chunk),), 1) if clean.ndim == 2 else batch.mask.sum(1))
            loss[CLEAN].append(torch.zeros(len(chunk)))
        for name, edits in conditions.items():
            value = subject.intervene(batch, edits)
            if subject.causal:
                log_p, _, _ = next_token(value, batch)
                loss[name].append(cross_entropy(log_p, targets, counted))
                divergence[name].append(((reference.exp() * (reference - log_p)).sum(-1) * counted).sum(1))
            else:
                squared = (value.float() - clean.float()).pow(2)
                kept = squared if clean.ndim == 2 else squared * batch.mask[:, :, None]
                loss[name].append(kept.flatten(1).sum(1))
        if ticker is not None:
            ticker.advance(len(chunk))
    return SpliceLosses(
        measure="cross-entropy" if subject.causal else "output error",
        loss={name: joined(parts) for name, parts in loss.items()},
        divergence={name: joined(parts) for name, parts in divergence.items()} if subject.causal else {},
        count=joined(counts).astype(np.int64),
    )


def chunks(subject: Subject, examples: Sequence[Any]) -> Iterator[list[Any]]:
    """Cut examples, in order, into batches that bound the tokens (with padding) and the logits held at a time."""
    vocab = subject.hook_points["hook_output"].shape[-1] if "hook_output" in subject.hook_points else None
    limit = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // (vocab or 1))
    chunk: list[Any] = []
    longest = 0
    for example in examples:
        length = len(example.tokens) if isinstance(example, TokenWindow) else subject.n_context
        if chunk and max(longest, length) * (len(chunk) + 1) > limit:
            yield chunk
            chunk, longest = [], 0
        chunk.append(example)
        longest = max(longest, length)
    if chunk:
        yield chunk


def next_token(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities [batch, pos - 1, vocab], the tokens that came [batch, pos - 1], and which count."""
    counted = batch.mask[:, 1:] & ~batch.special[:, :-1]
    return logits[:, :-1].float().log_softmax(-1), batch.inputs[:, 1:], counted


def cross_entropy(log_p: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the summed loss of each example, nats [batch]."""
    loss = F.nll_loss(log_p.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return (loss * counted).sum(1)


def joined(parts: list[Tensor]) -> NDArray[np.float64]:
    """Return per-batch results as one array."""
    return np.concatenate([np.zeros(0), *(part.double().cpu().numpy() for part in parts)])
