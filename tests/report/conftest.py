"""Run folders as two plugins leave them: made up, but of the shape and the sizes of real ones."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.report import COLOURS, LatentContext, LatentPage, latents_section, new_figure
from workbench.results import Result

TOKEN = re.compile(r"\n+| +(?=\n| )| ?[A-Za-z]{1,6}| ?\d+| ?[^\w\s]{1,2}|.", re.DOTALL)
FIRES = [  # what a made-up latent is active on, and its nearest label
    (r"^ ?(def|class|lambda)$", "keyword.def"),
    (r"^\n", "position.line_end"),
    (r"^ +$", "scope.indentation"),
    (r"^ ?[\"']", "kind.string"),
    (r"^ ?\d", "kind.number"),
    (r"^ ?(self|cls)$", "scope.method"),
    (r"^ ?[(\[]", "syntax.inside_call"),
    (r"^ ?(return|yield|raise)$", "keyword.return"),
    (r"^ ?(if|else|elif)$", "keyword.branch"),
    (r"^ ?#", "kind.comment"),
]

MANIFEST = {
    "plugin_version": "0.1.0",
    "seed": 0,
    "store": {"path": "runs/acts-zoo-pycode-4f1c22ab", "fingerprint": "9a3c5be0d2f14c67"},
    "subject": {"address": "zoo:pycode", "fingerprint": "1b7f6cd09e2244f0"},
    "data": {"address": "python-stdlib", "fingerprint": "77aa01c24b1e9f3d"},
    "device": "cpu",
    "threads": 2,
    "kernels": {"topk_encode": "reference", "sparse_decode": "reference"},
    "versions": {"python": "3.11.2", "interp-workbench": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
    "started": "2026-11-21T09:41:07+00:00",
    "seconds": 192.4,
}


def tokens_of_python():
    """Tokens of a module that every Python has."""
    return TOKEN.findall(Path(json.decoder.__file__).read_text("utf-8"))


def make_latents(n_pages, n_latents=2048, seed=0):
    """Pages of latents that fire on kinds of tokens, as those of a dictionary would."""
    random_ = random.Random(seed)
    tokens = tokens_of_python()
    vocabulary = sorted(set(tokens))
    chosen = sorted(random_.sample(range(n_latents), n_pages))
    pages = []
    for index in chosen:
        pattern, label = random_.choice(FIRES)
        scale = random_.uniform(1, 12)
        fired = [at for at, token in enumerate(tokens) if re.search(pattern, token)]
        activations = {at: scale * random_.betavariate(2, 4) for at in fired if random_.random() < 0.8}
        contexts = []
        for at in sorted(activations, key=activations.__getitem__, reverse=True)[:10]:
            window = range(max(0, at - 24), min(len(tokens), at + 16))
            contexts.append(
                LatentContext(
                    random_.choice(["json.decoder", "email._header_value_parser", "concurrent.futures.thread"]),
                    [tokens[place] for place in window],
                    [activations.get(place, 0.0) for place in window],
                    at - window.start,
                )
            )
        counts, edges = np.histogram(list(activations.values()), bins=24)
        effects = sorted((random_.gauss(0, 1), token) for token in random_.sample(vocabulary, 60))
        pages.append(
            LatentPage(
                index=index,
                density=len(activations) / len(tokens) * random_.choice([1, 0.1, 0.01]),
                mean_activation=float(np.mean(list(activations.values()))),
                max_activation=max(activations.values()),
                histogram_counts=counts.tolist(),
                histogram_edges=edges.tolist(),
                contexts=contexts,
                top_tokens=[(token, effect) for effect, token in effects[:-9:-1]],
                bottom_tokens=[(token, effect) for effect, token in effects[:8]],
                labels=[(label, random_.uniform(0.8, 0.99)), *((name, 0.7) for _, name in random_.sample(FIRES, 3))],
                neighbours=[(near, random_.uniform(0.2, 0.8)) for near in random_.sample(chosen, min(4, n_pages))],
            )
        )
    return latents_section(pages, n_latents=n_latents)


def sae_result(n_pages=40):
    """A result like that of the plugin `sae`."""
    noise = np.random.default_rng(0)
    result = Result()
    for name, value, unit, description, half in [
        ("explained_variance", 0.8713, "", "share of the variance of held-out activations; 95 % interval", 0.0062),
        ("L0", 32, "latents", "active latents on each row", None),
        ("dead_latents", 41, "latents", "not active on any of the last 50 000 training rows", None),
        ("cross_entropy", 1.2981, "nats", "of the subject with the reconstruction spliced in; 95 % interval", 0.0213),
        ("cross_entropy_clean", 1.2217, "nats", "of the subject left alone; 95 % interval", 0.0208),
        ("cross_entropy_zero", 6.8342, "nats", "of the subject with the hook point set to zero", None),
        ("loss_recovered", 0.9864, "", "of the loss between zero-ablation and the subject left alone", None),
        ("mean_squared_error", 3.1e-5, "", "on held-out rows", None),
    ]:
        ends = {} if half is None else {"lo": value - half, "hi": value + half}
        result.add_metric(name, value, unit=unit, description=description, **ends)
    steps = np.arange(0, 6000, 25)
    figure, axes = new_figure(1, 2, width_in=9, height_in=3.2)
    axes[0].plot(steps, 0.13 + 0.9 * np.exp(-steps / 700) + noise.normal(0, 0.004, steps.size), label="training")
    axes[0].plot(steps, 0.14 + 0.9 * np.exp(-steps / 720), label="held out")
    axes[0].set(xlabel="step", ylabel="share of variance unexplained", yscale="log", title="Reconstruction")
    axes[0].legend()
    axes[1].plot(steps, 300 * np.exp(-steps / 900), color=COLOURS[1])
    axes[1].set(xlabel="step", ylabel="dead latents", title="Dead latents")
    result.add_figure("training", figure, description="Loss and dead latents over the training.")
    figure, (panel,) = new_figure()
    panel.hist(noise.normal(-2.8, 0.7, 2048), bins=50)
    panel.set(xlabel="density, log10 of the share of rows", ylabel="latents")
    result.add_figure("density", figure, description="How often latents are active. A healthy dictionary has one hump.")
    figure, (panel,) = new_figure()
    panel.plot([8, 16, 32, 64], [0.71, 0.8, 0.87, 0.91], "o-")
    panel.set(xlabel="k", ylabel="explained variance", xscale="log")
    result.add_figure("sparsity", figure, description="What a larger k would buy.")
    result.add_section("latents", "latents", make_latents(n_pages), "Latents chosen evenly over the order of density.")
    result.add_section("reading", "text", "A latent is a direction.\n\nIts contexts are where it is most active.")
    frame = pd.DataFrame({"step": steps, "loss": 0.13 + np.exp(-steps / 700), "learning_rate": 3e-4, "dead": 0})
    frame["dead"] = (300 * np.exp(-steps / 900)).astype(int)
    result.add_table("training", frame, description="A row for each evaluation.", units={"loss": "share"})
    sizes = xr.DataArray(noise.random((2048, 2)), dims=["latent", "part"], coords={"part": ["raises", "lowers"]})
    result.add_array("densities", sizes, description="density of every latent", unit="share")
    return result


def probe_result():
    """A result like that of the plugin `sparse-probe`: a wide table of scores and a heat map."""
    noise = np.random.default_rng(1)
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    labels = [label for _, label in FIRES]
    rows = []
    for label in labels:
        for hook in hooks:
            for k in (1, 4, 16):
                score = float(1 - noise.beta(2, 8) / math.sqrt(k))
                rows.append(
                    {
                        "label": label,
                        "hook_point": hook,
                        "k": k,
                        "balanced_accuracy": score,
                        "lo": score - 0.02,
                        "hi": score + 0.02,
                        "majority": 0.5,
                        "shuffled": float(noise.normal(0.5, 0.01)),
                        "p": float(noise.random() ** 12),
                        "significant": score > 0.7,
                        "neurons": ", ".join(str(neuron) for neuron in noise.integers(0, 512, min(k, 6))),
                    }
                )
    frame = pd.DataFrame(rows)
    frame.loc[3, "p"] = np.nan
    result = Result()
    result.add_metric("best_balanced_accuracy", 0.9871, description="keyword.def at k = 16", lo=0.9712, hi=0.9934)
    result.add_metric("significant_labels", 9, unit="of 10", description="after Benjamini-Hochberg at 0.05")
    result.add_metric("rows", 200000, unit="rows", description="read from the store, in 412 documents")
    result.add_table(
        "scores", frame, description="A row per label, hook point and k, on test documents.", units={"k": "neurons"}
    )
    grid = frame[frame.k == 1].pivot_table(index="label", columns="hook_point", values="balanced_accuracy")
    result.add_table("by_layer", grid, description="Balanced accuracy at k = 1.")
    figure, (axes,) = new_figure(width_in=7, height_in=4)
    axes.grid(visible=False)
    mesh = axes.pcolormesh(grid.to_numpy(), cmap="viridis", vmin=0.5, vmax=1)
    axes.set_xticks(np.arange(4) + 0.5, [f"block {layer}" for layer in range(4)])
    axes.set_yticks(np.arange(len(grid)) + 0.5, list(grid.index))
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", size=7, color="white")
    figure.colorbar(mesh, label="balanced accuracy")
    result.add_figure("by_layer", figure, description="One neuron is enough for most kinds of token by block 2.")
    figure, (axes,) = new_figure()
    axes.imshow(noise.random((12, 18)), cmap="magma")
    axes.grid(visible=False)
    result.add_figure("picture", figure, description="A picture keeps its colours in the dark.")
    return result


def write_run(folder, result, plugin, help_, config, options):
    """Save a result and a manifest as `workbench run` does."""
    result.save(folder)
    manifest = {"schema": 1, "plugin": plugin, "help": help_, "config": config, "options": options, **MANIFEST}
    manifest["identity"] = "5be0cd19137e2179a54ff53a5f1d36f1"
    manifest["command"] = f"workbench run {plugin} --store runs/acts-zoo-pycode-4f1c22ab --seed 0"
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sae_run(tmp_path_factory):
    """The folder of a run of `sae`."""
    config = {"hook_point": "blocks.2.hook_resid_post", "k": 32, "latents": 2048, "train": {"lr": 3e-4, "rows": 400000}}
    options = {
        "k": {"help": "latents active on each row", "unit": "latents"},
        "train.lr": {"help": "learning rate", "unit": None},
    }
    question = "Which sparse features does a hook point hold, and how much of it do they explain?"
    return write_run(tmp_path_factory.mktemp("runs") / "sae-1", sae_result(), "sae", question, config, options)


@pytest.fixture(scope="session")
def probe_run(tmp_path_factory):
    """The folder of a run of `sparse-probe`."""
    question = "Which labels can be read from a handful of neurons?"
    folder = tmp_path_factory.mktemp("runs") / "sparse-probe-1"
    return write_run(folder, probe_result(), "sparse-probe", question, {"k": [1, 4, 16], "label": None}, {})
