"""One workbench for mechanistic interpretability: hook, cache, train, probe and intervene.

``import workbench as wb`` is light; torch and the rest are imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from workbench import _checkout as _checkout
from workbench.display import register as _register_display

if TYPE_CHECKING:
    from workbench.batching.running import batch
    from workbench.cache import open_store
    from workbench.capturing import capture
    from workbench.datasets.loading import load_dataset
    from workbench.dictionary import load_dictionary
    from workbench.encoding import encode
    from workbench.erasing import load_projection
    from workbench.execution import run
    from workbench.lenses import logit_lens
    from workbench.logit_attribution import direct_logit_attribution
    from workbench.reconstructing import reconstruct
    from workbench.repairing import repair_store
    from workbench.runs import load_run
    from workbench.store_formats.exporting import export_store
    from workbench.store_formats.importing import import_store
    from workbench.subjects.sources import load_subject

__all__ = [
    "batch",
    "capture",
    "direct_logit_attribution",
    "encode",
    "export_store",
    "import_store",
    "load_dataset",
    "load_dictionary",
    "load_projection",
    "load_run",
    "load_subject",
    "logit_lens",
    "open_store",
    "reconstruct",
    "repair_store",
    "run",
]

_HOME = {
    "batch": "workbench.batching.running",
    "capture": "workbench.capturing",
    "direct_logit_attribution": "workbench.logit_attribution",
    "encode": "workbench.encoding",
    "export_store": "workbench.store_formats.exporting",
    "import_store": "workbench.store_formats.importing",
    "load_dataset": "workbench.datasets.loading",
    "load_dictionary": "workbench.dictionary",
    "load_projection": "workbench.erasing",
    "load_run": "workbench.runs",
    "load_subject": "workbench.subjects.sources",
    "logit_lens": "workbench.lenses",
    "open_store": "workbench.cache",
    "reconstruct": "workbench.reconstructing",
    "repair_store": "workbench.repairing",
    "run": "workbench.execution",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


_register_display()
