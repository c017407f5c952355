"""The hooks through which packages join the workbench, all of them, one by one.

A package has an entry point in the group ``workbench`` that names a module; functions of that module marked `hookimpl`
are called here. The built-in plugins come through the same door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from workbench.plugin import DatasetSource, Plugin, SubjectSource

PROJECT = "workbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def provide_plugins() -> list[type[Plugin]]:  # type: ignore[empty-body]
    """Offer plugins to `workbench run`.

    Called once per process, when plugins are first listed or run: import nothing heavy here.
    Lists of all packages are joined; a name offered twice is an error naming both packages.
    Returns classes, not instances; order has no meaning.
    """


@hookspec
def provide_subjects() -> list[SubjectSource]:  # type: ignore[empty-body]
    """Offer kinds of addresses for subject models (``zoo:``, ``tl:``, ``hf:`` are built in).

    Called once per process, when an address is first resolved or sources are listed: import nothing heavy here, but in
    `SubjectSource.load`. A scheme offered twice is an error naming both packages.
    """


@hookspec
def provide_datasets() -> list[DatasetSource]:  # type: ignore[empty-body]
    """Offer kinds of datasets (``python-stdlib``, ``jsonl:`` and others are built in).

    Called once per process, when a dataset is first opened or listed: import nothing heavy here, but in
    `DatasetSource.load`. A name offered twice is an error naming both packages.
    """
