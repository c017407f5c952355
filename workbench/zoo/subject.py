"""Loading a subject of the zoo: a decoder of our own with a tokenizer of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import DecoderArchitecture
from workbench.subjects.protocol import Batch, TokenWindow
from workbench.subjects.stacked import HookedNetwork, StackedSubject
from workbench.subjects.tokenization import pad_windows
from workbench.zoo.text import ZooText


class ZooSubject(StackedSubject):
    """A decoder language model or a text tower of the zoo.

    Parameters
    ----------
    address : str
        ``zoo:NAME``.
    network : Decoder or TextTower
        On its device, in its dtype.
    text : ZooText
        Its tokenizer.
    """

    modality = "text"

    def __init__(self, address: str, network: HookedNetwork, text: ZooText) -> None:
        super().__init__(address, network)
        self.text = text
        self.tokenizer = text.tokenizer
        self.n_context = text.n_context
        self.n_vocab = network.arch.n_vocab

    def tokenizer_fingerprint(self) -> str:
        """See `Subject.tokenizer_fingerprint`."""
        return self.text.fingerprint()

    def batch(self, examples: Sequence[Any]) -> Batch:
        """See `Subject.batch`."""
        windows = [self.text.example(example) for example in examples]
        for window in windows:
            wrong = window.tokens[(window.tokens < 0) | (window.tokens >= self.n_vocab)]
            if len(wrong):
                raise UserError(f"token id {wrong[0]}: {self.address} has ids 0 to {self.n_vocab - 1}")
        return pad_windows(windows, self.text.begin, self.n_context, self.device)

    def windows(self, text: str, n_context: int | None = None) -> list[TokenWindow]:
        """See `Subject.windows`."""
        return self.text.windows(text, n_context)

    def decode(self, tokens: Sequence[int]) -> list[str]:
        """See `Subject.decode`."""
        return self.text.decode(tokens)

    def save_tokenizer(self, folder: Any) -> None:
        """See `Subject.save_tokenizer`: writes ``tokenizer.json``."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "tokenizer.json").write_text(self.text.tokenizer.to_str(pretty=False), encoding="utf-8")


def read_architecture(path: Path) -> DecoderArchitecture:
    """Read what `write_architecture` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return DecoderArchitecture(**{**values, "stack": Architecture(**values["stack"])})


def write_architecture(architecture: DecoderArchitecture, path: Path) -> None:
    """Write a decoder's shape as JSON."""
    path.write_text(json.dumps(asdict(architecture), indent=1) + "\n", encoding="utf-8")
