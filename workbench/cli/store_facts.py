"""What commands say of a store, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.cache import Codes, Store


def facts_of(store: Store) -> dict[str, Any]:
    """Return what there is to know of a store, as plain values."""
    from workbench.cache.codes import open_codes
    from workbench.provenance import recorded_dataset, recorded_model

    manifest = store.manifest
    return {
        "folder": str(store.folder),
        "model": recorded_model(store).address or "unknown",
        "dataset": recorded_dataset(store).address or "unknown",
        "rows": store.n_rows,
        "rows_planned": store.n_rows_planned,
        "finished": store.finished,
        "documents": len(store.documents),
        "bytes": store.n_bytes,
        "fingerprint": store.fingerprint(),
        "hook_points": {name: spec.to_json() for name, spec in store.hook_points.items()},
        "labels": [vars(label) for label in store.labels.values()],
        "codes": [codes_facts(open_codes(store.folder, name)) for name in store.codes_names],
        "capture": manifest.get("capture", {}),
        "software": manifest.get("software", {}),
    }


def codes_facts(codes: Codes) -> dict[str, Any]:
    """Return what there is to know of a dictionary's codes, as plain values."""
    return {
        "codes": codes.name,
        "rows": codes.n_rows,
        "latents": codes.n_latents,
        "active on a row": round(codes.n_entries / max(1, codes.n_rows), 2),
        "finished": codes.finished,
        "fingerprints": codes.fingerprints,
    }
