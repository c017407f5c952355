"""Which part of a language subject writes how much of a logit directly: direct logit attribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.generation import last_logits
from workbench.lenses import token_of
from workbench.subjects.protocol import At, Edits, Subject

if TYPE_CHECKING:
    import pandas

REST, EDITS = "rest", "edits"
SCALE = "ln_final.hook_scale"


def direct_logit_attribution(
    subject: Subject,
    prompt: str | Sequence[int],
    answer: str | int,
    wrong: str | int | None = None,
    *,
    edits: Edits | None = None,
) -> pandas.DataFrame:
    """Split a logit, or a difference of two, at the end of a prompt into what each component wrote of it.

    Parameters
    ----------
    subject : Subject
        A causal, pre-norm language model.
    prompt : str or sequence of int
        One sequence, or its token ids.
    answer : str or int
        A token, by text or id.
    wrong : str or int, optional
        Another: the difference of the two logits is split then.
    edits : mapping, optional
        In place meanwhile, as in `Subject.run`.

    Returns
    -------
    pandas.DataFrame
        A row per component: ``component`` (``embed``, ``pos_embed``, heads ``a0.h3``, ``a0.bias``, ``m0``; ``a0`` where
        the heads do not sum to what attention adds, such as under a norm of its own), ``layer``, ``kind``, ``logit``.
        ``edits`` is what edits in the stream added, ``rest`` what nothing in the stream wrote (biases of the final norm
        and of the unembedding, soft caps); the column sums to the logit exactly.

    Raises
    ------
    UserError
        For another kind of subject, or an answer that is not one token.

    Notes
    -----
    Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021). The final norm's scale is held at its
    actual value, so that the logit is linear in the stream; its gradient there is the direction that is read.
    """
    import pandas

    if not subject.causal or subject.modality != "text" or "hook_embed" not in subject.hook_points:
        raise UserError(f"{subject.address}: direct logit attribution needs a causal language model")
    right, other = token_of(subject, answer), None if wrong is None else token_of(subject, wrong)
    final = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    parts = ("attn.hook_result", "hook_attn_out", "hook_mlp_out")
    wanted = ["hook_embed", "hook_pos_embed", "blocks.0.hook_resid_pre", final]
    wanted += [f"blocks.{layer}.{part}" for layer in range(subject.n_layers) for part in parts]
    names = [name for name in wanted if name in subject.hook_points]
    placed = dict(edits or {})
    if SCALE in subject.hook_points:
        before = placed.get(SCALE, ())
        placed[SCALE] = [*([before] if callable(before) else before), held]
    batch = subject.batch([prompt])
    run = subject.run(batch, capture=names, edits=placed, grad=True)
    assert run.value is not None
    logits = last_logits(run.value, batch)[0].double()
    total = logits[right] - (0 if other is None else logits[other])
    (gradient,) = torch.autograd.grad(total, run.captured[final])
    last = int(batch.mask[0].sum()) - 1
    direction = gradient[0, last].double()
    there = {name: value.detach()[0, last].double() for name, value in run.captured.items()}
    rows: list[tuple[str, int | None, str, float]] = [
        (name, layer, kind, float(vector @ direction)) for name, layer, kind, vector in components(subject, there)
    ]
    if edits:
        rows.append((EDITS, None, EDITS, float(there[final] @ direction) - sum(row[-1] for row in rows)))
    rows.append((REST, None, REST, float(total.detach()) - sum(row[-1] for row in rows)))
    return pandas.DataFrame(rows, columns=["component", "layer", "kind", "logit"]).astype({"layer": "Int64"})


def held(activation: Tensor, at: At) -> Tensor:
    """Keep a value and let no gradient through."""
    return activation.detach()


def components(subject: Subject, there: dict[str, Tensor]) -> Iterator[tuple[str, int | None, str, Tensor]]:
    """Give each part of the stream at one position: name, layer, kind and vector [d_model]; they sum to the stream.

    Where parts do not (a norm after attention, scaled embeddings), their sum as the stream has it is given instead.
    """
    start = there["blocks.0.hook_resid_pre"]
    outer = {name.removeprefix("hook_"): there[name] for name in ("hook_embed", "hook_pos_embed") if name in there}
    if not close(sum(outer.values(), torch.zeros_like(start)), start):
        outer = {"embed": start}
    yield from ((name, None, "embedding", vector) for name, vector in outer.items())
    for layer in range(subject.n_layers):
        whole = there[f"blocks.{layer}.hook_attn_out"]
        result = there[f"blocks.{layer}.attn.hook_result"]
        bias = whole - result.sum(0)
        held_bias = subject.weight_or_none("b_O", layer)
        if close(bias, torch.zeros_like(whole) if held_bias is None else held_bias.to(whole)):
            yield from ((f"a{layer}.h{head}", layer, "head", vector) for head, vector in enumerate(result))
            yield f"a{layer}.bias", layer, "bias", bias
        else:
            yield f"a{layer}", layer, "attention", whole
        mlp = there.get(f"blocks.{layer}.hook_mlp_out")
        if mlp is not None:
            yield f"m{layer}", layer, "MLP", mlp


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two vectors are the same but for rounding."""
    return bool((a - b).norm() <= 1e-3 * torch.maximum(a.norm(), b.norm()) + 1e-6)
