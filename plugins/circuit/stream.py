"""The residual stream of a subject taken apart: what each source of the graph adds to it in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.objectives import Objective, last_logits
from workbench.plugins.circuit.pairs import UNANSWERED, Pairs
from workbench.subjects.protocol import Batch, Subject

ENTRY = "blocks.0.hook_resid_pre"  # embedding and positions; scaled or normalised where the architecture does that
POSITIONS = "hook_pos_embed"


@dataclass(frozen=True)
class HeadGain:
    """What a layer does to its heads' results before they enter the stream: nothing, in most models.

    Attributes
    ----------
    factor : float
        All are multiplied by it (Granite).
    weight : Tensor [d_model], optional
        Of a norm behind the attention (Gemma 2). Its scale is that of the run; given the scale, the norm is linear.
    """

    factor: float = 1.0
    weight: Tensor | None = None


class Stream:
    """Runs prompts through a subject and says what each source of its graph adds to the residual stream.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    graph : Graph
        Its graph.

    Raises
    ------
    UserError
        If the heads' results do not sum to what the attention adds.
    """

    def __init__(self, subject: Subject, graph: Graph) -> None:
        self.subject, self.graph = subject, graph
        self.exit = f"blocks.{graph.n_layers - 1}.hook_resid_post"
        self.gains = head_gains(subject)

    def batches(self, pairs: Pairs, size: int) -> Iterator[tuple[np.ndarray, Batch, Batch]]:
        """Yield which examples these are, the clean batch and the corrupted one.

        Raises
        ------
        UserError
            If `size` is below 1.
        """
        if size < 1:
            raise UserError(f"batches of {size} examples: at least 1")
        for start in range(0, len(pairs), size):
            at = np.arange(start, min(start + size, len(pairs)))
            clean, corrupted = (
                self.subject.batch([tokens[i, : pairs.lengths[i]].tolist() for i in at])
                for tokens in (pairs.clean, pairs.corrupted)
            )
            yield at, clean, corrupted

    @property
    def hook_points(self) -> list[str]:
        """Hook points from which `gather` reads."""
        names = [ENTRY] + [POSITIONS] * (POSITIONS in self.subject.hook_points)
        for layer in range(self.graph.n_layers):
            names.append(f"blocks.{layer}.attn.hook_result")
            if self.gains[layer].weight is not None:
                names.append(scale_name(layer))
            if self.graph.mlps:
                names.append(f"blocks.{layer}.hook_mlp_out")
        return names

    def gather(self, captured: Mapping[str, Tensor]) -> Tensor:
        """Put the values of all sources together -> [source, batch, pos, d_model]."""
        first = captured[ENTRY]
        values = first.new_empty(len(self.graph.sources), *first.shape)
        values[0] = first - captured[POSITIONS] if POSITIONS in captured else first
        for layer in range(self.graph.n_layers):
            results = captured[f"blocks.{layer}.attn.hook_result"]
            values[self.graph.heads(layer)] = self.added(layer, results, captured.get(scale_name(layer)))
            if self.graph.mlps:
                values[self.graph.mlp(layer)] = captured[f"blocks.{layer}.hook_mlp_out"]
        return values

    def added(self, layer: int, results: Tensor, scale: Tensor | None) -> Tensor:
        """What heads add to the stream, from their results [batch, pos, head, d_model] -> [head, batch, pos, d_model].

        `scale` [batch, pos, 1] is that of a norm behind the attention, where there is one.
        """
        gain, by_head = self.gains[layer], results.permute(2, 0, 1, 3)
        if gain.weight is not None:
            assert scale is not None
            return by_head / scale.to(by_head) * gain.weight.to(by_head)
        return by_head if gain.factor == 1 else by_head * gain.factor

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run a batch as it is: what each source adds [source, batch, pos, d_model], and logits [batch, pos, vocab]."""
        output = self.subject.run(batch, capture=self.hook_points)
        assert output.value is not None
        return self.gather(output.captured), output.value

    def objective(self, pairs: Pairs, batch_size: int) -> Objective:
        """Return the pairs' metric, the subject's own predictions measured where it compares with them."""
        if pairs.metric not in UNANSWERED:
            return Objective(pairs)
        reference = []
        for at, clean, _ in self.batches(pairs, batch_size):
            logits = self.subject.run(clean).value
            assert logits is not None
            last = torch.from_numpy(np.asarray(pairs.lengths[at] - 1, np.int64))
            reference.append(last_logits(logits, last).log_softmax(-1).cpu())
        return Objective(pairs, torch.cat(reference))


def scale_name(layer: int) -> str:
    """Hook point of what a norm behind the attention divides by."""
    return f"blocks.{layer}.ln1_post.hook_scale"


def head_gains(subject: Subject) -> list[HeadGain]:
    """Find out, by a pass over a few tokens, how each layer's heads enter the stream.

    Raises
    ------
    UserError
        If neither a plain sum, nor a multiple, nor a norm of the sum is what an attention adds.
    """
    names = [f"blocks.*.{name}" for name in ("attn.hook_result", "hook_attn_out")]
    names += ["blocks.*.ln1_post.hook_scale"] * (scale_name(0) in subject.hook_points)
    seen = subject.capture(subject.batch([[0, 1, 2]]), names)
    return [head_gain(subject, layer, seen) for layer in range(subject.n_layers)]


def head_gain(subject: Subject, layer: int, seen: Mapping[str, Tensor]) -> HeadGain:
    """Find the gain of one layer in what was seen."""
    at, scale = f"blocks.{layer}.", scale_name(layer)
    total, added = seen[f"{at}attn.hook_result"].sum(2).double(), seen[f"{at}hook_attn_out"].double()
    bias = subject.weight_or_none("b_O", layer)
    if bias is not None:
        total = total + bias.to(total)
    rounding = max(torch.finfo(subject.dtype).eps, torch.finfo(torch.float32).eps)  # norms may be in float32
    slack = rounding**0.5 * float(added.abs().max())

    def is_added(values: Tensor) -> bool:
        return bool((values - added).abs().max() <= slack)

    if is_added(total):
        return HeadGain()
    weight = subject.weight_or_none("ln1_post.w", layer) if scale in seen else None
    if weight is not None:
        for gain in (weight, 1 + weight):  # Gemma's norms multiply by one plus their weight
            if is_added(total / seen[scale].double() * gain.to(total)):
                return HeadGain(weight=gain)
    factor = float((total * added).sum() / total.pow(2).sum().clamp_min(1e-30))
    if is_added(factor * total):
        return HeadGain(factor)
    raise UserError(
        f"{subject.address}: the heads of layer {layer} do not sum to what its attention adds to the stream"
    )
