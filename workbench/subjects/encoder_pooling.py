"""Sentence embeddings: how a sentence-transformers checkpoint says that hidden states are pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import UserError

ReadJson = Callable[[str], Any]

FLAGS = {  # the older files have a flag for each
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = tuple(FLAGS.values())


@dataclass(frozen=True)
class SentencePooling:
    """From hidden states to one vector per sentence (Reimers and Gurevych, 2019).

    Attributes
    ----------
    modes : tuple of str
        ``cls``, ``max``, ``mean``, ``mean_sqrt_len_tokens``, ``weightedmean`` (weights 1, 2, 3, ...) or ``lasttoken``;
        several are concatenated.
    normalised : bool
        Each vector is divided by its length.
    n_context : int, optional
        Texts are cut after this many tokens, special ones included.
    """

    modes: tuple[str, ...] = ("mean",)
    normalised: bool = False
    n_context: int | None = None

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool hidden [batch, pos, d_model] over mask [batch, pos] -> [batch, embedding]."""
        pooled = torch.cat([pool(mode, hidden, mask.to(hidden.device)) for mode in self.modes], dim=-1)
        return F.normalize(pooled, dim=-1) if self.normalised else pooled


def pool(mode: str, hidden: Tensor, mask: Tensor) -> Tensor:
    """Pool hidden [batch, pos, d_model] in one way -> [batch, d_model]."""
    rows = torch.arange(len(hidden), device=hidden.device)
    counts = mask.sum(1, keepdim=True).to(hidden.dtype)
    match mode:
        case "cls":
            return hidden[:, 0]
        case "lasttoken":
            return hidden[rows, mask.sum(1) - 1]
        case "max":
            return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
        case "weightedmean":
            weights = mask.cumsum(1).to(hidden.dtype) * mask
            return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    total = (hidden * mask[..., None]).sum(1)
    return total / (counts if mode == "mean" else counts.sqrt())


def read_pooling(read_json: ReadJson, model: str) -> SentencePooling:
    """Read ``modules.json`` and what it names; without it, sentence-transformers takes the mean, and so do we.

    Parameters
    ----------
    read_json : function
        From a file's name within the checkpoint to its content, None where it is absent.
    model : str
        For messages.

    Raises
    ------
    UserError
        For a module or a way of pooling that is not known here.
    """
    modules: Sequence[Mapping[str, Any]] = read_json("modules.json") or ()
    settings = read_json("sentence_bert_config.json") or {}
    pooling = SentencePooling(n_context=settings.get("max_seq_length"))
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        match kind:
            case "Transformer":
                continue
            case "Pooling":
                config = read_json(f"{module['path']}/config.json") or {}
                pooling = SentencePooling(read_modes(config, model), pooling.normalised, pooling.n_context)
            case "Normalize":
                pooling = SentencePooling(pooling.modes, True, pooling.n_context)
            case _:
                known = "Transformer, Pooling, Normalize"
                raise UserError(f"{model} makes sentence embeddings with a {kind!r} module; supported: {known}")
    return pooling


def read_modes(config: Mapping[str, Any], model: str) -> tuple[str, ...]:
    """Return the ways of pooling that a ``Pooling`` module's configuration names, in the library's order."""
    named = config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for flag, mode in FLAGS.items() if config.get(flag))
    else:
        modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise UserError(f"{model} pools by {unknown[0]!r}; supported: {', '.join(MODES)}")
    return modes or ("mean",)
