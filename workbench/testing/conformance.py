"""The conformance suite of plugins: a test class to inherit from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import ClassVar

import pytest

from workbench.testing.declared import DeclaredChecks
from workbench.testing.interrupted import InterruptedChecks


class PluginConformance(InterruptedChecks):
    """What must hold for every plugin.

    A plugin's test inherits from this class and says which plugin it is, and with which options and inputs it runs in
    a second or two::

        from workbench.testing import PluginConformance

        class TestNormProfile(PluginConformance):
            plugin = "norm-profile"
            options = {"resamples": 100}

    Attributes
    ----------
    plugin : str or type
        The name of the installed plugin, or its class.
    options : dict
        Options by dotted key with which a run takes a second or two, and has several steps of progress.
    capture : CaptureDefault
        The store that is captured where the plugin needs one; by default 400 rows of every block of ``zoo:calendar``.
    model, data, dictionary : str, optional
        What else it is given.
    wrong : sequence of (mapping, str)
        Options that it must refuse, and what the message must say.
    varies : tuple of str
        Metrics, arrays and sections, and columns as ``TABLE.COLUMN``, that hold measured time and so differ.
    exceptions : mapping of str to str
        Checks that the plugin does not pass, by name, each with its reason. One that it does pass is an error.

    Inputs of another kind are made by overriding the fixture `inputs`, places to stop at by overriding `stops`.
    """

    exceptions: ClassVar[Mapping[str, str]] = {}
    slow_checks: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture(autouse=True)
    def _exceptions(self, request: pytest.FixtureRequest) -> None:
        unknown = sorted(set(self.exceptions) - {name for name in dir(self) if name.startswith("test_")})
        assert not unknown, f"exceptions: there is no check {unknown[0]}"
        if reason := self.exceptions.get(request.node.originalname):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


PluginConformance.slow_checks = frozenset(
    name
    for name, _ in inspect.getmembers(PluginConformance, inspect.isfunction)
    if name.startswith("test_") and not hasattr(DeclaredChecks, name)
)
