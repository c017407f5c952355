"""Checks that run a plugin are among the slow tests."""

import pytest

from workbench.testing import runs_a_plugin


def pytest_itemcollected(item):
    if runs_a_plugin(item):
        item.add_marker(pytest.mark.slow)
