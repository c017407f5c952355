"""From an address to a dataset: a name, ``KIND:PATH``, or the path of a file or folder that is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from workbench.addresses import absolute
from workbench.datasets.protocol import Dataset
from workbench.errors import UserError, nearest
from workbench.plugin import DatasetSource


def load_dataset(address: str, sources: Mapping[str, DatasetSource] | None = None) -> Dataset:
    """Open a dataset.

    Parameters
    ----------
    address : str
        A name (``python-stdlib``); a kind and a path, with options (``jsonl:corpus.txt?text=body``); or the path of a
        file or folder, whose kind is then recognised (``corpus.jsonl``, ``photos/``).
    sources : mapping of name to DatasetSource, optional
        Where to look; all that is installed if not given.

    Raises
    ------
    UserError
        If the address is no name and no path, if nothing or more than one kind recognises the path, or if the dataset
        cannot be read.
    """
    if sources is None:
        from workbench.registry import registry

        sources = {name: offer.item for name, offer in registry().datasets.items()}
    if not address.strip():
        raise UserError("the address of the dataset is empty: give a name, a file or a folder")
    name, colon, rest = address.partition(":")
    if name in sources:
        rest = absolute(rest)
        dataset, address = sources[name].load(rest), f"{name}{colon}{rest}"
    else:
        address = absolute(address)
        dataset = recognise(address, sources).load(address)
    dataset.address = address
    return dataset


def recognise(address: str, sources: Mapping[str, DatasetSource]) -> DatasetSource:
    """Find the one kind of dataset that a path looks like."""
    path = Path(address).expanduser()
    if not path.exists() and "?" in address:
        path = Path(address.rpartition("?")[0]).expanduser()
    if not path.exists():
        known = f"nearest names: {nearest(address.partition(':')[0], sources)} (all: workbench plugins)"
        raise UserError(f"no dataset {address!r}: there is no such file or folder, and no such name; {known}")
    accepting = [source for source in sources.values() if source.accepts(path)]
    if not accepting:
        kinds = ", ".join(f"{name}:{address}" for name in sorted(sources))
        raise UserError(f"{path}: no kind of dataset recognises it (is it empty?); name one: {kinds}")
    if len(accepting) > 1:
        kinds = " or ".join(f"{source.name}:{address}" for source in accepting)
        raise UserError(f"{path} looks like several kinds of dataset: write {kinds}")
    return accepting[0]
