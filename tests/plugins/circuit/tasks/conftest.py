"""A small decoder whose tokenizer has words, names and two digits as single tokens."""

import re

import pytest
import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, processors

from workbench.plugins.circuit.tasks.ioi import TEMPLATES
from workbench.plugins.circuit.tasks.wording import word_list
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.zoo.subject import ZooSubject
from workbench.zoo.text import ZooText

PIECE = r" ?[A-Za-z]+| ?[0-9]{2}|\s+|[^A-Za-z0-9\s]| ?[0-9]"
TEXTS = (
    *(each.replace("[A]", "X").replace("[B]", "X") for each in TEMPLATES),
    'The lasted from the year to def (self, a):\n    """x\n\n    :param a: x\n    :param',
)
N_CONTEXT = 64


@pytest.fixture(scope="session")
def worded_tokenizer():
    """A word is a token, with the space before it; a text begins with a token of its own."""
    pieces = {piece for text in TEXTS for piece in re.findall(PIECE, text)}
    words = [word for kind in ("places", "objects", "events", "arguments") for word in word_list(kind)]
    pieces |= {f" {word}" for word in (*word_list("names")[:40], *words)} | {*words, "def"}
    pieces |= {f"{space}{number:02d}" for number in range(100) for space in ("", " ")}
    vocabulary = {piece: at for at, piece in enumerate(["<s>", "<unk>", *sorted(pieces)])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


@pytest.fixture(scope="session")
def subject(worded_tokenizer):
    backend = worded_tokenizer
    stack = Architecture(n_layers=2, d_model=12, n_heads=3, d_head=4, d_mlp=16, causal=True)
    torch.manual_seed(0)
    network = Decoder(DecoderArchitecture(stack, n_vocab=backend.get_vocab_size(), n_context=N_CONTEXT))
    return ZooSubject("zoo:worded", network.eval(), ZooText(backend, N_CONTEXT))
