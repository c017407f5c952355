"""Sparse autoencoders: a dictionary of latents for one hook point, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.hookspecs import hookimpl
from workbench.plugin import CaptureDefault, Needs, Option, Plugin

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result


Architecture = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard"]


@dataclass(frozen=True)
class TrainConfig:
    """How the dictionary is trained; what is left out follows from the data."""

    rows: Annotated[
        int | None,
        Option("training rows shown in all; by default 8 epochs, at most 1 million unless one epoch has more", ge=1),
    ] = None
    batch_rows: Annotated[
        int | None,
        Option("rows per step; by default a power of two from 256 to 4096 that makes 2048 to 4096 steps", ge=1),
    ] = None
    lr: Annotated[
        float | None,
        Option("Adam's learning rate at its highest; by default 1.5e-3 · sqrt(2048 / latents), at most 4e-3", gt=0),
    ] = None
    warmup: Annotated[float, Option("share of the training in which the rate rises to its highest", ge=0, le=1)] = 0.02
    decay: Annotated[float, Option("share of the training at the end in which it falls to zero", ge=0, le=1)] = 0.2
    schedule: Annotated[Literal["linear", "cosine"], Option("how it falls")] = "linear"
    beta1: Annotated[float, Option("decay of Adam's first moment", ge=0, lt=1)] = 0.9
    k_start: Annotated[int | None, Option("k at the start; by default twice k for topk, k for the others", ge=1)] = None
    k_anneal: Annotated[float, Option("share of the training in which `k_start` becomes k", ge=0, le=1)] = 0.2
    sparsity_warmup: Annotated[
        float, Option("share of the training in which the sparsity penalty rises to its full weight", ge=0, le=1)
    ] = 0.1
    aux_k: Annotated[
        int | None, Option("dead latents per row in the auxiliary loss, 0 for none; by default half the width", ge=0)
    ] = None
    aux_weight: Annotated[float, Option("weight of the auxiliary loss", ge=0)] = 1 / 32
    dead_after: Annotated[
        int | None,
        Option(
            "rows without being active after which a latent counts as dead; by default a hundredth of the training",
            ge=1,
        ),
    ] = None
    resample: Annotated[
        int, Option("how often dead latents start anew on badly reconstructed rows, in the first half", ge=0)
    ] = 0
    centre: Annotated[Literal["mean", "median"], Option("start of the pre-bias: mean or geometric median")] = "mean"
    precision: Annotated[
        Literal["float32", "bfloat16"], Option("of products and activations; weights and their moments are float32")
    ] = "float32"
    seed: Annotated[
        int | None, Option("of the start and of resampling; by default the run's, which decides all else", ge=0)
    ] = None
    checkpoint_s: Annotated[float, Option("time between checkpoints; decides no number", unit="s", ge=0)] = 30.0


@dataclass(frozen=True)
class SweepConfig:
    """Several dictionaries from one pass: every combination of the values that are listed."""

    architecture: Annotated[tuple[Architecture, ...], Option("values of `architecture`")] = ()
    hook_point: Annotated[tuple[str | tuple[str, ...], ...], Option("values of `hook_point`")] = ()
    latents: Annotated[tuple[int, ...], Option("values of `latents`", ge=2)] = ()
    expansion: Annotated[tuple[float, ...], Option("values of `expansion`", gt=0)] = ()
    k: Annotated[tuple[int, ...], Option("values of `k`; left out where the architecture has none", ge=1)] = ()
    sparsity: Annotated[
        tuple[float, ...], Option("values of `sparsity`; left out where the architecture has none", gt=0)
    ] = ()
    lr: Annotated[tuple[float, ...], Option("values of `train.lr`", gt=0)] = ()
    seed: Annotated[tuple[int, ...], Option("values of `train.seed`; do they find the same latents?", ge=0)] = ()


@dataclass(frozen=True)
class JumpReluConfig:
    """What a JumpReLU autoencoder has beside the others; threshold and bandwidth are shares of the rows' norm."""

    penalty: Annotated[
        Literal["quadratic", "l0", "tanh"],
        Option("what is penalised: (active / k − 1)², the number of active latents, or the sum of tanh(4 activation)"),
    ] = "quadratic"
    threshold: Annotated[
        float | None, Option("every latent's threshold at the start; by default k of a row are above it", gt=0)
    ] = None
    bandwidth: Annotated[float, Option("width of the window around it in which it learns", gt=0)] = 0.001


@dataclass(frozen=True)
class MatryoshkaConfig:
    """What a Matryoshka autoencoder has beside the others."""

    groups: Annotated[
        tuple[float, ...],
        Option("share of the latents in each group; the first 1, 2, … groups reconstruct alone", gt=0, le=1),
    ] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on held-out documents."""

    held_out: Annotated[
        float,
        Option("share of documents held out where the dataset's own flags do not part those captured", gt=0, lt=1),
    ] = 0.1
    rows: Annotated[int, Option("held-out rows that are encoded, at most", unit="rows", ge=1)] = 50_000
    splice_tokens: Annotated[
        int, Option("held-out tokens run through the subject with the reconstruction spliced in, 0 for none", ge=0)
    ] = 20_000
    draws: Annotated[int, Option("resamples of documents behind each interval", ge=10)] = 1000
    labels: Annotated[int, Option("labels that latents are probed for, 0 for none", ge=0)] = 8
    probe_rows: Annotated[
        int,
        Option("training rows that probes are fitted on, and held-out rows they are scored on", unit="rows", ge=100),
    ] = 10_000


@dataclass(frozen=True)
class LiveConfig:
    """Training without a store, from the model itself: where a model and data are given, and no store."""

    rows: Annotated[
        int,
        Option("rows of an epoch, held-out and special ones among them, from a seeded sample of documents", ge=1),
    ] = 1_000_000
    buffer_rows: Annotated[
        int, Option("rows that are held in memory and mixed with each other, one forward pass at least", ge=1)
    ] = 131_072
    positions: Annotated[str, Option("which positions become rows, as at capture")] = "all"
    context_length: Annotated[
        int | None, Option("longest sequence, special tokens included; the subject's own if not given", ge=1)
    ] = None
    batch_size: Annotated[
        int | None, Option("sequences or images in a forward pass; by default as many as have 8192 positions", ge=1)
    ] = None


@dataclass(frozen=True)
class PagesConfig:
    """The browsable page of latents."""

    latents: Annotated[int, Option("latents shown, chosen by several criteria and at random, 0 for none", ge=0)] = 200
    contexts: Annotated[int, Option("top activating contexts of each", ge=1)] = 10
    before: Annotated[int, Option("tokens shown before the peak of a context", unit="tokens", ge=0)] = 16
    after: Annotated[int, Option("tokens shown after it", unit="tokens", ge=0)] = 8
    tokens: Annotated[int, Option("output tokens listed at each end", ge=0)] = 8


@dataclass(frozen=True)
class SaeConfig:
    """A sparse autoencoder."""

    hook_point: Annotated[
        str | tuple[str, ...] | None,
        Option(
            "hook point that is read; may be left out where the store has one only; several are read side by side, and "
            "reconstructed together: a crosscoder"
        ),
    ] = None
    hook_out: Annotated[
        str | tuple[str, ...] | None,
        Option("hook point that is reconstructed, where it is not the one that is read: a transcoder"),
    ] = None
    architecture: Annotated[
        Architecture,
        Option(
            "how latents become active: the k best of a row, the best of a batch, the same in nested dictionaries, "
            "those above a threshold each, those with an open gate, all positive ones"
        ),
    ] = "topk"
    latents: Annotated[int | None, Option("latents; by default `expansion` times the width", ge=2)] = None
    expansion: Annotated[float, Option("latents per unit of width, where `latents` is not given", gt=0)] = 8
    k: Annotated[
        int | None,
        Option(
            "latents active on a row (batchtopk, matryoshka: on average; jumprelu: the target of the quadratic "
            "penalty); by default 32, or an eighth of the width if that is less",
            ge=1,
        ),
    ] = None
    sparsity: Annotated[
        float | None,
        Option(
            "weight of the sparsity penalty; by default 1 for quadratic, 0.001 for l0 and tanh; 1.5 / sqrt(k) for "
            "gated and half as much for standard, with the k that others have by default",
            gt=0,
        ),
    ] = None
    jumprelu: JumpReluConfig = JumpReluConfig()
    matryoshka: MatryoshkaConfig = MatryoshkaConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    live: LiveConfig = LiveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    pages: PagesConfig = PagesConfig()


class Sae(Plugin):
    """Train a sparse autoencoder on an activation store and say how good it is."""

    name = "sae"
    help = "train a sparse autoencoder: which sparse directions make up a hook point's activations?"
    version = "4"
    Config = SaeConfig
    needs = Needs(store=True, subject=True)
    live = distributed = True
    default_capture = CaptureDefault(
        model="zoo:pycode", data="python-stdlib", hooks=("blocks.2.hook_resid_post",), rows=200_000
    )

    def run(self, context: Context) -> Result:
        """See `Plugin.run`."""
        from workbench.plugins.sae.run import run

        return run(context)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer `sae`."""
    return [Sae]
