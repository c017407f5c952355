"""Circular features: planes of a dictionary that no two separate features explain, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.hookspecs import hookimpl
from workbench.plugin import CaptureDefault, Needs, Option, Plugin, RunDefault

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result

Clustering = Literal["graph", "spectral"]


@dataclass(frozen=True)
class ClusterConfig:
    """Which latents belong together."""

    method: Annotated[
        Clustering,
        Option("connected components of the graph of nearest neighbours, or spectral clustering of all angles"),
    ] = "graph"
    top_k: Annotated[int, Option("nearest latents that each one is joined to (graph)", ge=1)] = 2
    cutoff: Annotated[
        float | tuple[float, ...],
        Option(
            "cosine similarity above which they are joined; clusters of all those listed are ranked together",
            gt=-1,
            lt=1,
        ),
    ] = (0.5, 0.4, 0.35, 0.3)
    n: Annotated[
        int | None, Option("clusters (spectral); by default an eighth of the latents that are ever active", ge=2)
    ] = None
    smallest: Annotated[int, Option("latents in a cluster, at least", ge=2)] = 3
    largest: Annotated[int, Option("latents in a cluster, at most", ge=2)] = 1000


@dataclass(frozen=True)
class NullConfig:
    """What chance gives."""

    draws: Annotated[
        int,
        Option("matched random clusters for each cluster, fewer where it is soon clear that chance does as well", ge=1),
    ] = 999
    reached: Annotated[
        int, Option("draws stop once so many random clusters score as high (Besag and Clifford 1991)", ge=1)
    ] = 10
    rows: Annotated[int, Option("rows of a cloud that the test looks at", unit="rows", ge=50)] = 500


@dataclass(frozen=True)
class InterveneConfig:
    """Interventions on the live subject."""

    operand: Annotated[
        str | tuple[str, ...] | None,
        Option("cyclic labels of the operand, at its token; by default every NAME_operand that has a NAME_answer"),
    ] = None
    answer: Annotated[
        str | tuple[str, ...] | None,
        Option("cyclic labels of the answer, where it is predicted; as many, in the same order"),
    ] = None
    runs: Annotated[
        int, Option("pairs of a prompt and another operand that are scored, for each intervention, 0 for none", ge=0)
    ] = 600
    controls: Annotated[int, Option("random subspaces of equal dimension and norm", ge=1)] = 3
    pca: Annotated[int, Option("components of the PCA subspace that is replaced", ge=2)] = 5
    grid: Annotated[int, Option("angles of the grid inside the circle, 0 for none", ge=0)] = 24


@dataclass(frozen=True)
class CircularConfig:
    """Discovery of circular features, and what the subject does with them."""

    clusters: ClusterConfig = ClusterConfig()
    rows: Annotated[
        int, Option("rows of the store that are read, a seeded sample of documents", unit="rows", ge=100)
    ] = 50_000
    index_rows: Annotated[int, Option("rows of a cloud that the indices are taken of", unit="rows", ge=50)] = 4000
    components: Annotated[int, Option("principal components of a cluster's reconstruction", ge=2)] = 5
    label: Annotated[
        str | tuple[str, ...] | None, Option("cyclic labels that name what is found; by default all of the store")
    ] = None
    shown: Annotated[int, Option("clusters shown, best first", ge=1)] = 6
    draws: Annotated[int, Option("resamples of documents behind each interval", ge=10)] = 200
    null: NullConfig = NullConfig()
    intervene: InterveneConfig = InterveneConfig()


class Circular(Plugin):
    """Find planes of a dictionary that are one feature, name their frequencies, and move points around in them."""

    name = "circular"
    help = "circular features: which planes of a dictionary are irreducible, and does the subject compute with them?"
    version = "1"
    Config = CircularConfig
    needs = Needs(store=True, dictionary=True)
    default_capture = CaptureDefault(
        model="zoo:calendar",
        data="calendar",
        hooks=("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"),
        rows=60_000,
    )
    default_dictionary = RunDefault(
        "sae",
        {
            "hook_point": "blocks.0.hook_resid_pre",
            "latents": 256,
            "k": 2,
            "train.rows": 400_000,
            "evaluate.labels": 0,
            "evaluate.splice_tokens": 5000,
            "pages.latents": 60,
        },
    )

    def run(self, context: Context) -> Result:
        """See `Plugin.run`."""
        from workbench.plugins.circular.run import run

        return run(context)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer `circular`."""
    return [Circular]
