"""Affine projections: erase a subspace of the units, or keep nothing but it; joined, saved and loaded.

An erasure is `x − A Bᵀ(x − μ)`: the readouts B [units, rank] tell how far a row lies from the mean along what is
erased, and the removed directions A [units, rank] are what is taken off, with `BᵀA = I`. Orthogonal projections
(iterative nullspace projection) have A = B; those that change rows least (LEACE) are oblique.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.linalg
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from workbench.probes.errors import ProbeError

SMALLEST = 1e-6  # singular values below this share of the largest are rounding, not directions
SCHEMA = 1  # of the file
TENSORS = ("removed", "readout", "mean")


def row_basis(
    rows: Float[np.ndarray, "rows units"], beside: Float[np.ndarray, "units rank"] | None = None
) -> np.ndarray:
    """Return an orthonormal basis [units, new rank] of what rows span, at right angles to another basis.

    Parameters
    ----------
    rows : np.ndarray
        [rows, units], any number of them, dependent ones too.
    beside : np.ndarray, optional
        [units, rank] orthonormal columns; what rows have in common with them is taken off first.
    """
    left = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(left, axis=1, keepdims=True)
    left = left / np.where(lengths > 0, lengths, 1.0)  # a weak classifier's row counts as much as a strong one's
    if beside is not None:
        for _ in range(2):  # once leaves rounding that adds up over rounds
            left = left - (left @ beside) @ beside.T
    if not left.size:
        return np.zeros((left.shape[1], 0))
    _, sizes, directions = np.linalg.svd(left, full_matrices=False)
    # rows had length 1, so a remainder below this share of it is rounding as well
    return np.ascontiguousarray(directions[sizes > SMALLEST * max(1.0, sizes.max(initial=0.0))].T)


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine projection of rows.

    Attributes
    ----------
    removed : np.ndarray
        [units, rank] float64 directions that an erasure takes off.
    readout : np.ndarray
        [units, rank] float64, `readoutᵀ removed = I`: after an erasure every row reads as the mean does.
    mean : np.ndarray
        [units] float64; rows are projected around it. Zeros: around the origin.
    keep_only : bool
        False erases, `x − A Bᵀ(x − μ)`; True keeps nothing but what an erasure takes, `μ + A Bᵀ(x − μ)`.
    about : mapping of str to str
        Where it comes from (hook point, subject, label, method), saved with it.

    Raises
    ------
    ProbeError
        If shapes do not fit, a number is not finite, or `readoutᵀ removed` is not the identity.
    """

    removed: Float[np.ndarray, "units rank"]
    readout: Float[np.ndarray, "units rank"]
    mean: Float[np.ndarray, " units"]
    keep_only: bool = False
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in TENSORS:
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in TENSORS)
        fits = self.removed.ndim == 2 and self.removed.shape == self.readout.shape
        if not fits or self.mean.shape != self.removed.shape[:1]:
            raise ProbeError(f"{shapes}: must be [units, rank], the same, and [units]")
        if not all(np.isfinite(getattr(self, name)).all() for name in TENSORS):
            raise ProbeError("a projection's numbers must be finite")
        off = np.abs(self.readout.T @ self.removed - np.eye(self.rank)).max(initial=0.0)
        if off > SMALLEST:
            raise ProbeError(f"readoutᵀ removed differs from the identity by {off:.1e}: that is no projection")

    @classmethod
    def orthogonal(
        cls, rows: Float[np.ndarray, "rows units"], mean: np.ndarray | None = None, **about: str
    ) -> Projection:
        """Erase what rows span, by the orthogonal projection onto the intersection of their nullspaces.

        Parameters
        ----------
        rows : np.ndarray
            [rows, units] for example the weights of classifiers, of as many rounds and classes as there are.
        mean : np.ndarray, optional
            [units] kept in the erased directions; by default the origin.
        **about : str
            Where it comes from.
        """
        basis = row_basis(np.atleast_2d(rows))
        return cls(basis, basis, np.zeros(len(basis)) if mean is None else mean, about=about)

    @property
    def n_units(self) -> int:
        """Width of the rows that it takes."""
        return len(self.mean)

    @property
    def rank(self) -> int:
        """Dimension of what is erased (or kept)."""
        return int(self.removed.shape[1])

    @property
    def matrix(self) -> Float[np.ndarray, "units units"]:
        """The linear part: `P` of `μ + P(x − μ)`; `P P = P`."""
        inside = self.removed @ self.readout.T
        return np.asarray(inside if self.keep_only else np.eye(self.n_units) - inside)

    @property
    def complement(self) -> Projection:
        """What erases if this keeps, and keeps if this erases; the two of a row sum to the row and the mean."""
        return replace(self, keep_only=not self.keep_only)

    def described(self, **about: str) -> Projection:
        """Return it with more said of where it comes from."""
        return replace(self, about={**self.about, **about})

    def __call__(self, X: Float[np.ndarray, "rows units"]) -> np.ndarray:
        """Project rows [rows, units]; float64 inside, back in the dtype of X.

        Raises
        ------
        ProbeError
            For rows of another width.
        """
        X = np.asarray(X)
        if X.shape[-1:] != (self.n_units,):
            raise ProbeError(f"rows {X.shape}: this projection takes {self.n_units} units")
        dtype = X.dtype if X.dtype.kind == "f" else np.dtype(np.float64)
        inside = ((X - self.mean) @ self.readout) @ self.removed.T
        return np.asarray(self.mean + inside if self.keep_only else X - inside).astype(dtype, copy=False)

    def change(self, X: Float[np.ndarray, "rows units"]) -> float:
        """Return the mean squared distance that rows are moved, as a share of their total variance."""
        X = np.asarray(X, dtype=np.float64)
        moved = np.square(self(X) - X).sum(axis=1).mean()
        return float(moved / np.square(X - X.mean(axis=0)).sum(axis=1).mean())

    # --- files ----------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, np.ndarray]:
        """Return the numbers by name."""
        return {name: getattr(self, name) for name in TENSORS}

    def fingerprint(self) -> str:
        """Return a hash of everything: numbers, erase or keep, and where it comes from."""
        said = json.dumps([SCHEMA, self.keep_only, sorted(self.about.items())])
        digest = blake2b(said.encode(), digest_size=16)
        for name, values in self.tensors().items():
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def config(self) -> dict[str, Any]:
        """Return all but the numbers, as plain JSON values, with the fingerprint."""
        return {
            "schema": SCHEMA,
            "keep_only": self.keep_only,
            "about": dict(self.about),
            "fingerprint": self.fingerprint(),
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], name: str = "") -> Projection:
        """Put together what `tensors` and `config` take apart.

        Raises
        ------
        ProbeError
            If something is missing, comes from a newer version, or does not have the fingerprint that was written.
        """
        what = f"projection {name}"
        if config.get("schema") != SCHEMA:
            raise ProbeError(f"{what} has schema {config.get('schema')!r}: this version reads {SCHEMA}")
        try:
            parts = {each: tensors[each] for each in TENSORS}
            found = cls(**parts, keep_only=bool(config["keep_only"]), about=dict(config["about"]))
            written = config["fingerprint"]
        except KeyError as missing:
            raise ProbeError(f"{what} is incomplete: {missing.args[0]} is missing") from None
        except ProbeError as error:
            raise ProbeError(f"{what} is damaged: {error}") from error
        if found.fingerprint() != written:
            raise ProbeError(f"{what} is damaged: its numbers do not have the fingerprint {written} that it names")
        return found

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; settings and fingerprint are in its metadata."""
        safetensors.numpy.save_file(self.tensors(), path, metadata={"projection": json.dumps(self.config())})

    @classmethod
    def load(cls, path: str | Path) -> Projection:
        """Read what `save` wrote.

        Raises
        ------
        ProbeError
            If there is no such file, it holds something else, or it is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise ProbeError(f"projection {path}: there is no such file")
        try:
            with safe_open(path, framework="numpy") as file:
                said = (file.metadata() or {}).get("projection")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            if said is None:
                raise ProbeError(
                    f"projection {path}: the file holds no projection, but {', '.join(tensors) or 'nothing'}"
                )
            config = json.loads(said)
        except (SafetensorError, ValueError) as error:
            if isinstance(error, ProbeError):
                raise
            raise ProbeError(f"projection {path} is damaged: {error}") from error
        return cls.from_parts(tensors, config, str(path))


def compose(projections: Sequence[Projection]) -> Projection:
    """Join erasures into the one that erases what any of them does, in whatever order they are given.

    It takes off along the sum of their removed directions until every readout reads its mean. Of orthogonal
    projections that is the projection onto the intersection of their nullspaces (through the sum of row spaces), which
    their product is not; of LEACE's of the same rows it is LEACE of all labels at once.

    Raises
    ------
    ProbeError
        If there is none, widths differ, one keeps instead of erasing, or no projection does both: where two readouts
        are to be silenced along one and the same direction.
    """
    if not projections:
        raise ProbeError("no projection to compose: at least one is needed")
    widths = sorted({each.n_units for each in projections})
    if len(widths) > 1:
        raise ProbeError(f"projections of {' and '.join(map(str, widths))} units cannot be composed")
    if any(each.keep_only for each in projections):
        raise ProbeError("projections that keep cannot be composed: compose erasures, and take the complement of that")
    removed = row_basis(np.concatenate([each.removed for each in projections], axis=1).T)
    readouts = np.concatenate([each.readout for each in projections], axis=1)
    readout = row_basis(readouts.T)
    between = readout.T @ removed
    sizes = np.linalg.svd(between, compute_uv=False) if between.size else np.ones(0)
    if removed.shape[1] != readout.shape[1] or sizes.min(initial=1.0) < SMALLEST:
        raise ProbeError(
            f"{readout.shape[1]} readouts cannot all be silenced along {removed.shape[1]} directions: fit each on rows "
            "that the ones before have been applied to, and use them one after the other"
        )
    removed = removed @ np.linalg.inv(between) if between.size else removed
    mean = np.mean([each.mean for each in projections], axis=0)
    # where readouts overlap but read different means, the least-squares compromise
    targets = np.concatenate([each.readout.T @ each.mean for each in projections])
    wanted = np.linalg.lstsq(readouts.T @ readout, targets, rcond=None)[0] if readouts.size else np.zeros(0)
    mean = mean + removed @ (wanted - readout.T @ mean)
    shared = {k: v for k, v in projections[0].about.items() if all(each.about.get(k) == v for each in projections)}
    parts = {k: " + ".join(each.about.get(k, "?") for each in projections) for k in ("label", "method")}
    return Projection(removed, readout, mean, about={**parts, **shared})


def random_projection(
    n_units: int, rank: int, rng: np.random.Generator, mean: np.ndarray | None = None, **about: str
) -> Projection:
    """Erase a random subspace, all directions alike: what erasing as many dimensions does whatever they stand for."""
    if not 0 <= rank <= n_units:
        raise ProbeError(f"rank={rank}: must be between 0 and {n_units}, the units")
    return Projection.orthogonal(rng.standard_normal((rank, n_units)), mean, **about)


def largest_angle(of: Float[np.ndarray, "units a"], inside: Float[np.ndarray, "units b"]) -> float:
    """Return the largest angle, in degrees, between a direction of one column space and its nearest in another one.

    0: contained. 90: some direction is missing altogether. Columns need not be orthonormal.
    """
    if not of.shape[1]:
        return 0.0
    if not inside.shape[1]:
        return 90.0
    a, b = scipy.linalg.orth(of), scipy.linalg.orth(inside)
    # the sine of small angles, not the cosine, which cannot tell them from 0
    missing = np.linalg.svd(a - b @ (b.T @ a), compute_uv=False)
    return float(np.degrees(np.arcsin(min(1.0, missing.max()))))
