"""A dictionary over a whole store: its codes, kept beside the rows, and read by whatever needs its latents."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.cache import Codes, CodesWriter, DamageError, StoreError, open_store
from workbench.errors import UserError, nearest
from workbench.progress import progress
from workbench.provenance import recorded_model

if TYPE_CHECKING:
    import scipy.sparse

    from workbench.cache import Store
    from workbench.dictionary import Dictionary

BATCH_ROWS = 4096
SHARD_ENTRIES = 1 << 21  # aimed at in a shard of codes: some 30 MB
ROWS_AT_ONCE = 1024  # of dense scores, where no k bounds the active latents

log = logging.getLogger("workbench")


def check_dictionary(store: Store, dictionary: Dictionary, *, writes: bool = True) -> None:
    """Refuse a dictionary of another subject, of hook points that the store does not hold, or of another width.

    Parameters
    ----------
    store : Store
        Activations.
    dictionary : Dictionary
        To be used on them.
    writes : bool
        Whether what it reconstructs must be in the store too.

    Raises
    ------
    UserError
        Naming what differs.
    """
    held = recorded_model(store)
    if dictionary.subject_fingerprint and held.fingerprint and dictionary.subject_fingerprint != held.fingerprint:
        raise UserError(
            f"dictionary {dictionary.address} was trained on {dictionary.subject_address} (fingerprint "
            f"{dictionary.subject_fingerprint[:12]}), but {store.folder} holds activations of "
            f"{held.address} (fingerprint {held.fingerprint[:12]})"
        )
    sides = {
        "reads": (dictionary.hooks_in, dictionary.width),
        "reconstructs": (dictionary.hooks_out, len(dictionary.b_dec)),
    }
    if not writes:
        del sides["reconstructs"]
    for does, (names, width) in sides.items():
        for name in names:
            if name not in store.hook_points:
                raise UserError(
                    f"dictionary {dictionary.address} {does} {name}, which {store.folder} does not hold; nearest: "
                    f"{nearest(name, store.hook_points)}"
                )
        held_width = sum(int(np.prod(store.hook_points[name].shape)) for name in names)
        if held_width != width:
            raise UserError(
                f"dictionary {dictionary.address} {does} {width} numbers a row, but {' + '.join(names)} in "
                f"{store.folder} has {held_width}"
            )


# --- encoding -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Active:
    """The active latents of some rows: counts [rows], and latents, ascending in each row, and values [entries]."""

    counts: np.ndarray
    latents: np.ndarray
    values: np.ndarray

    def csr(self, n_latents: int) -> scipy.sparse.csr_matrix:
        """Return them as a scipy matrix [rows, latents]."""
        import scipy.sparse

        bounds = np.concatenate([[0], np.cumsum(self.counts)])
        return scipy.sparse.csr_matrix((self.values, self.latents, bounds), shape=(len(self.counts), n_latents))


@torch.no_grad()
def active(dictionary: Dictionary, x: Tensor) -> Active:
    """Encode rows [rows, width] and keep what is active."""
    if dictionary.activation == "topk":
        return by_ascending_latent(*(tensor.cpu() for tensor in dictionary.encode(x)))
    parts = [dictionary.encode_dense(rows) for rows in torch.split(x, ROWS_AT_ONCE)] or [dictionary.encode_dense(x)]
    where = [part.nonzero(as_tuple=True) for part in parts]
    counts = torch.cat([(part > 0).sum(1) for part in parts])
    latents = torch.cat([column for _, column in where])
    values = torch.cat([part[at] for part, at in zip(parts, where, strict=True)])
    return Active(counts.cpu().numpy(), latents.cpu().numpy(), widened(values.cpu()).numpy())


def by_ascending_latent(values: Tensor, latents: Tensor) -> Active:
    """Return what is active of values and latents [rows, k], in ascending order of latents."""
    values = widened(values)
    if values.dtype == torch.float64:
        latents, order = latents.sort(dim=1)
        ordered, numbers = values.gather(1, order).numpy(), latents.numpy()
    else:  # both in one number, sorted at once: some ten times as fast, beside a kernel that keeps the processor busy
        pairs = latents.numpy() << 32 | values.contiguous().numpy().view(np.uint32)
        pairs.sort(axis=1)
        ordered, numbers = (pairs & 0xFFFFFFFF).astype(np.uint32).view(np.float32), pairs >> 32
    chosen = ordered > 0
    if chosen.all():
        return Active(np.full(len(ordered), ordered.shape[1]), numbers.ravel(), ordered.ravel())
    return Active(chosen.sum(1), numbers[chosen], ordered[chosen])


def widened(values: Tensor) -> Tensor:
    """Return values of 16 bits as float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def encode(
    store: Store | str | Path,
    dictionary: Dictionary | str | Path,
    *,
    name: str | None = None,
    batch_rows: int = BATCH_ROWS,
    device: str = "auto",
) -> Codes:
    """Encode every row of a store and keep the codes beside it, in ``codes/NAME/``.

    The same call goes on with codes that it left unfinished, and does nothing to finished ones; however often it was
    stopped, they end with the same bytes (on the same machine, with the same number of threads).

    Parameters
    ----------
    store : Store or path
        Finished.
    dictionary : Dictionary or str
        Of the store's subject, for hook points that it holds; or its address.
    name : str, optional
        Of the codes; by default what the dictionary's address ends with.
    batch_rows : int
        Rows encoded at a time.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.

    Returns
    -------
    Codes
        As `Store.codes` opens them.

    Raises
    ------
    UserError
        If dictionary and store do not belong together, or the store is unfinished.
    StoreError
        If codes of that name are another dictionary's.
    """
    from workbench.subjects.sources import resolve_device

    store, dictionary = opened(store), loaded(dictionary)
    check_dictionary(store, dictionary, writes=False)
    require_whole(store, batch_rows)
    target = torch.device(resolve_device(device))
    encoder = dictionary.to(target)
    writer = CodesWriter(
        store.folder,
        name or name_of(dictionary),
        n_rows=store.n_rows,
        n_latents=dictionary.n_latents,
        dtype="float64" if dictionary.W_enc.dtype == torch.float64 else "float32",
        fingerprints={"store": store.fingerprint(), "dictionary": dictionary.fingerprint()},
        provenance={"dictionary": {"address": dictionary.address, **dictionary.config()}, "batch_rows": batch_rows},
        rows_per_shard=rows_per_shard(store, encoder, batch_rows, target),
    )
    with writer:
        first = writer.next_row
        if first:
            log.info("%s: %d of %d rows are encoded already", writer.folder, first, store.n_rows)
        with progress(store.n_rows, "rows", "encoding", log, first) as ticker:
            for rows in batches(store, dictionary.hooks_in, first, batch_rows, writer.rows_per_shard, target):
                x = dictionary.rows_in(rows)
                require_finite(store, writer.next_row, x)
                found = active(encoder, x)
                writer.append(found.counts, found.latents, found.values)
                ticker.advance(len(x))
                ticker.update(active=len(found.values) / len(x))
    return store.codes(writer.folder.name)


def opened(store: Store | str | Path) -> Store:
    """Open a store that is named by its folder."""
    return open_store(store) if isinstance(store, str | Path) else store


def loaded(dictionary: Dictionary | str | Path) -> Dictionary:
    """Load a dictionary that is named by its address."""
    from workbench.dictionary import load_dictionary

    return load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary


def require_whole(store: Store, batch_rows: int) -> None:
    """Refuse an unfinished store, and batches of no rows."""
    if not store.finished:
        rows = f"{store.n_rows:,} of {store.n_rows_planned:,} rows"
        raise UserError(f"{store.folder} is unfinished ({rows}): finish its capture first")
    if batch_rows < 1:
        raise UserError(f"batch_rows={batch_rows}: must be at least 1")


def require_finite(store: Store, first: int, x: Tensor) -> None:
    """Refuse rows [rows, width], the first of which is row `first` of the store, if a number is not finite."""
    if x.sum(dtype=torch.float32).isfinite():  # ten times as fast as looking at each, and almost always enough
        return
    if not bool(x.isfinite().all()):
        bad = first + int((~x.isfinite().all(1)).nonzero()[0])
        raise UserError(f"{store.folder}, row {bad}: an activation is not finite; capture it in a wider dtype")


def batches(
    store: Store, hooks: Sequence[str], first: int, batch_rows: int, shard_rows: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Give the store's rows from `first` on, in order, on a device; none of them from two shards of what is written.

    Read ahead on threads; to a GPU through pinned memory, so that the copy runs beside the kernels.
    """
    for start in range(first, store.n_rows, shard_rows):
        rows = slice(start, min(start + shard_rows, store.n_rows))
        for _, batch in store.sequential(list(hooks), batch_rows=batch_rows, rows=rows):
            assert isinstance(batch, dict)
            if device.type == "cuda":
                batch = {name: part.pin_memory().to(device, non_blocking=True) for name, part in batch.items()}
            yield batch


def rows_per_shard(store: Store, dictionary: Dictionary, batch_rows: int, device: torch.device) -> int:
    """Return rows per shard of codes: whole batches, with some four million entries if all rows are like the first."""
    rows = min(batch_rows, store.n_rows)
    sample = {name: store.read_tensor(name, slice(0, rows)).to(device) for name in dictionary.hooks_in}
    per_row = dictionary.k or max(1.0, float(active(dictionary, dictionary.rows_in(sample)).counts.mean()))
    return max(1, round(SHARD_ENTRIES / per_row / batch_rows)) * batch_rows


def name_of(dictionary: Dictionary) -> str:
    """Return what codes of a dictionary are called: the end of its address, as a file name."""
    end = dictionary.address.rstrip("/").removeprefix("saelens:")
    end = end if dictionary.address.startswith("saelens:") else end.split("/")[-1]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", end).strip("-._")
    if not name:
        raise UserError("the dictionary has no address to name its codes after: give them a name")
    return name[:120]


# --- reading latents ----------------------------------------------------------------------------------------------
def codes_of(store: Store, dictionary: Dictionary) -> Codes | None:
    """Return the store's finished codes of a dictionary, if it has some; the log names those that cannot be used."""
    wanted = dictionary.fingerprint() if store.codes_names else ""
    for name in store.codes_names:
        try:
            codes = store.codes(name)
        except (DamageError, StoreError) as error:
            log.warning("codes %s are not used: %s", name, error)
            continue
        if codes.finished and codes.fingerprints.get("dictionary") == wanted:
            return codes
    return None


def latents_of_rows(
    store: Store, dictionary: Dictionary, rows: np.ndarray, device: torch.device | str = "cpu"
) -> scipy.sparse.csr_matrix:
    """Return a dictionary's activations on some rows, [rows, latents], float32: from its codes if the store has them.

    Parameters
    ----------
    store : Store
        Activations.
    dictionary : Dictionary
        See `check_dictionary`.
    rows : int64 array [rows]
        Which.
    device : device
        To encode on, where there are no codes.
    """
    import scipy.sparse

    codes = codes_of(store, dictionary)
    if codes is not None:
        log.info("latents are read from codes/%s", codes.name)
        return codes.csr(rows).astype(np.float32)
    encoder = dictionary.to(device)
    parts = [scipy.sparse.csr_matrix((0, dictionary.n_latents), dtype=np.float32)]
    for first in range(0, len(rows), BATCH_ROWS):
        at = rows[first : first + BATCH_ROWS]
        batch = {name: store.read_tensor(name, at).to(device) for name in dictionary.hooks_in}
        parts.append(active(encoder, dictionary.rows_in(batch)).csr(dictionary.n_latents).astype(np.float32))
    return scipy.sparse.vstack(parts, format="csr")
