"""Checks that authors of plugins, datasets and subject sources run on their own.

A plugin's test inherits `PluginConformance`, a dataset's `DatasetConformance`; checks of subjects are functions, in
`workbench.testing.subjects`.

This module is a pytest plugin, too, for whoever asks for it (``pytest -p workbench.testing``, or ``pytest_plugins =
["workbench.testing"]`` in the topmost ``conftest.py``): checks that run a plugin get the marker `MARKER`, so that
``-m "not runs_plugin"`` leaves them out. It is registered nowhere: pytest runs that do not name it never import it.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from workbench.testing.conformance import PluginConformance
    from workbench.testing.datasets import DatasetConformance

__all__ = ["DatasetConformance", "PluginConformance"]

MARKER = "runs_plugin"
_HOME = {
    "DatasetConformance": "workbench.testing.datasets",
    "PluginConformance": "workbench.testing.conformance",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'workbench.testing' has no attribute {name!r}")
    import pytest

    for room in ("conformance", "datasets", "declared", "interrupted", "running", "wrong_input"):
        if f"workbench.testing.{room}" not in sys.modules:
            pytest.register_assert_rewrite(f"workbench.testing.{room}")  # a failed assertion shows its values
    return getattr(importlib.import_module(_HOME[name]), name)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", f"{MARKER}: a check of workbench.testing that runs a plugin, which takes seconds"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a check that runs a plugin."""
    if runs_a_plugin(item):
        item.add_marker(MARKER)


def runs_a_plugin(item: pytest.Item) -> bool:
    """True for those checks of a `PluginConformance` that take seconds."""
    kind, function = getattr(item, "cls", None), getattr(item, "originalname", None)
    return kind is not None and function in getattr(kind, "slow_checks", ())
