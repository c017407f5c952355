"""What a run folder records: what decides the numbers, and where, when and with what they were made."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from workbench import configuration
from workbench.context import Context
from workbench.provenance import recorded_model
from workbench.registry import registry
from workbench.request import Request
from workbench.runs import SCHEMA

PACKAGES = (
    "interp-workbench",
    "torch",
    "numpy",
    "h5py",
    "scikit-learn",
    "transformers",
    "transformer-lens",
    "sae-lens",
)


def identity_parts(request: Request, context: Context) -> dict[str, Any]:
    """Collect what decides the numbers, as canonical values: never a machine, a path or a time."""
    return {**own_parts(request), **input_parts(request, context)}


def own_parts(request: Request) -> dict[str, Any]:
    """Return the parts of an identity that the request itself holds: plugin, its version, configuration, seed."""
    return {
        "plugin": request.plugin.name,
        "plugin_version": request.plugin.version,
        "config": configuration.to_dict(request.config),
        "seed": request.seed,
    }


def input_parts(request: Request, context: Context) -> dict[str, str]:
    """Return the fingerprints of what the request reads; a model that was given is loaded for it."""
    plugin, inputs = request.plugin, request.inputs
    parts: dict[str, str] = {}
    if inputs.store is not None:
        parts["store"] = inputs.store.fingerprint()
        parts["labels"] = inputs.store.labels_fingerprint()
        parts["subject"] = recorded_model(inputs.store).fingerprint
    if inputs.model is not None and (plugin.needs.subject or inputs.store is not None):
        parts["subject"] = context.subject().fingerprint()
    if inputs.data is not None:
        parts["data"] = context.data().fingerprint()
    if inputs.dictionary is not None:
        parts["dictionary"] = context.dictionary().fingerprint()
    return parts


def manifest_of(
    request: Request, context: Context, parts: Mapping[str, Any], identity: str, started: datetime, seconds: float
) -> dict[str, Any]:
    """Return what a run folder's ``manifest.json`` records."""
    import torch

    plugin, inputs = request.plugin, request.inputs
    offer = registry().plugins.get(plugin.name)
    store = inputs.store
    subject = None
    if inputs.model is not None:
        subject = inputs.model if isinstance(inputs.model, str) else inputs.model.address
    elif store is not None:
        subject = recorded_model(store).address or None
    data = inputs.data if isinstance(inputs.data, str) or inputs.data is None else inputs.data.address
    options = {
        field.key: {"help": field.option.help, "unit": field.option.unit, "range": field.range, "type": field.type_name}
        for field in configuration.fields(plugin.Config)
    }
    return {
        "schema": SCHEMA,
        "plugin": plugin.name,
        "plugin_version": plugin.version,
        "package": asdict(offer.origin) if offer else None,
        "help": plugin.help,
        "config": parts["config"],
        "options": options,
        "seed": request.seed,
        "identity": identity,
        "store": None if store is None else {"path": str(store.folder), "fingerprint": parts["store"]},
        "subject": None if subject is None else {"address": subject, "fingerprint": parts.get("subject")},
        "data": None if data is None else {"address": data, "fingerprint": parts.get("data")},
        "dictionary": None
        if inputs.dictionary is None
        else {
            "address": str(getattr(inputs.dictionary, "address", inputs.dictionary)),
            "fingerprint": parts["dictionary"],
        },
        "labels": parts.get("labels"),
        "device": str(context.torch_device),
        "threads": torch.get_num_threads(),
        "kernels": dict(context.kernels),
        "versions": {"python": sys.version.split()[0], **versions()},
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "command": command_of(request),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that compute."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command_of(request: Request) -> str:
    """Write the command that makes this run again."""
    words = ["workbench", "run", request.plugin.name]
    inputs = request.inputs
    if inputs.store is not None:
        words += ["--store", str(inputs.store.folder)]
    for name in ("model", "data", "dictionary"):
        thing = getattr(inputs, name)
        if thing is not None:
            words += [f"--{name}", str(getattr(thing, "address", thing))]
    words += ["--seed", str(request.seed)]
    defaults = {field.key: configuration.plain(field.default) for field in configuration.fields(request.plugin.Config)}
    for key, value in configuration.to_dict(request.config).items():
        if value != defaults[key]:
            words += ["--set", f"{key}={configuration.write_value(value)}"]
    return shlex.join(words)
