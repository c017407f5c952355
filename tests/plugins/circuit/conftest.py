"""What tests of circuits share: small decoders of random weights."""

import dataclasses

import numpy as np
import pytest
import torch

from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.protocol import TokenWindow
from workbench.subjects.stacked import StackedSubject
from workbench.subjects.tokenization import pad_windows

STACK = Architecture(n_layers=2, d_model=12, n_heads=4, d_head=3, d_mlp=16, causal=True)


class TokenSubject(StackedSubject):
    """A decoder without a tokenizer: token ids go in."""

    modality = "text"

    def __init__(self, network):
        super().__init__("zoo:random", network)
        self.n_context = network.arch.n_context

    def tokenizer_fingerprint(self):
        return "none"

    def batch(self, examples):
        ids = [np.asarray(each, np.int64) for each in examples]
        windows = [TokenWindow(i, np.zeros(len(i), bool), np.full((len(i), 2), -1)) for i in ids]
        return pad_windows(windows, 0, self.n_context)


@pytest.fixture(scope="session")
def random_subject():
    """Make a decoder of random weights in float64, large enough that its parts matter."""

    def make(seed=0, **changes):
        arch = DecoderArchitecture(dataclasses.replace(STACK, **changes), n_vocab=11, n_context=8)
        network = Decoder(arch).double()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            scale = 1.0 if "embed" in name else 0.6 * parameter.shape[-1] ** -0.5
            shift = 1.0 if name.endswith(("ln1.weight", "ln2.weight", "ln_final.weight")) else 0.0
            parameter.data = shift + scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return TokenSubject(network)

    return make
