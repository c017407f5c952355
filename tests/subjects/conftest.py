"""What all tests of subject models share."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Train a byte-level BPE tokenizer of at most 300 tokens on a text; with `bos`, it starts each text with it."""

    def train(text, bos=None):
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator([text], trainer)
        if bos is not None:
            special = [(bos, backend.token_to_id(bos))]
            backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=special)
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")

    return train
