"""What a plugin is given: configuration, store, labels, subject, dictionary, data, and a place to work."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from workbench.errors import UserError
from workbench.progress import Ticker, progress
from workbench.provenance import dataset_address, model_address, recorded_model
from workbench.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from workbench.cache import LabelInfo, Store
    from workbench.datasets.protocol import Dataset
    from workbench.dictionary import Dictionary
    from workbench.subjects.protocol import Subject

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class Inputs:
    """What a run reads, by address or as an object; what is None was not given.

    Attributes
    ----------
    store : Store, optional
        An open activation store.
    model : str or Subject, optional
        The subject model.
    data : str or Dataset, optional
        The dataset.
    dictionary : str or Dictionary, optional
        The dictionary.
    """

    store: Store | None = None
    model: str | Subject | None = None
    data: str | Dataset | None = None
    dictionary: str | Dictionary | None = None


class Loading:
    """How addresses become objects: loaded anew. A batch keeps what it has loaded for the jobs that follow."""

    def subject(self, address: str, device: str, dtype: str | None, device_map: str | None) -> Subject:
        """Load a subject model."""
        from workbench.subjects.sources import load_subject

        log.info("loading subject model %s", address)
        return load_subject(address, device=device, dtype=dtype, device_map=device_map)

    def dictionary(self, address: str) -> Dictionary:
        """Load a dictionary."""
        from workbench.dictionary import load_dictionary

        return load_dictionary(address)

    def data(self, address: str) -> Dataset:
        """Open a dataset."""
        from workbench.datasets.loading import load_dataset

        return load_dataset(address)


@dataclass
class Context:
    """What one run has at hand.

    Attributes
    ----------
    config : object
        The plugin's validated configuration.
    inputs : Inputs
        What was given, or came from the plugin's defaults.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``, as asked for; `torch_device` resolves it.
    seed : int
        Of every random choice, through `rng`.
    work : Path
        A folder that survives an interruption: a continued run finds there what it left.
    log : logging.Logger
        Goes to ``log.txt`` in the run folder.
    dtype, device_map : str, optional
        How a subject is loaded.
    kernels : dict of str to str
        Which kernel was used for which operator; a plugin that uses kernels says so here, for the manifest.
    ranks : Ranks
        The processes of the run; one alone, unless the plugin is `Plugin.distributed` and torchrun started more.
    loading : Loading
        Turns addresses into objects.
    """

    config: Any
    inputs: Inputs
    device: str
    seed: int
    work: Path
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("workbench"))
    dtype: str | None = None
    device_map: str | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    ranks: Ranks = ALONE
    loading: Loading = field(default_factory=Loading)

    @property
    def store(self) -> Store:
        """The activation store."""
        if self.inputs.store is None:
            raise UserError("no activation store: give --store ACTS (made by 'workbench capture')")
        return self.inputs.store

    @property
    def labels(self) -> dict[str, LabelInfo]:
        """The labels of the store, by name."""
        return dict(self.store.labels)

    @property
    def torch_device(self) -> torch.device:
        """The device to compute on."""
        from workbench.subjects.sources import resolve_device

        device: torch.device = resolve_device(self.device)
        return device

    def subject(self) -> Subject:
        """Return the live subject model; loaded on the first call, and held against the store's fingerprint."""
        return self._subject

    @cached_property
    def _subject(self) -> Subject:
        model = self.inputs.model or model_address(self.store)
        if isinstance(model, str):
            model = self.loading.subject(model, self.device, self.dtype, self.device_map)
        if self.inputs.store is not None:
            require_same_model(model, self.inputs.store)
        return model

    @property
    def has_subject(self) -> bool:
        """True if a subject model was given, or the store says which it was captured from."""
        given = self.inputs.model is not None
        return given or (self.inputs.store is not None and bool(recorded_model(self.inputs.store).address))

    @property
    def has_dictionary(self) -> bool:
        """True if a dictionary was given or made."""
        return self.inputs.dictionary is not None

    def dictionary(self) -> Dictionary:
        """Return the dictionary; loaded on the first call."""
        return self._dictionary

    @cached_property
    def _dictionary(self) -> Dictionary:
        if self.inputs.dictionary is None:
            raise UserError("no dictionary: give --dictionary RUN (a run of 'sae', or a folder in SAELens's layout)")
        if isinstance(self.inputs.dictionary, str):
            return self.loading.dictionary(self.inputs.dictionary)
        return self.inputs.dictionary

    def data(self) -> Dataset:
        """Return the dataset; by default the one that the store was captured from."""
        return self._data

    @cached_property
    def _data(self) -> Dataset:
        data = self.inputs.data or dataset_address(self.store)
        return self.loading.data(data) if isinstance(data, str) else data

    def rng(self, name: str) -> np.random.Generator:
        """Return a random generator of its own for each use, seeded by the run's seed and a name."""
        return np.random.default_rng(seed_of(self.seed, name))

    def torch_rng(self, name: str) -> torch.Generator:
        """Return a torch generator (on the CPU) seeded by the run's seed and a name."""
        import torch

        return torch.Generator().manual_seed(seed_of(self.seed, name) & (2**63 - 1))

    def progress(
        self, total: int | None, unit: str = "rows", description: str = "", done: int = 0
    ) -> AbstractContextManager[Ticker]:
        """Show the progress of a loop of `total` units, of which `done` were done before an interruption.

        Of several processes only the first one shows it.
        """
        if self.ranks.rank:
            return nullcontext(Ticker(total, unit, description, self.log, done))
        return progress(total, unit, description, self.log, done)


def seed_of(seed: int, name: str) -> int:
    """Mix a seed and a name into 64 bits."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode())


def require_same_model(subject: Subject, store: Store) -> None:
    """Refuse a subject whose weights are not those that the store was captured from; warn where it does not say."""
    held = recorded_model(store)
    got = subject.fingerprint()
    if not held.fingerprint:
        log.warning("%s does not say which weights it is of: %s is used unchecked", store.folder, subject.address)
    elif got != held.fingerprint:
        raise UserError(
            f"{store.folder} was captured from {held.address} (fingerprint {held.fingerprint[:12]}), "
            f"but {subject.address} has fingerprint {got[:12]}: give the model it was captured from, or capture again"
        )
