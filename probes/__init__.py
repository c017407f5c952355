"""Probes of activations with scikit-learn's interface, and the statistics that say how far to trust them.

Rows belong to groups (documents); whole groups are split, resampled and permuted. Everything works on plain arrays.
"""

from workbench.probes.controls import TokenIdentity, control_labels
from workbench.probes.errors import ProbeError
from workbench.probes.linear import LDAProbe, LogisticProbe, MeanDifferenceProbe, SVMProbe
from workbench.probes.metrics import METRICS, evaluate, floor
from workbench.probes.ridge import RidgeProbe
from workbench.probes.selectors import SELECTORS, select_units, unit_scores
from workbench.probes.sparse import KSparseProbe
from workbench.probes.splits import Split, cap_rows, group_split, merge_identical
from workbench.probes.statistics import (
    Interval,
    benjamini_hochberg,
    bootstrap_weights,
    group_intervals,
    max_statistic_p_values,
    permutation_p_value,
    permute_labels,
)
from workbench.probes.weights import Standardiser, balanced_weights

__all__ = [
    "METRICS",
    "SELECTORS",
    "Interval",
    "KSparseProbe",
    "LDAProbe",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "ProbeError",
    "RidgeProbe",
    "SVMProbe",
    "Split",
    "Standardiser",
    "TokenIdentity",
    "balanced_weights",
    "benjamini_hochberg",
    "bootstrap_weights",
    "cap_rows",
    "control_labels",
    "evaluate",
    "floor",
    "group_intervals",
    "group_split",
    "max_statistic_p_values",
    "merge_identical",
    "permutation_p_value",
    "permute_labels",
    "select_units",
    "unit_scores",
]
