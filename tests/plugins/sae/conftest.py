"""A small random language model, a store captured from it, and rows made of planted features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, Store, StoreWriter, open_store
from workbench.context import Context, Inputs
from workbench.plugins.sae import SaeConfig
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.protocol import Batch, TokenWindow
from workbench.subjects.stacked import StackedSubject

HOOK = "blocks.0.hook_resid_post"
WIDTH, VOCAB, CONTEXT = 16, 30, 20


class TinyDecoder(StackedSubject):
    """A random decoder; token 0 is special."""

    modality = "text"

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        stack = Architecture(n_layers=2, d_model=WIDTH, n_heads=2, d_head=8, d_mlp=32, causal=True)
        super().__init__("zoo:tiny", Decoder(DecoderArchitecture(stack, n_vocab=VOCAB, n_context=CONTEXT)))
        self.n_context = CONTEXT

    def tokenizer_fingerprint(self):
        return "none"

    def decode(self, tokens):
        return [f"<{token}>" for token in tokens]

    def batch(self, examples):
        rows = [
            torch.as_tensor(example.tokens if isinstance(example, TokenWindow) else example) for example in examples
        ]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return Batch(tokens, mask, (tokens == 0) & mask)


@pytest.fixture(scope="session")
def subject() -> TinyDecoder:
    return TinyDecoder()


def write_store(
    subject: TinyDecoder, folder: Path, n_documents: int = 40, fields=lambda index: {}, hooks=(HOOK,)
) -> Store:
    """Write a store of the subject's activations on random texts, three windows to a document."""
    rng = np.random.default_rng(5)
    plan = ExamplesBuilder()
    windows = []
    for index in range(n_documents):
        document = plan.document(f"text-{index}", fields(index))
        for window in range(3):
            tokens = np.concatenate([[0], rng.integers(1, VOCAB, CONTEXT - 1 - index % 4)])
            windows.append(tokens)
            plan.sequence(document, tokens, special=tokens == 0, window=window)
    manifest = {
        "model": {"address": subject.address, "fingerprint": subject.fingerprint()},
        "dataset": {"address": "random", "fingerprint": "random"},
        "tokenizer": {"fingerprint": "none"},
    }
    examples = plan.build()
    points = {hook: subject.hook_points[hook] for hook in hooks}
    specs = {hook: ActivationSpec(point.axes[2:], point.shape[2:], "float32") for hook, point in points.items()}
    with StoreWriter(folder, specs, examples, manifest) as writer:
        for tokens in windows:
            captured = subject.run(subject.batch([tokens]), capture=list(hooks)).captured
            writer.append({hook: captured[hook][0].numpy() for hook in hooks})
    store = open_store(folder)
    token = store.origins["token"]
    store.add_labels(
        "tokens",
        {
            "is_seven": (LabelInfo("is_seven", "tokens", "row", "binary"), token == 7, None),
            "always": (LabelInfo("always", "tokens", "row", "binary"), np.ones(len(token)), None),
            "number": (LabelInfo("number", "tokens", "row", "number"), token + 100.0 * np.arange(len(token)), None),
            "third": (LabelInfo("third", "tokens", "row", "categories", ("a", "b", "c")), token % 3, token > 3),
        },
    )
    return store


@pytest.fixture(scope="session")
def store(subject, tmp_path_factory) -> Store:
    return write_store(subject, tmp_path_factory.mktemp("acts") / "store")


@pytest.fixture(scope="session")
def store_of_five(subject, tmp_path_factory) -> Store:
    """Return a store with what transcoders, crosscoders and attention-output autoencoders read."""
    names = ("hook_resid_mid", "ln2.hook_normalized", "hook_mlp_out", "attn.hook_z", "hook_resid_post")
    hooks = [f"blocks.0.{name}" for name in names]
    return write_store(subject, tmp_path_factory.mktemp("five") / "store", hooks=hooks)


@pytest.fixture
def capture():
    return write_store


@pytest.fixture
def context(store, subject, tmp_path):
    """Return what makes a context with other settings."""

    def make(config: SaeConfig | None = None, *, store=store, subject=subject, work=tmp_path, seed=0) -> Context:
        work.mkdir(exist_ok=True)
        return Context(config or SaeConfig(), Inputs(store=store, model=subject), "cpu", seed, work)

    return make
