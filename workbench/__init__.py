"""One workbench for mechanistic interpretability."""

from workbench import _checkout as _checkout
