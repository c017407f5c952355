"""What a worker keeps open for the jobs to come: stores, and the models, dictionaries and datasets it has loaded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.cache import Store, open_store
from workbench.context import Loading
from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.datasets.protocol import Dataset
    from workbench.dictionary import Dictionary
    from workbench.subjects.protocol import Subject

T = TypeVar("T")
MOST = {"store": 8, "subject": 1, "dictionary": 2, "data": 2}  # of each kind, so that memory stays flat

_kept: dict[str, OrderedDict[tuple[Any, ...], Any]] = {kind: OrderedDict() for kind in MOST}
_lock = threading.Lock()


def keep(kind: str, key: tuple[Any, ...], load: Callable[[], T]) -> T:
    """Return what was loaded under a key before, or load it now; the one unused for longest makes room."""
    with _lock:  # a worker may run several jobs at once, and none shall load what another is loading
        kept = _kept[kind]
        if key not in kept:
            while len(kept) >= MOST[kind]:
                kept.popitem(last=False)  # first, so that two large ones are never in memory at once
            kept[key] = load()
        kept.move_to_end(key)
        found: T = kept[key]
        return found


class Keeping(Loading):
    """Loads for one job; what an earlier job of this process has loaded is used again.

    Parameters
    ----------
    fingerprints : mapping of str to str
        Of what the job reads, as it was planned: what has changed since is refused.
    """

    def __init__(self, fingerprints: Mapping[str, str]) -> None:
        self.fingerprints = fingerprints

    def store(self, folder: str) -> Store:
        """Open a store."""
        wanted = {name: self.fingerprints[name] for name in ("store", "labels")}

        def load() -> Store:
            store = open_store(Path(folder))
            found = {"store": store.fingerprint(), "labels": store.labels_fingerprint()}
            for name, fingerprint in found.items():
                self._require(name, folder, fingerprint)
            return store

        return keep("store", (folder, *wanted.values()), load)

    def subject(self, address: str, device: str, dtype: str | None, device_map: str | None) -> Subject:
        """See `Loading.subject`."""

        def load() -> Subject:
            subject = super(Keeping, self).subject(address, device, dtype, device_map)
            self._require("subject", address, subject.fingerprint())
            return subject

        return keep("subject", (address, device, dtype, device_map, self.fingerprints.get("subject")), load)

    def dictionary(self, address: str) -> Dictionary:
        """See `Loading.dictionary`."""

        def load() -> Dictionary:
            dictionary = super(Keeping, self).dictionary(address)
            self._require("dictionary", address, dictionary.fingerprint())
            return dictionary

        return keep("dictionary", (address, self.fingerprints.get("dictionary")), load)

    def data(self, address: str) -> Dataset:
        """See `Loading.data`."""

        def load() -> Dataset:
            data = super(Keeping, self).data(address)
            self._require("data", address, data.fingerprint())
            return data

        return keep("data", (address, self.fingerprints.get("data")), load)

    def _require(self, what: str, where: str, found: str) -> None:
        """Refuse what is not what the batch was planned with; what no fingerprint is known of passes."""
        wanted = self.fingerprints.get(what)
        if wanted and found != wanted:
            raise UserError(
                f"{where}: the {what} has changed since the batch was planned (fingerprint {wanted[:12]}, now "
                f"{found[:12]}): give the same command again, and jobs are planned anew"
            )
