"""Probes of activations with scikit-learn's interface, and the statistics that say how far to trust them.

Rows belong to groups (documents); whole groups are split, resampled and permuted. Everything works on plain arrays.
"""

from workbench.probes.accuracy import ClassCounts
from workbench.probes.bias import RateGaps, rate_gaps
from workbench.probes.circles import Circle, CircleProbe
from workbench.probes.controls import TokenIdentity, control_labels
from workbench.probes.errors import ProbeError
from workbench.probes.inlp import Held, Inlp, fit_inlp
from workbench.probes.leace import fit_leace, fit_mean_projection, label_moments
from workbench.probes.linear import LDAProbe, LogisticProbe, MeanDifferenceProbe, SVMProbe
from workbench.probes.metrics import METRICS, evaluate, floor
from workbench.probes.planar import mixture_index, separability_index
from workbench.probes.projections import Projection, compose, largest_angle, random_projection
from workbench.probes.ridge import RidgeProbe
from workbench.probes.rings import Rings, fit_rings
from workbench.probes.selectors import SELECTORS, select_units, unit_scores
from workbench.probes.sparse import KSparseProbe
from workbench.probes.splits import Split, cap_rows, group_split, merge_identical
from workbench.probes.statistics import (
    Interval,
    benjamini_hochberg,
    bootstrap_weights,
    group_intervals,
    holm,
    max_statistic_p_values,
    permutation_p_value,
    permute_labels,
)
from workbench.probes.weights import Standardiser, balanced_weights

__all__ = [
    "METRICS",
    "SELECTORS",
    "Circle",
    "CircleProbe",
    "ClassCounts",
    "Held",
    "Inlp",
    "Interval",
    "KSparseProbe",
    "LDAProbe",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "ProbeError",
    "Projection",
    "RateGaps",
    "RidgeProbe",
    "Rings",
    "SVMProbe",
    "Split",
    "Standardiser",
    "TokenIdentity",
    "balanced_weights",
    "benjamini_hochberg",
    "bootstrap_weights",
    "cap_rows",
    "compose",
    "control_labels",
    "evaluate",
    "fit_inlp",
    "fit_leace",
    "fit_mean_projection",
    "fit_rings",
    "floor",
    "group_intervals",
    "group_split",
    "holm",
    "label_moments",
    "largest_angle",
    "max_statistic_p_values",
    "merge_identical",
    "mixture_index",
    "permutation_p_value",
    "permute_labels",
    "random_projection",
    "rate_gaps",
    "select_units",
    "separability_index",
    "unit_scores",
]
