"""From clusters to features: which cyclic label a cluster goes round with, and the rings that its classes lie on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import UserError, nearest
from workbench.labelled_rows import read_flat
from workbench.plugins.circular.discovery import Found
from workbench.plugins.circular.planes import Cloud, Reconstructions
from workbench.probes.rings import Rings, class_means, fit_rings, order_null, outstanding

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.context import Context

COVERED, EXPLAINED = 0.5, 0.5  # a cluster is named by a label that is there on half of its rows and tells half of them
WHOLE = 0.8  # share of a label's rows on which a cluster must be active to be all of a feature
LEAST_OF_CLASS = 5
LEAST_SHARE = 0.02  # of the variance: a frequency with less is not named
SAME_ROWS = 1e-6
ORDERS = 999
MOST_FREQUENCIES = 6


@dataclass(frozen=True)
class Cyclic:
    """A label that goes round, at every row that is read.

    Attributes
    ----------
    name : str
        The label.
    words : tuple of str
        Names of its classes.
    classes : np.ndarray
        [rows] class, −1 where it is not defined.
    """

    name: str
    words: tuple[str, ...]
    classes: np.ndarray

    @property
    def period(self) -> int:
        """Number of classes."""
        return len(self.words)


def cyclic_labels(store: Store, rows: np.ndarray, wanted: str | Sequence[str] | None) -> list[Cyclic]:
    """Return the cyclic labels of whole numbers at some rows of a store.

    Raises
    ------
    UserError
        If one that was asked for does not exist, is not cyclic, or has no whole period of at least 3.
    """
    known = store.labels
    names = [n for n, info in known.items() if info.kind == "cyclic"]
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
    found = []
    for name in names:
        if name not in known:
            raise UserError(f"{store.folder} has no label {name!r}; nearest: {nearest(name, known)}")
        info = known[name]
        whole = info.kind == "cyclic" and info.period is not None and info.period >= 3 and info.period % 1 == 0
        values, defined = store.label(name)
        here, there = values[rows], defined[rows]
        whole = whole and bool((here[there] % 1 == 0).all())
        if not whole:
            if wanted is None:
                continue
            raise UserError(f"label {name!r} is {info.kind} of period {info.period}: must be cyclic, of whole numbers")
        period = int(info.period or 0)
        words = tuple(info.categories) if len(info.categories) == period else tuple(map(str, range(period)))
        classes = np.where(there, np.nan_to_num(here) % period, -1).astype(np.int64)
        found.append(Cyclic(name, words, classes))
    return found


@dataclass(frozen=True)
class Naming:
    """How well a label tells where a cluster's reconstructions lie.

    Attributes
    ----------
    label : Cyclic
        The label.
    coverage : float
        Share of the cluster's rows at which it is defined.
    recall : float
        Share of the label's rows on which the cluster is active.
    explained : float
        Share of those rows' variance that lies between the classes.
    n_classes : int
        Classes with at least five rows.
    """

    label: Cyclic
    coverage: float
    recall: float
    explained: float
    n_classes: int

    @property
    def names(self) -> bool:
        """Whether the cluster is called by the label."""
        return self.coverage >= COVERED and self.explained >= EXPLAINED and self.n_classes >= 2


def name_cloud(cloud: Cloud, labels: Sequence[Cyclic], rng: np.random.Generator | None = None) -> Naming | None:
    """Return the label that tells most of a cloud, if there is any; with `rng`, of labels permuted over its rows."""
    best: Naming | None = None
    for label in labels:
        classes = label.classes[cloud.rows]
        if rng is not None:
            classes = rng.permutation(classes)
        there = classes >= 0
        counts = np.bincount(classes[there], minlength=label.period)
        if (counts >= LEAST_OF_CLASS).sum() < 2:
            continue
        X = cloud.coordinates[there]
        within = X - class_means(X, classes[there], label.period)[classes[there]]
        total = np.square(X - X.mean(axis=0)).sum()
        # Rows that are all the same tell nothing, whatever their last bits say.
        flat = total <= SAME_ROWS * np.square(X).sum()
        explained = 0.0 if flat else float(1 - np.square(within).sum() / total)
        recall = there.sum() / max(1, int((label.classes >= 0).sum()))
        n_classes = int((counts >= LEAST_OF_CLASS).sum())
        found = Naming(label, float(there.mean()), float(recall), explained, n_classes)
        if best is None or found.coverage * found.explained > best.coverage * best.explained:
            best = found
    return best


@dataclass(frozen=True)
class Feature:
    """All that was found of one cyclic label: several planes of one feature.

    Attributes
    ----------
    label : Cyclic
        What it stands for.
    ranks : tuple of int
        Places of its clusters in the ranking, from 1.
    latents : np.ndarray
        Theirs together.
    rings : Rings
        Of the activations' class means in the span of their directions, in the width of the hook point.
    named : tuple of int
        Frequencies that stand out among random orders of the classes (see `outstanding`) and have a fiftieth of the
        variance between the classes, largest share first.
    chance : float
        What the largest share reaches in at most 5 % of random orders, for the first of them.
    p_order : float
        Of the largest share, against random orders of the classes.
    """

    label: Cyclic
    ranks: tuple[int, ...]
    latents: np.ndarray
    rings: Rings
    named: tuple[int, ...]
    chance: float
    p_order: float

    @property
    def by_share(self) -> list[int]:
        """Frequencies, largest share first."""
        return [int(i) + 1 for i in np.argsort(-self.rings.shares, kind="stable")]


def find_features(
    context: Context,
    hook_point: str,
    rows: np.ndarray,
    reconstructions: Reconstructions,
    found: Sequence[Found],
    namings: Sequence[Naming | None],
) -> list[Feature]:
    """Take the class means of activations, in the span of the directions of a label's clusters, apart into rings.

    The best cluster that is active at every class is the feature; where there is none, all clusters of the label
    together are. A label of which classes are missing gives no feature, and the log says so.
    """
    ranks: dict[str, list[int]] = {}
    whole: set[str] = set()
    for rank, naming in enumerate(namings, start=1):
        if naming is not None and naming.names and naming.label.name not in whole:
            if naming.n_classes == naming.label.period and naming.recall >= WHOLE:
                whole.add(naming.label.name)
                ranks[naming.label.name] = [rank]
            else:
                ranks.setdefault(naming.label.name, []).append(rank)
    features = []
    for name, mine in ranks.items():
        label = next(n.label for n in namings if n is not None and n.label.name == name)
        latents = np.unique(np.concatenate([found[rank - 1].cluster.latents for rank in mine]))
        cloud = reconstructions.cloud(latents)
        classes = label.classes[cloud.rows]
        there = classes >= 0
        counts = np.bincount(classes[there], minlength=label.period)
        if (counts < LEAST_OF_CLASS).any():
            missing = [word for word, n in zip(label.words, counts, strict=True) if n < LEAST_OF_CLASS]
            context.log.info("label %s: no feature, for no cluster is active at %s", name, ", ".join(missing[:5]))
            continue
        X = read_flat(context.store, hook_point, rows[cloud.rows[there]]).astype(np.float64)
        means = class_means(X @ cloud.basis.T, classes[there], label.period) @ cloud.basis
        features.append(feature_of(context, label, tuple(mine), latents, means))
    return features


def feature_of(
    context: Context, label: Cyclic, ranks: tuple[int, ...], latents: np.ndarray, means: np.ndarray
) -> Feature:
    """Return the rings of class means [period, width], and which frequencies stand out, one after another."""
    rings = fit_rings(means)
    null = order_null(means, ORDERS, context.rng(f"orders of {label.name}"))
    standing_out, p, bar = outstanding(rings.shares, null)
    named = [frequency for frequency in standing_out if rings.shares[frequency - 1] >= LEAST_SHARE]
    return Feature(label, ranks, latents, rings, tuple(named), bar, p)
