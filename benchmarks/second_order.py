"""Second-order effects at ViT-B/32's size: factorised, and with everything [image, token, neuron, width].

One MLP layer, two images, random weights: `python benchmarks/second_order.py`. Both ways give the effect of every
neuron on the embedding, and no speed is printed before they are found equal. The direct way follows the definition:
what each neuron writes at each token, through the norm, value and output maps of each later head, mixed by attention to
the class token. Like for like, both begin with the activations, patterns and norm scales of one forward pass and with
the weights; whatever is made of weights alone is made anew by both. What we keep of it between batches is a line more.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import machine
from torch import Tensor

from workbench.plugins.second_order.effects import coefficients, combine, second_order_effects, traced_effects
from workbench.plugins.second_order.paths import ValuePaths
from workbench.plugins.second_order.tracing import Trace, trace
from workbench.subjects.architecture import Architecture
from workbench.subjects.images import ImageProcessor
from workbench.subjects.protocol import Batch
from workbench.subjects.vit import VisionArchitecture, VisionTransformer
from workbench.subjects.vit_subject import VisionSubject

FURTHER = 4  # times in each turn that a fast way is timed
TOLERANCE = 1e-4  # of the largest effect, in float32


def make_tower(layers: int) -> VisionSubject:
    """Return a tower of ViT-B/32's width with random weights."""
    stack = Architecture(
        n_layers=layers, d_model=768, n_heads=12, d_head=64, d_mlp=3072, activation="quick_gelu", norm_epsilon=1e-5
    )
    network = VisionTransformer(
        VisionArchitecture(
            stack, image_size=(224, 224), patch_size=(32, 32), patch_bias=False, norm_before=True, output="embedding",
            n_output=512, head_bias=False,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1 + 0.1 * values)
    return VisionSubject("ViT-B/32, random", network, lambda: ImageProcessor.for_kind("CLIP", (224, 224), 3))


def direct(subject: VisionSubject, traced: Trace, layer: int) -> Tensor:
    """Return the effects, [image, neuron, output], from an array [image, token, neuron, width]."""
    post = traced.post(layer)
    written = post[..., None] * subject.weights("W_out", layer)  # [image, token, neuron, width]
    written -= written.mean(-1, keepdim=True)
    total = torch.zeros(len(post), subject.d_mlp, subject.arch.n_output or 0)
    last = subject.weights("ln_final.w")[:, None] * subject.weights("W_proj")
    for later in range(layer + 1, subject.n_layers):
        scale = traced.captured[f"blocks.{later}.ln1.hook_scale"][:, :, None]
        normed = written / scale * subject.weights("ln1.w", later)
        pattern = traced.captured[f"blocks.{later}.attn.hook_pattern"]
        W_V, W_O = subject.weights("W_V", later), subject.weights("W_O", later)
        for head in range(subject.n_heads):
            values = normed @ W_V[head]
            mixed = torch.einsum("bqk,bkne->bqne", pattern[:, head], values)
            out = (mixed @ W_O[head])[:, 0]  # every token is carried along, as in the paper's code
            out = (out - out.mean(-1, keepdim=True)) / traced.captured["ln_final.hook_scale"][:, 0, None]
            total += out @ last
    return total


def factorised(traced: Trace, paths: ValuePaths, values: Tensor) -> Tensor:
    """Return the effects where the model's own values are at hand already: what each further image costs."""
    return combine(coefficients(traced.mixing(paths), traced.post(paths.layer)), values)


def timed(found: dict[str, Tensor], name: str, way: Callable[[], Tensor]) -> tuple[float, float]:
    """Run a way, keep what it found, and return its seconds by the clock and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    found[name] = way()
    return time.perf_counter() - clock, time.process_time() - processor


def peak_bytes(work: Callable[[], object]) -> int:
    """Return by how much resident memory grows while `work` runs, sampled every five milliseconds."""
    done, highest = threading.Event(), [0]
    start = resident()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return highest[0]


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # not Linux: the highest so far


def main() -> None:
    """Time both in turns; equality is checked on the results of the first turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="of the tower")
    parser.add_argument("--layer", type=int, default=10, help="whose neurons' effects are asked for")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1: processor time is comparable")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = make_tower(options.layers)
    pixels = torch.randn(options.images, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    batch: Batch = subject.batch(list(pixels))
    traced = trace(subject, batch, [options.layer])
    paths = ValuePaths(subject, options.layer)
    values = paths.carry(paths.neurons())
    found: dict[str, Tensor] = {}
    ways: dict[str, Callable[[], Tensor]] = {
        "direct, [image, token, neuron, width]": lambda: direct(subject, traced, options.layer),
        "ours, from the same trace and weights": lambda: traced_effects(traced, ValuePaths(subject, options.layer)),
        "ours, values at hand (a further batch)": lambda: factorised(traced, paths, values),
        "ours, forward pass included": lambda: second_order_effects(subject, batch, options.layer),
        "the forward pass alone": lambda: trace(subject, batch, [options.layer]).output,
    }
    peer, ours, further, whole, forward = ways
    print(
        f"{options.images} images, {subject.n_context} tokens, {subject.d_mlp} neurons of layer {options.layer}, "
        f"{paths.n_paths} later heads, {paths.n_output} outputs, float32"
    )
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(options.rounds):  # in turns: a drift of the machine hits all ways
        for name, way in ways.items():
            if turn == 0:
                memory = peak_bytes(lambda name=name, way=way: seconds[name].append(timed(found, name, way)))  # type: ignore[misc]
                print(f"  {name:<42} grows by {memory / 2**20:8.0f} MiB at most", flush=True)
            else:
                seconds[name].append(timed(found, name, way))
            seconds[name] += [timed(found, name, way) for _ in range(0 if name == peer else FURTHER)]
        for name in (ours, further, whole) if turn == 0 else ():
            error = float((found[name] - found[peer]).abs().max() / found[peer].abs().max())
            print(f"  {name:<42} differs from the direct way by {error:.1e} of the largest effect", flush=True)
            if error > TOLERANCE:
                raise SystemExit("the two ways do not agree")
    print(f"  {'':<42} {'clock':>10}  {'direct ÷ this':>14}  {'processor':>12}  {'direct ÷ this':>14}")
    clock, processor = (
        {name: statistics.median(each[i] for each in times) for name, times in seconds.items()} for i in (0, 1)
    )
    for name in ways:
        sides = [f"{1e3 * s[name]:>9.1f} ms  {s[peer] / s[name]:>14.1f}" for s in (clock, processor)]
        print(f"  {name:<42} {'  '.join(sides)}")
    for what, s in (("by the clock", clock), ("in processor time", processor)):
        print(
            f"like for like, {what}: {s[peer] / s[ours]:.0f} times the direct way from the same activations, patterns "
            f"and weights, nothing kept from before; {(s[peer] + s[forward]) / s[whole]:.0f} times with a forward pass "
            "in front of both"
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {machine()}; {time.strftime('%d %B %Y')}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
