"""How `zoo:pycode` is made: a four-layer decoder on the standard library's own source."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from workbench.datasets.python_source import is_held_out
from workbench.datasets.python_stdlib import PythonStdlib
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.zoo.compression import gzip_bits, lzma_bits
from workbench.zoo.ngrams import KneserNey
from workbench.zoo.subject import ZooSubject
from workbench.zoo.trainer import Lesson, Recipe, new_decoder, next_token_losses

ABOUT = "decoder language model of Python, trained on the standard library's own source"
BOS = "<|begin|>"
N_VOCAB = 3072
N_CONTEXT = 256
RECIPE = Recipe(
    seed=0, steps=2400, batch_size=24, lr=3e-3, weight_decay=0.05, warmup_steps=100, decay_share=0.8,
    betas=(0.9, 0.95), muon_lr=0.02, precision="bfloat16", checkpoint_every=50,
)  # fmt: skip
STACK = Architecture(n_layers=4, d_model=256, n_heads=4, d_head=64, d_mlp=1024, causal=True, rotary_base=10_000.0)

# Words, underscores, numbers, quotes, brackets and runs of other signs are pieces of their own, so that a token is in
# one place only (inside a string or outside it); a space goes with what follows it, line ends stand alone.
PIECES = (
    r" ?\p{L}+| ?_+| ?\p{N}{1,3}"
    r"""| ?"{3}| ?'{3}| ?["']| ?[()\[\]{}]| ?#+"""
    r"""|\n+| ?[^\s\p{L}\p{N}_"'()\[\]{}#]+"""
    r"|[^\S\n]+(?!\S)|[^\S\n]+"
)


def new_tokenizer(model: Any) -> Any:
    """Return a byte-level tokenizer around a model; a text starts with `BOS`."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def train_tokenizer(texts: Iterator[str], n_vocab: int = N_VOCAB) -> Any:
    """Return a byte-pair tokenizer of `n_vocab` tokens learned from texts."""
    tokenizer = new_tokenizer(models.BPE())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=n_vocab,
            special_tokens=[BOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


HOW = {
    "all": "total -log2 probability of the held-out modules (a tenth, by a hash of the name) over their UTF-8 bytes",
    "zoo:pycode": "windows of 256 tokens, each after a beginning-of-sequence token and with nothing else before it",
    "unigram": "modified Kneser-Ney of order 1: relative frequencies, discounted, with the uniform distribution below",
    "kneser_ney_3": "interpolated modified Kneser-Ney over the same tokens; histories are not cut at windows",
    "kneser_ney_5": "likewise, 5-grams",
    "gzip": "raw DEFLATE at level 9, each module alone, no header counted",
    "gzip_primed": "likewise, after the last 32 KiB of the training modules in the order of their names",
    "lzma_primed": "growth of LZMA (preset 9) when all held-out modules are appended to all training modules",
    "untrained": "random weights, on the first held-out module",
}


class PycodeLesson(Lesson):
    """Windows of the training modules: each module once an epoch, cut at other places each time.

    Parameters
    ----------
    texts : mapping of str to str
        All modules by dotted name; those held out are used for nothing here.
    recipe : Recipe
        How to train.
    n_vocab, n_context : int
        Of the tokenizer and of a window, `BOS` included.
    stack : Architecture
        Shape of the blocks.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        recipe: Recipe = RECIPE,
        *,
        n_vocab: int = N_VOCAB,
        n_context: int = N_CONTEXT,
        stack: Architecture = STACK,
    ) -> None:
        self.recipe, self.texts, self.dataset_fingerprint = recipe, dict(texts), ""
        shown = [text for name, text in sorted(texts.items()) if not is_held_out(name)]
        self.tokenizer = train_tokenizer(iter(shown), n_vocab)
        self.modules = encode(self.tokenizer, shown)
        n_tokens = self.tokenizer.get_vocab_size()
        self.architecture = DecoderArchitecture(stack, n_tokens, n_context, learned_positions=False, tied=True)
        self.epoch, self.windows = -1, np.empty((0, 3), np.int64)

    def fingerprint(self) -> str:
        """See `Lesson`."""
        digest = xxhash.xxh3_128(self.tokenizer.to_str().encode())
        for module in self.modules:
            digest.update(module.tobytes())
        return digest.hexdigest()

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Lesson`."""
        size = self.recipe.batch_size
        first, length = step * size, self.epoch_length()
        chosen = [self.window(*divmod(first + i, length)) for i in range(size)]
        lengths = np.array([len(window) + 1 for window in chosen])
        tokens = np.zeros((size, lengths.max()), np.int64)
        for row, window in zip(tokens, chosen, strict=True):
            row[1 : len(window) + 1] = window
        return tokens, lengths

    def epoch_length(self) -> int:
        """Return the number of windows of an epoch: each module's, cut with one short piece at either end."""
        piece = self.architecture.n_context - 1
        return sum(len(module) // piece + 1 for module in self.modules)

    def window(self, epoch: int, at: int) -> np.ndarray:
        """Return the tokens, without `BOS`, of one window of an epoch, 0 <= at < epoch_length()."""
        if epoch != self.epoch:
            self.epoch, self.windows = epoch, self.cut(epoch)
        module, start, end = self.windows[at]
        tokens: np.ndarray = self.modules[module][start:end]
        return tokens

    def cut(self, epoch: int) -> np.ndarray:
        """Return the windows of an epoch in random order: module, start, end."""
        piece = self.architecture.n_context - 1
        rng = np.random.default_rng([self.recipe.seed, epoch])
        cuts = []
        for i, module in enumerate(self.modules):
            n = len(module) // piece + 1
            # Somewhere between "first window short" and "last window short": the same number of windows each time.
            first = piece - int(rng.integers(n * piece - len(module) + 1)) if n > 1 else piece
            ends = np.minimum(first + piece * np.arange(n), len(module))
            cuts.append(np.stack([np.full(n, i), np.concatenate([[0], ends[:-1]]), ends], axis=1))
        windows = np.concatenate(cuts)
        return rng.permutation(windows)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Return each text's tokens, without `BOS`."""
    return [np.array(encoding.ids[1:], np.int64) for encoding in tokenizer.encode_batch(list(texts))]


def make_lesson(recipe: Recipe = RECIPE) -> PycodeLesson:
    """Return the lesson of the shipped subject: the running Python's standard library."""
    dataset = PythonStdlib()
    documents = (dataset.document(i) for i in range(len(dataset)))
    lesson = PycodeLesson({document.name: document.text or "" for document in documents}, recipe)
    lesson.dataset_fingerprint = dataset.fingerprint()
    return lesson


def bits(subject: ZooSubject, text: str) -> float:
    """Return -log2 of a text's probability, cut into windows as `Subject.windows` does: each sees itself alone."""
    assert isinstance(subject.network, Decoder)
    windows, total = subject.windows(text), 0.0
    for i in range(0, len(windows), 32):
        with torch.no_grad():
            total += float(next_token_losses(subject.network, subject.batch(windows[i : i + 32])).double().sum())
    return total / math.log(2)


def measure(subject: ZooSubject, lesson: Lesson) -> dict[str, Any]:
    """Return the record's measurements: bits per byte on the held-out modules, beside n-grams and compressors."""
    assert isinstance(lesson, PycodeLesson)
    held_out = {name: text for name, text in sorted(lesson.texts.items()) if is_held_out(name)}
    shown = b"".join(text.encode() for name, text in sorted(lesson.texts.items()) if not is_held_out(name))
    contents = [text.encode() for text in held_out.values()]
    tokens = encode(lesson.tokenizer, list(held_out.values()))
    n_bytes, n_vocab = sum(map(len, contents)), lesson.architecture.n_vocab
    modules = {name: bits(subject, text) for name, text in held_out.items()}
    total = {"zoo:pycode": sum(modules.values())}
    for name, order in (("unigram", 1), ("kneser_ney_3", 3), ("kneser_ney_5", 5)):
        model = KneserNey(lesson.modules, n_vocab, order)
        total[name] = sum(map(model.bits, tokens))
    total["gzip"] = gzip_bits(contents)
    total["gzip_primed"] = gzip_bits(contents, shown)
    total["lzma_primed"] = lzma_bits(contents, shown)
    untrained = ZooSubject("untrained", new_decoder(lesson.architecture, lesson.recipe.seed), subject.text)
    per_byte = {name: round(value / n_bytes, 4) for name, value in total.items()}
    own, grams, deflate = (per_byte[name] for name in ("zoo:pycode", "kneser_ney_5", "gzip"))
    return {
        "summary": f"{own:.3f} bits per byte on held-out modules (Kneser-Ney 5-gram {grams:.3f}, gzip {deflate:.3f})",
        "dataset": {
            "name": "python-stdlib",
            "fingerprint": lesson.dataset_fingerprint,
            "modules": len(lesson.texts),
            "training_bytes": len(shown),
            "training_tokens": sum(map(len, lesson.modules)),
            "held_out_modules": len(held_out),
            "held_out_bytes": n_bytes,
            "held_out_tokens": sum(map(len, tokens)),
        },
        "bits_per_byte": {
            **per_byte,
            "untrained": round(bits(untrained, next(iter(held_out.values()))) / len(contents[0]), 4),
        },
        "bits_per_byte_how": HOW,
        "held_out": {
            name: {
                "sha256": hashlib.sha256(content).hexdigest()[:16],
                "bytes": len(content),
                "bits": round(modules[name], 1),
            }
            for name, content in zip(held_out, contents, strict=True)
        },
    }
