"""A language model of a few hundred weights, random, in the zoo's format: for tests that must be fast."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.zoo.subject import write_architecture

BEGIN = "<bos>"


def save_tiny_decoder(folder: Path, *, n_context: int = 16, d_model: int = 8, seed: int = 0) -> Path:
    """Write a decoder with random weights and a tokenizer of single bytes; its address is ``zoo:FOLDER``.

    Parameters
    ----------
    folder : Path
        Made if need be.
    n_context : int
        Longest sequence, with the token that starts it.
    d_model : int
        Width, divisible by 2.
    seed : int
        Of the weights.

    Returns
    -------
    Path
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BEGIN)])
    begin = len(alphabet)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    tokenizer.save(str(folder / "tokenizer.json"))

    stack = Architecture(n_layers=2, d_model=d_model, n_heads=2, d_head=d_model // 2, d_mlp=2 * d_model, causal=True)
    architecture = DecoderArchitecture(stack, n_vocab=begin + 1, n_context=n_context)
    write_architecture(architecture, folder / "architecture.json")
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.5
        for name, tensor in Decoder(architecture).state_dict().items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "record.json").write_text('{"weights": "random, for tests"}\n', encoding="utf-8")
    return folder
