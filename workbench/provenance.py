"""Which subject model and dataset a store says it was captured from: an imported one may not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.cache import Store


@dataclass(frozen=True)
class Recorded:
    """What a store says of its subject model or dataset.

    Attributes
    ----------
    address, fingerprint : str
        Empty where it does not say.
    folder : str
        Of a dataset: where its files were, if paths count from there.
    """

    address: str = ""
    fingerprint: str = ""
    folder: str = ""


def recorded_model(store: Store) -> Recorded:
    """Return what a store says of its subject model."""
    return _recorded(store, "model")


def recorded_dataset(store: Store) -> Recorded:
    """Return what a store says of its dataset."""
    return _recorded(store, "dataset")


def model_address(store: Store) -> str:
    """Return the address of the model that a store was captured from.

    Raises
    ------
    UserError
        If it does not say.
    """
    if not (address := recorded_model(store).address):
        raise UserError(
            f"{store.folder} does not say which model its activations are of (it was imported): give --model ADDRESS, "
            "such as --model tl:gpt2"
        )
    return address


def dataset_address(store: Store) -> str:
    """Return the address of the dataset that a store was captured from.

    Raises
    ------
    UserError
        If it does not say.
    """
    if not (address := recorded_dataset(store).address):
        raise UserError(f"{store.folder} does not say which dataset its activations are of: it was imported")
    return address


def _recorded(store: Store, key: str) -> Recorded:
    found = store.manifest.get(key)
    if not isinstance(found, dict):  # whoever writes a store with `StoreWriter` says what they like
        return Recorded(found if isinstance(found, str) else "")
    return Recorded(**{name: str(found.get(name) or "") for name in ("address", "fingerprint", "folder")})
