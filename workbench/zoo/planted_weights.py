"""From the design of a planted subject to a network that can be run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.sources import resolve_device
from workbench.zoo.planted import D_HEAD, D_MODEL, N_CONTEXT, Recipe, directions
from workbench.zoo.planted_heads import design
from workbench.zoo.planted_prompts import BOS, END, FILLERS, NAMES, WORDS
from workbench.zoo.subject import ZooSubject
from workbench.zoo.text import ZooText

LOGIT = 10.0  # of a name whose output direction has length one
GRID = 2.0**-16  # weights are multiples of it, so that a last bit of another machine's linear algebra changes none


def load_planted(name: str, device: str = "auto", dtype: str | None = None) -> ZooSubject:
    """Construct a planted subject; nothing is read from disk.

    Parameters
    ----------
    name : str
        See `Recipe.of`.
    device, dtype : str
        See `load_zoo`.

    Raises
    ------
    UserError
        For a name that is no planted subject, or an absent device.
    """
    network = construct(Recipe.of(name)).to(resolve_device(device), getattr(torch, dtype or "float32"))
    return ZooSubject(f"zoo:{name}", network, ZooText(make_tokenizer(), N_CONTEXT))


def make_tokenizer() -> Any:
    """Return the tokenizer: a word is a token, an unknown one is the last filler; a text starts with `BOS`."""
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=WORDS[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([WORDS[BOS]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{WORDS[BOS]} $A", special_tokens=[(WORDS[BOS], BOS)]
    )
    return tokenizer


def construct(recipe: Recipe) -> Decoder:
    """Return the network of a recipe, in float32.

    All biases are left out. Its scores are divided by the root of `D_HEAD`, so the queries are multiplied by it.
    """
    plan, rng = design(recipe), recipe.rng("weights")
    architecture = Architecture(
        n_layers=plan.n_layers, d_model=D_MODEL, n_heads=plan.n_heads, d_head=D_HEAD, d_mlp=0, norm="none", causal=True,
        query_bias=False, key_bias=False, value_bias=False, out_bias=False,
    )  # fmt: skip
    network = Decoder(DecoderArchitecture(architecture, len(WORDS), N_CONTEXT)).requires_grad_(False)
    turn = rotation(rng, D_MODEL)
    put(network.embed.weight, embedding() @ turn)
    put(network.pos_embed.weight, directions("P") @ turn)
    put(network.unembed.weight, unembedding() @ turn)
    for layer in range(plan.n_layers):
        maps = []
        for head in range(plan.n_heads):
            each = plan.heads[layer, head]
            strength = np.sqrt(np.abs(each.weight) * recipe.sharpness)[:, None]
            sides = (each.query * strength, each.key * strength * np.sign(each.weight)[:, None], each.read, each.write)
            noisy = [with_noise(widened(side), recipe.noise, rng) for side in sides]
            inside = rotation(rng, D_HEAD), rotation(rng, D_HEAD)
            maps.append([inside[i // 2] @ side @ turn for i, side in enumerate(noisy)])  # each [D_HEAD, D_MODEL]
        query, key, value, out = (np.concatenate(matrices) for matrices in zip(*maps, strict=True))
        attention: Any = network.stack.blocks[layer]
        put(attention.attn.q.weight, query * math.sqrt(D_HEAD))
        put(attention.attn.k.weight, key)
        put(attention.attn.v.weight, value)
        put(attention.attn.o.weight, out.T)
    return network


def put(parameter: Tensor, values: np.ndarray) -> None:
    """Fill a parameter, rounded to the grid."""
    parameter.copy_(torch.from_numpy(np.round(values / GRID) * GRID))


def embedding() -> np.ndarray:
    """What each token is made of [token, D_MODEL]."""
    tokens = np.zeros((len(WORDS), D_MODEL))
    tokens[BOS], tokens[END] = directions("bos"), directions("end")
    tokens[NAMES], tokens[FILLERS] = directions("N") + directions("isname"), directions("F")
    return np.asarray(tokens + directions("one"))


def unembedding() -> np.ndarray:
    """What each token's logit reads [token, D_MODEL]."""
    tokens = np.zeros((len(WORDS), D_MODEL))
    tokens[NAMES] = LOGIT * directions("O")
    return tokens


def widened(side: np.ndarray) -> np.ndarray:
    """Terms [term, D_MODEL] with rows of zeros below -> [D_HEAD, D_MODEL]."""
    return np.pad(side, ((0, D_HEAD - len(side)), (0, 0)))


def with_noise(matrix: np.ndarray, relative: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, relative to the matrix's root mean square."""
    scale = relative * np.sqrt(np.mean(matrix**2))
    return np.asarray(matrix + scale * rng.normal(size=matrix.shape))


def rotation(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return a random orthogonal matrix [n, n]; signs fixed, so that it does not depend on the library."""
    turned, upper = np.linalg.qr(rng.normal(size=(n, n)))
    return np.asarray(turned * np.sign(np.diag(upper)))
