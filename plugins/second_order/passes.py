"""Passes over the images, in chunks that survive an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.second_order.effects import coefficients, lengths
from workbench.plugins.second_order.paths import Convention, ValuePaths, neuron_weights
from workbench.plugins.second_order.published import offset, published_hook_points
from workbench.plugins.second_order.readout import architecture
from workbench.plugins.second_order.sample import FIT, Sample
from workbench.plugins.second_order.tracing import images_per_batch, trace
from workbench.subjects.protocol import At, Batch, Subject

if TYPE_CHECKING:
    from workbench.context import Context

IMAGES_PER_CHUNK = 256
Arrays = dict[str, np.ndarray]


class Chunks:
    """Arrays over images, as a pass left them: a folder for each chunk, a file for each array.

    Parameters
    ----------
    folder : Path
        Holds the chunks' folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folders = sorted(path for path in folder.iterdir() if path.suffix != ".part")

    def rows(self, name: str, axis: int = 0, block: slice | None = None) -> np.ndarray:
        """Return an array of all images; `axis` is the images'. A `block` takes a part of the first axis."""
        parts = [np.load(folder / f"{name}.npy", mmap_mode="r") for folder in self.folders]
        return np.concatenate([part if block is None else part[block] for part in parts], axis=axis)

    def total(self, name: str) -> np.ndarray:
        """Return the sum over chunks of an array."""
        return np.asarray(sum(np.load(folder / f"{name}.npy") for folder in self.folders))


def run_in_chunks(
    context: Context,
    subject: Subject,
    sample: Sample,
    images: np.ndarray,
    name: str,
    of_batch: Callable[[Batch, np.ndarray], tuple[Arrays, Arrays]],
    at_once: int,
) -> Chunks:
    """Run images through the subject and keep what `of_batch` makes of each batch.

    Parameters
    ----------
    context, subject, sample
        Of the run.
    images : np.ndarray
        Of the sample, in this order.
    name : str
        Of the folder in ``context.work``, and of the progress.
    of_batch : function
        ``of_batch(batch, images)`` gives arrays that are joined along their axis of images (the first; for three axes
        and more the second where the name starts with ``by_neuron``), and arrays that are added up.
    at_once : int
        Images in a batch.
    """
    folder = context.work / name
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(images), IMAGES_PER_CHUNK)
    done = sum((folder / f"{start:07d}").exists() for start in starts)
    with context.progress(len(images), "images", name, min(done * IMAGES_PER_CHUNK, len(images))) as ticker:
        for start in starts:
            place = folder / f"{start:07d}"
            if place.exists():
                continue
            joined: dict[str, list[np.ndarray]] = {}
            summed: Arrays = {}
            for at in range(start, min(start + IMAGES_PER_CHUNK, len(images)), at_once):
                here = images[at : min(at + at_once, start + IMAGES_PER_CHUNK)]
                arrays, sums = of_batch(subject.batch([sample.picture(int(image)) for image in here]), here)
                for key, value in arrays.items():
                    joined.setdefault(key, []).append(value)
                for key, value in sums.items():
                    summed[key] = summed[key] + value if key in summed else value
                ticker.advance(len(here))
            part = folder / f"{start:07d}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for key, values in joined.items():
                np.save(part / f"{key}.npy", np.concatenate(values, axis=1 if key.startswith("by_neuron") else 0))
            for key, value in summed.items():
                np.save(part / f"{key}.npy", value)
            part.rename(place)
    return Chunks(folder)


def measure_layers(context: Context, subject: Subject, sample: Sample) -> Chunks:
    """Run all images and keep what the neurons of each layer contribute together, as shares of the embedding's length.

    Returns
    -------
    Chunks
        ``embeddings`` [image, output] of length 1; ``first`` (directly) and ``second`` (through later values)
        [image, layer, output]; ``posts`` [layer, pos, neuron], activations summed over fitting images.
    """
    every = range(subject.n_layers)
    paths = [ValuePaths(subject, layer) for layer in every[:-1]]
    written = [neuron_weights(subject, layer) for layer in every]

    def of_batch(batch: Batch, images: np.ndarray) -> tuple[Arrays, Arrays]:
        traced = trace(subject, batch, every)
        length = lengths(traced)[:, None]
        streams = [traced.post(layer) @ W for layer, W in enumerate(written)]
        first = [traced.readout(stream) for stream in streams]
        second = [
            each.carry_mixed(torch.bmm(traced.mixing(each), stream))
            for each, stream in zip(paths, streams, strict=False)
        ]
        second.append(torch.zeros_like(traced.output))
        fitting = torch.from_numpy(sample.part[images] == FIT).to(length.device)
        posts = torch.stack([traced.post(layer)[fitting].sum(0) for layer in every])
        rows = {
            "embeddings": plain(traced.output / length),
            "first": plain(torch.stack(first, 1) / length[:, None]),
            "second": plain(torch.stack(second, 1) / length[:, None]),
        }
        return rows, {"posts": plain(posts)}

    images = np.arange(len(sample))
    return run_in_chunks(context, subject, sample, images, "layers", of_batch, images_per_batch(subject, every))


def measure_indirect(
    context: Context, subject: Subject, sample: Sample, images: np.ndarray, posts: np.ndarray
) -> Chunks:
    """Run images with one layer's neurons held at their mean over fitting images, layer by layer, all else live.

    Parameters
    ----------
    context, subject, sample
        Of the run.
    images : np.ndarray
        Which.
    posts : np.ndarray
        [layer, pos, neuron] mean activations.

    Returns
    -------
    Chunks
        ``without`` [image, layer, output] embeddings of length 1.
    """
    means = torch.from_numpy(posts).to(subject.device, subject.dtype)

    def of_batch(batch: Batch, images: np.ndarray) -> tuple[Arrays, Arrays]:
        found = []
        for layer in range(subject.n_layers):

            def hold(post: Tensor, at: At, layer: int = layer) -> Tensor:
                return means[layer].to(post.device).expand_as(post)

            value = subject.intervene(batch, {f"blocks.{layer}.mlp.hook_post": hold})
            found.append(torch.nn.functional.normalize(value.float(), dim=-1))
        return {"without": plain(torch.stack(found, 1))}, {}

    return run_in_chunks(context, subject, sample, images, "indirect", of_batch, images_per_batch(subject, [0]))


def measure_neurons(
    context: Context,
    subject: Subject,
    sample: Sample,
    layers: Sequence[int],
    convention: Convention,
    name: str = "neurons",
) -> Chunks:
    """Run all images and keep how each neuron's activations are mixed into each path, as shares of the length.

    Returns
    -------
    Chunks
        For each layer L ``by_neuron_L`` [neuron, image, path], ``peak_L`` [image, neuron] (largest activation on a
        patch), and for the published convention ``offset_L`` [image, output]; ``embeddings`` [image, output].
    """
    paths = {layer: ValuePaths(subject, layer, convention) for layer in layers}
    published = convention == "published"
    more = published_hook_points(subject, min(layers)) if published else ()
    n_prefix = architecture(subject).n_prefix

    def of_batch(batch: Batch, images: np.ndarray) -> tuple[Arrays, Arrays]:
        traced = trace(subject, batch, layers, more)
        length = lengths(traced)
        rows = {"embeddings": plain(traced.output / length[:, None])}
        for layer, each in paths.items():
            post = traced.post(layer)
            mixed = coefficients(traced.mixing(each), post) / length[:, None, None]
            rows[f"by_neuron_{layer}"] = plain(mixed.permute(2, 0, 1).contiguous())
            rows[f"peak_{layer}"] = plain(post[:, n_prefix:].amax(1))
            if published:
                rows[f"offset_{layer}"] = plain(offset(each, traced) / length[:, None])
        return rows, {}

    at_once = images_per_batch(subject, layers)
    return run_in_chunks(context, subject, sample, np.arange(len(sample)), name, of_batch, at_once)


def plain(values: Tensor) -> np.ndarray:
    """Return values as a float32 array on the host."""
    return np.asarray(values.to("cpu", torch.float32).numpy())
