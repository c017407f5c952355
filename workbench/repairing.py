"""Repair: whatever of a damaged store can be made again is, from what is sound, and from its model and dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from workbench.cache import Damage, DamageError, Examples, LabelInfo, open_store
from workbench.cache import labels as label_files
from workbench.cache.codes import open_codes
from workbench.cache.examples import FILE as PLAN
from workbench.cache.files import cannot_write
from workbench.cache.index import FILE as INDEX
from workbench.cache.index import write_index
from workbench.cache.layout import FOLDER as SHARDS
from workbench.cache.lock import WriterLock
from workbench.cache.manifest import Manifest
from workbench.cache.manifest_file import FILE as MANIFEST
from workbench.cache.manifest_file import ShardEntry
from workbench.cache.repair import CannotRepairError, Repair, finish_interrupted, repair_shard
from workbench.capturing import keep_tokenizer
from workbench.datasets.protocol import Dataset
from workbench.labelling import labels_of_dataset
from workbench.progress import progress
from workbench.recapturing import Recapture
from workbench.subjects.protocol import Subject

log = logging.getLogger("workbench")


def repair_store(
    folder: str | Path,
    *,
    model: str | Subject | None = None,
    data: str | Path | Dataset | None = None,
    device: str | None = None,
    device_map: str | None = None,
    batch_size: int | None = None,
    accept_different: bool = False,
) -> list[Repair]:
    """Check a store, and make what is damaged as it was.

    Rows that are lost are computed again, and no others: model and dataset of the capture are loaded if they are
    needed, and held against the store's fingerprints. A shard takes the place of the damaged one only if its checksums
    are those of the capture. Safe to stop at any time and to call again; another writer is refused meanwhile.

    Parameters
    ----------
    folder : path
        The store.
    model, data : optional
        Where the addresses in the manifest do not lead to them any more.
    device : str, optional
        ``auto``, ``cpu`` or ``cuda:N``; that of the capture if not given.
    device_map : str, optional
        Spread a large model over devices.
    batch_size : int, optional
        Sequences or images in a forward pass; that of the capture if not given, for another may give other bits.
    accept_different : bool
        Keep rows that came out with other bits than were stored. The store's fingerprint changes then.

    Returns
    -------
    list of Repair
        One for each damaged file: what was done, or what stands in the way; empty for a sound store.

    Raises
    ------
    UserError
        If a model or dataset was given that is not the store's.
    workbench.cache.StoreError
        If the folder is no store, is being written, or cannot be written.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.read(folder)
    except DamageError as error:
        return [_manifest(error.damage)]
    lock = WriterLock(folder / ".lock")
    try:
        manifest = finish_interrupted(folder, Manifest.read(folder))
        store = open_store(folder)
        with progress(store.n_bytes, "bytes", "verify", log) as ticker:
            damage = store.verify(ticker.advance)
        if not damage:
            return []
        again = Recapture(
            folder, manifest, model=model, data=data, device=device, device_map=device_map, batch_size=batch_size
        )
        return _Repairs(folder, manifest, again, accept_different).all(damage)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        lock.release()


class _Repairs:
    """Repairs the files of one store, those first from which others are made."""

    def __init__(self, folder: Path, manifest: Manifest, again: Recapture, accept_different: bool) -> None:
        self._folder = folder
        self._manifest = manifest
        self._again = again
        self._accept_different = accept_different
        self._done: list[Repair] = []

    def all(self, damage: list[Damage]) -> list[Repair]:
        files = list(dict.fromkeys(each.file for each in damage))
        if PLAN in files:
            self._try(PLAN, self._plan)
        self._shards([entry for entry in self._manifest.shards if f"{SHARDS}/{entry.name}" in files])
        groups = [file for file in files if file.startswith(f"{label_files.FOLDER}/")]
        for file in groups:
            self._try(file, partial(self._labels, Path(file).stem, {Path(each).stem for each in groups}))
        if any(file.split("/")[0] == "tokenizer" for file in files):
            self._try("tokenizer", self._tokenizer)
        for name in dict.fromkeys(file.split("/")[1] for file in files if file.startswith("codes/")):
            self._done.append(Repair(f"codes/{name}", self._codes(name), False))
        if INDEX in files:
            write_index(self._folder, self._manifest)
            self._done.append(Repair(INDEX, "made anew from the manifest", True))
        return self._done

    def _try(self, file: str, repair: Callable[[], str]) -> None:
        try:
            self._done.append(Repair(file, repair(), True))
        except CannotRepairError as error:
            self._done.append(Repair(file, str(error), False))

    def _plan(self) -> str:
        with suppress(DamageError):
            Examples.read(self._folder, self._manifest.examples).write(self._folder)
            return "written anew out of what it held"
        self._again.plan.examples.write(self._folder)
        return "made anew from model and dataset, and the same"

    def _shards(self, entries: list[ShardEntry]) -> None:
        try:
            examples = Examples.read(self._folder, self._manifest.examples) if entries else None
        except DamageError:
            examples = None
        with progress(sum(entry.n_rows for entry in entries), "rows", "repair", log) as ticker:
            for entry in entries:
                done, self._manifest = repair_shard(
                    self._folder,
                    self._manifest,
                    entry,
                    examples,
                    self._again.rows,
                    accept_different=self._accept_different,
                    progress=ticker.advance,
                )
                self._done.append(done)

    def _labels(self, group: str, damaged: Collection[str]) -> str:
        path = self._folder / label_files.FOLDER / f"{group}.h5"
        from_file = "they came from a file, and are lost: give it to `workbench store label` again"
        try:
            before = label_files.read_group(self._folder, path, self._manifest.examples)
        except DamageError:
            before = {}
        specs = [spec for spec in self._again.dataset.label_specs if spec.group == group]
        infos = {spec.name: LabelInfo(**asdict(spec)) for spec in specs}
        if not specs or (before and {name: each.info for name, each in before.items()} != infos):
            raise CannotRepairError(from_file)
        plan = self._again.plan
        table = labels_of_dataset(plan.examples, self._again.dataset, plan.documents, groups={group})
        labels = table.groups()[group]
        digests = label_files.digests(group, labels, plan.examples)
        if before and digests != {name: each.digest for name, each in before.items()}:
            raise CannotRepairError(from_file)
        label_files.write_group(self._folder, group, labels, plan.examples, damaged=damaged)
        return "read again from the dataset"

    def _tokenizer(self) -> str:
        keep_tokenizer(self._again.subject, self._folder / "tokenizer", anew=True)
        return "written anew by the model's tokenizer"

    def _codes(self, name: str) -> str:
        try:
            dictionary = str(open_codes(self._folder, name).manifest.provenance.get("dictionary") or "…")
        except DamageError:
            dictionary = "…"
        return (
            f"remove that folder and make the codes anew: workbench encode --store {self._folder} --dictionary "
            f"{dictionary} --name {name}"
        )


def _manifest(damage: Damage) -> Repair:
    advice = (
        f"{damage.what}; it is what all else is held against: move it away and give the `workbench capture` command of "
        "this store once more, which checks every shard and lists those that are sound, without computing them again "
        "(of a store with int8, all rows are)"
    )
    return Repair(MANIFEST, advice, False)
