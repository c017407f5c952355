"""Computing rows of a store once more: the same batches through the same subject model."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import DamageError, Examples
from workbench.cache.manifest import Manifest
from workbench.cache.repair import CannotRepairError
from workbench.capture_passes import make_batch, run_batch
from workbench.capture_plan import Plan, Planner
from workbench.datasets.loading import load_dataset
from workbench.datasets.protocol import Dataset
from workbench.errors import UserError
from workbench.subjects.protocol import Subject
from workbench.subjects.sources import load_subject, resolve_device
from workbench.transfer import HostCopies

log = logging.getLogger("workbench")


class Recapture:
    """Makes again what a capture made: subject model, dataset and plan, each when first asked for, and rows.

    Parameters
    ----------
    folder : Path
        The store.
    manifest : Manifest
        What it says of its capture.
    model, data : optional
        Instead of the addresses that the manifest has.
    device : str, optional
        ``auto``, ``cpu`` or ``cuda:N``; that of the capture if not given.
    device_map : str, optional
        Spread a large model over devices.
    batch_size : int, optional
        That of the capture if not given.

    Raises
    ------
    UserError
        If a model or dataset that was given is not that of the store, or the device is not there.
    CannotRepairError
        Later, if something cannot be had; the message says what, and how it could be given.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        model: str | Subject | None = None,
        data: str | Path | Dataset | None = None,
        device: str | None = None,
        device_map: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch size {batch_size}: must be at least 1")
        self._folder, self._manifest = folder, manifest
        self._model, self._data, self._device, self._device_map = model, data, device, device_map
        if device is not None:
            resolve_device(device)
        recorded = manifest.provenance.get("capture")
        self._capture: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
        self._batch_size = batch_size or self._capture.get("batch_size")
        self._held: tuple[range, dict[str, NDArray[Any]]] | None = None
        self._copies = HostCopies()
        for given, found in ((model, "subject"), (data, "dataset")):
            if given is not None:
                try:
                    getattr(self, found)
                except CannotRepairError as error:
                    raise UserError(str(error)) from error

    def _require_capture(self) -> None:
        """Refuse stores whose rows no subject model gave, or not as they are."""
        others = [name for name in ("import", "reconstruction") if name in self._manifest.provenance]
        if others or not self._capture or "model" not in self._manifest.fingerprints:
            made = {"import": "imported", "reconstruction": "reconstructed from a dictionary"}
            how = made[others[0]] if others else "not written by `workbench capture`"
            raise CannotRepairError(f"the store was {how}: what is lost must come from where it came from")

    @cached_property
    def subject(self) -> Subject:
        """The subject model, with the store's fingerprints."""
        self._require_capture()
        said = self._manifest.provenance.get("model", {})
        address = said.get("address", "") if self._model is None else self._model
        if isinstance(address, str):
            log.info("loading subject model %s", address)
            address = self._load(address, said.get("dtype"))
        found = {
            "model": address.fingerprint(),
            "tokenizer": address.tokenizer_fingerprint(),
            "model_dtype": str(address.dtype).removeprefix("torch."),
        }
        self._compare(found, f"model {address.address}", "--model")
        return address

    def _load(self, address: str, dtype: str | None) -> Subject:
        devices = [self._device] if self._device else [self._capture.get("device"), "auto"]
        for device in filter(None, devices):
            try:
                return load_subject(address, device=device, dtype=dtype, device_map=self._device_map)
            except (UserError, OSError) as error:
                failed = error
        raise CannotRepairError(f"model {address!r} is not at hand ({failed}): give --model") from failed

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset, with the store's fingerprint."""
        self._require_capture()
        address = self._manifest.provenance.get("dataset", {}).get("address", "") if self._data is None else self._data
        if isinstance(address, str | Path):
            try:
                address = load_dataset(str(address))
            except (UserError, OSError) as error:
                raise CannotRepairError(f"dataset {str(address)!r} is not at hand ({error}): give --data") from error
        self._compare({"dataset": address.fingerprint()}, f"dataset {address.address}", "--data")
        return address

    def _compare(self, found: dict[str, str], what: str, option: str) -> None:
        for name, fingerprint in found.items():
            wanted = self._manifest.fingerprints.get(name, "")
            if fingerprint != wanted:
                raise CannotRepairError(
                    f"{what} has another {name} fingerprint ({fingerprint[:12]}) than {self._folder} was captured with "
                    f"({wanted[:12]}): give that one, {option}"
                )

    @cached_property
    def plan(self) -> Plan:
        """The plan made anew from subject and dataset; it is the store's."""
        said = self._capture
        try:
            planner = Planner(
                self.subject,
                self.dataset,
                said.get("positions", "all"),
                said.get("context_length"),
                said.get("seed", 0),
            )
            plan = planner.plan(said.get("rows"))
        except UserError as error:
            raise CannotRepairError(f"the plan cannot be made again: {error}") from error
        if plan.examples.digest() != self._manifest.examples:
            raise CannotRepairError(
                "subject and dataset give another plan than the store was captured with: another version of this "
                "software or of a library cuts documents otherwise"
            )
        return plan

    @cached_property
    def _enough(self) -> Plan:
        """What batches are made from: of text, the store's own plan has all tokens, and no dataset is needed."""
        if self._manifest.modality == "text":
            try:
                return Plan(Examples.read(self._folder, self._manifest.examples), ())
            except DamageError:
                pass
        return self.plan

    @cached_property
    def _batches(self) -> list[range]:
        return list(self._enough.batches(self._batch_size, -1))

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        ends: NDArray[np.int64] = self._enough.examples.first_rows[[batch.stop for batch in self._batches]]
        return ends

    def rows(self, first: int, end: int) -> dict[str, NDArray[Any]]:
        """Return every hook point's rows `first` to `end` (excluded), as the store's writer takes them.

        Only the batches that hold one of them are run; the last is kept for the next call.
        """
        parts: dict[str, list[NDArray[Any]]] = {}
        self._require_capture()
        while first < end:
            number = int(np.searchsorted(self._ends, first, side="right"))
            arrays = self._run(self._batches[number])
            start = int(self._ends[number - 1]) if number else 0
            until = min(end, int(self._ends[number]))
            for name, array in arrays.items():
                parts.setdefault(name, []).append(array[first - start : until - start])
            first = until
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _run(self, sequences: range) -> dict[str, NDArray[Any]]:
        if self._held is None or self._held[0] != sequences:
            plan, subject = self._enough, self.subject
            try:
                batch = make_batch(subject, self.dataset if subject.modality == "vision" else None, plan, sequences)
                specs = self._manifest.activations
                rows = run_batch(subject, plan, specs, sequences, batch, self._copies)
                first_row = int(plan.examples.first_rows[sequences.start])
                self._held = sequences, {name: each.array(first_row) for name, each in rows.items()}
            except (UserError, OSError) as error:
                raise CannotRepairError(f"rows cannot be computed again: {error}") from error
        return self._held[1]
