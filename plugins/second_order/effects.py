"""Second-order effects of neurons: exact, in factorised form, in blocks of neurons."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.second_order.paths import Convention, ValuePaths
from workbench.plugins.second_order.published import offset, published_hook_points
from workbench.plugins.second_order.tracing import Trace, trace
from workbench.subjects.protocol import Batch, Subject

FEW_IMAGES = 4  # up to so many, a product per image costs less than writing the values of single paths down
BLOCK_BYTES = 64 * 2**20  # of the largest array that a block of neurons makes


def second_order_effects(
    subject: Subject,
    batch: Batch,
    layer: int,
    neurons: slice = slice(None),
    *,
    convention: Convention = "linear",
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Return what each neuron of a layer adds to the output through the value paths of later heads.

    Attention patterns and the scales of layer norms are held at their actual values. Never makes an array of images x
    tokens x neurons x width: tokens are mixed first (`coefficients`), values are the model's own (`ValuePaths.carry`).

    Parameters
    ----------
    subject : Subject
        A vision tower: CLIP, ViT or DINO, with a linear head or none.
    batch : Batch
        Images.
    layer : int
        Not the last.
    neurons : slice
        Which of them.
    convention : "linear" or "published"
        What becomes of channel means and biases. ``linear``: each neuron's own mean is taken off, biases belong to no
        neuron, and a neuron whose activations are 0 has no effect. ``published``: the paper's code, which shares actual
        means and all biases evenly among components.
    normalize : bool
        Divide by the length of the output: effects on the normalised embedding.
    scale : float
        Multiplied by; the paper's numbers have 100, and `normalize`.

    Returns
    -------
    Tensor [batch, neuron, output]
        In float32, or the subject's dtype if that is wider.

    Raises
    ------
    UserError
        For a subject or layer to which the formula does not apply.

    Examples
    --------
    The numbers that the paper's code saves, for one layer::

        second_order_effects(subject, subject.batch(images), 9, convention="published", normalize=True, scale=100)
    """
    paths = ValuePaths(subject, layer, convention)
    more = published_hook_points(subject, layer) if convention == "published" else ()
    traced = trace(subject, batch, [layer], more)
    out = traced_effects(traced, paths, neurons)
    if convention == "published":
        out += offset(paths, traced)[:, None]
    if normalize:
        out /= lengths(traced)[:, None, None]
    return out * scale if scale != 1 else out


def traced_effects(traced: Trace, paths: ValuePaths, neurons: slice = slice(None)) -> Tensor:
    """Return the effects [batch, neuron, output] from a forward pass that was made already, biases left out."""
    chosen = range(traced.subject.d_mlp)[neurons]
    out = torch.empty(len(traced.output), len(chosen), paths.n_output, dtype=paths.dtype, device=traced.output.device)
    mixed = coefficients(traced.mixing(paths), traced.post(paths.layer)[:, :, neurons])
    vectors = paths.neurons(neurons)
    for block in blocks(len(chosen), paths, len(out)):
        if len(out) <= FEW_IMAGES:
            out[:, block] = paths.carry_weighed(mixed[:, :, block], vectors[block])
        else:
            out[:, block] = combine(mixed[:, :, block], paths.carry(vectors[block]))
    return out


def coefficients(mixing: Tensor, post: Tensor) -> Tensor:
    """Mix activations over tokens: mixing [batch, path, pos], post [batch, pos, neuron] -> [batch, path, neuron]."""
    return torch.bmm(mixing, post)


def combine(mixed: Tensor, values: Tensor) -> Tensor:
    """Weigh the paths of each neuron: mixed [batch, path, neuron], values [path, neuron, output] -> effects.

    Returns
    -------
    Tensor [batch, neuron, output]
    """
    if len(mixed) > FEW_IMAGES:
        return torch.bmm(mixed.permute(2, 0, 1), values.permute(1, 0, 2)).transpose(0, 1)
    total = mixed.new_zeros(len(mixed), *values.shape[1:])
    for path in range(len(values)):  # for few images thousands of tiny products cost more than reading the values
        total.addcmul_(mixed[:, path, :, None], values[path])
    return total


def blocks(n_neurons: int, paths: ValuePaths, n_images: int, budget: int = BLOCK_BYTES) -> Iterator[slice]:
    """Cut neurons into blocks whose values and effects are at most `budget` bytes each."""
    per_neuron = max(paths.n_paths, n_images) * paths.n_output * paths.dtype.itemsize
    step = max(1, budget // per_neuron)
    for start in range(0, n_neurons, step):
        yield slice(start, min(start + step, n_neurons))


def lengths(traced: Trace) -> Tensor:
    """Return the length of each output, [batch]; zero is an error: it has no direction."""
    found: Tensor = traced.output.norm(dim=-1)
    if not bool((found > 0).all()):
        raise UserError(f"{traced.subject.address}: an image has an output of length 0, which cannot be normalised")
    return found


def layer_effect(traced: Trace, paths: ValuePaths, stream: Tensor) -> Tensor:
    """Return the second-order effect [batch, output] of a part of the stream behind the layer, [batch, pos, d_model].

    With ``post @ paths.neurons()`` the sum over all neurons, with `ValuePaths.bias` at every position the share of the
    bias; at a cost that does not depend on the number of neurons.
    """
    return paths.carry_mixed(torch.bmm(traced.mixing(paths), stream))
