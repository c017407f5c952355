"""How fast the TopK kernels are on a GPU, held against the bare bfloat16 product, a plain copy, and a peer.

    python benchmarks/topk_gpu.py [--rows 8192] [--width 4096] [--latents 131072] [--k 32] [encode] [linear] [step]

Prints tables in Markdown, as docs/performance.md has them. At the default size it needs some 60 GiB of GPU memory.
With `--device cpu` and small sizes it runs anywhere, to show that it runs: those figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import in_turns
from torch import Tensor
from torch.nn import functional as F

from workbench.kernels.cuda import registration
from workbench.kernels.topk import gathered_dot, scatter_outer, sparse_decode, topk_encode

CHECKED_ROWS = 64
Work = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """What is encoded: x [rows, width], W [latents, width], k."""

    rows: int
    width: int
    latents: int
    k: int
    repeats: int
    device: str

    def gaussian(self, *shape: int, dtype: torch.dtype, seed: int) -> Tensor:
        """Random numbers on the device, scaled so that rows of `width` have norm 1."""
        generator = torch.Generator(self.device).manual_seed(seed)
        numbers = torch.randn(*shape, generator=generator, device=self.device, dtype=torch.float32)
        return (numbers / self.width**0.5).to(dtype)

    def timed(self, ways: dict[str, Work]) -> dict[str, float]:
        """Median seconds of each way, warm, with the GPU's work done when the clock stops."""

        def finished(way: Work) -> Work:
            def run() -> None:
                way()
                if self.device == "cuda":
                    torch.cuda.synchronize()

            return run

        done = {name: finished(way) for name, way in ways.items()}
        for way in done.values():
            way()
        return in_turns(done, self.repeats)

    def __str__(self) -> str:
        return f"rows {self.rows}, width {self.width}, latents {self.latents}, k {self.k}"


def main() -> None:
    """Run the parts asked for, and tell the machine."""
    parts = {"encode": encode, "linear": linear, "step": step}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="encode, linear, step; by default all")
    for name, default in {"rows": 8192, "width": 4096, "latents": 131_072, "k": 32, "repeats": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    asked = vars(parser.parse_args())
    chosen = asked.pop("parts") or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(parts)}")
    if min(v for v in asked.values() if isinstance(v, int)) < 1 or asked["k"] > asked["latents"]:
        parser.error("sizes must be at least 1, and --k at most --latents")
    if asked["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu shows that the benchmark runs, and nothing else")
    sizes = Sizes(**asked)
    for name in chosen:
        parts[name](sizes)
    print("\n" + "; ".join([*registration.status(), f"torch {torch.__version__}, CUDA {torch.version.cuda}"]))


def encode(sizes: Sizes) -> None:
    """Print the encoder's share of the rate of a bfloat16 product of the same size."""
    flops = 2 * sizes.rows * sizes.latents * sizes.width
    for dtype in (torch.bfloat16, torch.float32):
        x = sizes.gaussian(sizes.rows, sizes.width, dtype=dtype, seed=0)
        W = sizes.gaussian(sizes.latents, sizes.width, dtype=dtype, seed=1)
        b = sizes.gaussian(sizes.latents, dtype=dtype, seed=2) * 0.1
        check_encode(x, W, b, sizes.k)
        x16, W16 = x.bfloat16(), W.bfloat16()
        out = torch.empty(sizes.rows, sizes.latents, dtype=torch.bfloat16, device=sizes.device)

        def ours(x: Tensor = x, W: Tensor = W, b: Tensor = b) -> object:
            return topk_encode(x, W, b, sizes.k)

        def product(x: Tensor = x16, W: Tensor = W16, out: Tensor = out) -> Tensor:
            return torch.mm(x, W.T, out=out)

        def plain(product: Callable[[], Tensor] = product) -> object:
            return product().topk(sizes.k)

        seconds = sizes.timed({"ours": ours, "bfloat16 product": product, "bfloat16 product, torch.topk": plain})
        print(f"\ntopk_encode, {dtype}, {sizes}\n")
        print("| | ms | Tflop/s | share of the bfloat16 product's rate |\n| --- | ---: | ---: | ---: |")
        for name, s in seconds.items():
            print(f"| {name} | {1e3 * s:.3f} | {flops / s / 1e12:.1f} | {seconds['bfloat16 product'] / s:.3f} |")
        del x, W, b, x16, W16, out, ours, product, plain  # the next round needs the room


def check_encode(x: Tensor, W: Tensor, b: Tensor, k: int) -> None:
    """Stop unless a few rows have the k best latents by float64 scores (near ties may change places)."""
    values, indices = (t[:CHECKED_ROWS] for t in topk_encode(x, W, b, k))
    scores = torch.cat([x[:CHECKED_ROWS].double() @ part.double().T for part in W.split(16_384)], dim=1) + b.double()
    want = scores.topk(k).values
    torch.testing.assert_close(scores.gather(1, indices), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(values.double(), want, rtol=1e-2 if x.dtype != torch.float32 else 1e-5, atol=1e-5)


def linear(sizes: Sizes) -> None:
    """Print the linear kernels' share of the bandwidth of a copy, counted on the bytes they must touch."""
    for dtype in (torch.bfloat16, torch.float32):
        x = sizes.gaussian(sizes.rows, sizes.width, dtype=dtype, seed=0)
        W = sizes.gaussian(sizes.latents, sizes.width, dtype=dtype, seed=1)
        values = sizes.gaussian(sizes.rows, sizes.k, dtype=dtype, seed=2)
        generator = torch.Generator(sizes.device).manual_seed(3)
        indices = torch.randint(sizes.latents, (sizes.rows, sizes.k), generator=generator, device=sizes.device)
        check_linear(values, indices, x, W)
        for name, s, rate, share in linear_rates(sizes, values, indices, x, W):
            if name == "sparse_decode":
                print(f"\n{dtype}, {sizes}\n")
                print("| | ms | GB/s of the bytes it must touch | share of the copy's |\n| --- | ---: | ---: | ---: |")
            print(f"| {name} | {1e3 * s:.3f} | {rate / 1e9:.0f} | {share:.3f} |")


def linear_rates(
    sizes: Sizes, values: Tensor, indices: Tensor, x: Tensor, W: Tensor
) -> list[tuple[str, float, float, float]]:
    """Name, seconds, bytes a second and share of the copy's rate of each linear kernel, and of the copy."""
    size = x.element_size()
    gathered = indices.numel() * (sizes.width * size + 8 + size)  # rows of W, or of x; an index and a value for each
    batch, table = x.numel() * size, W.numel() * size
    target = torch.empty_like(W)
    ways: dict[str, Work] = {
        "sparse_decode": lambda: sparse_decode(values, indices, W),
        "gathered_dot": lambda: gathered_dot(x, indices, W),
        "scatter_outer": lambda: scatter_outer(values, indices, x, sizes.latents),
        "copy": lambda: target.copy_(W),
    }
    touched = {
        "sparse_decode": gathered + batch,
        "gathered_dot": gathered + batch,
        "scatter_outer": gathered + table,
        "copy": 2 * table,
    }
    seconds = sizes.timed(ways)
    rates = {name: touched[name] / s for name, s in seconds.items()}
    return [(name, seconds[name], rates[name], rates[name] / rates["copy"]) for name in ways]


def check_linear(values: Tensor, indices: Tensor, x: Tensor, W: Tensor) -> None:
    """Stop unless decode and dot agree with float64 on a few rows, and scatter on a few latents."""
    some, chosen = slice(0, CHECKED_ROWS), W[indices[:CHECKED_ROWS]].double()
    rtol, atol = (1e-5, 1e-6) if x.dtype == torch.float32 else (2e-2, 1e-3)

    def agree(got: Tensor, want: Tensor) -> None:
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)

    agree(sparse_decode(values, indices, W)[some], torch.einsum("rk,rkw->rw", values[some].double(), chosen))
    agree(gathered_dot(x, indices, W)[some], torch.einsum("rw,rkw->rk", x[some].double(), chosen))
    sums = scatter_outer(values, indices, x, len(W))
    for latent in indices[0].unique()[:8]:
        row, place = (indices == latent).nonzero(as_tuple=True)
        agree(sums[latent], (values[row, place].double()[:, None] * x[row].double()).sum(0))


def step(sizes: Sizes) -> None:
    """Print how long a training step takes: forward, backward and Adam, float32 weights."""
    x = sizes.gaussian(sizes.rows, sizes.width, dtype=torch.float32, seed=0)
    makers = {"ours": our_step, "sparsify": sparsify_step}
    if importlib.util.find_spec("sparsify") is None:
        print("\nsparsify is not installed (pip install eai-sparsify): the step has no peer")
        del makers["sparsify"]
    losses, seconds = {}, {}
    for name, make in makers.items():  # one after the other: both at once would not fit
        way = make(sizes, x)
        losses[name] = way()
        seconds.update(sizes.timed({name: way}))
        del way
    if "sparsify" in losses and abs(losses["ours"] / losses["sparsify"] - 1) > 0.02:  # on a GPU it uses bfloat16
        raise SystemExit(f"the first steps' losses differ: {losses}")
    print(f"\nstep, {sizes}\n")
    print("| | ms | times ours |\n| --- | ---: | ---: |")
    for name, s in seconds.items():
        print(f"| {name} | {1e3 * s:.2f} | {s / seconds['ours']:.2f} |")


def initial(sizes: Sizes) -> Tensor:
    """Encoder and decoder weights that both sides start from: rows of norm 1."""
    return F.normalize(sizes.gaussian(sizes.latents, sizes.width, dtype=torch.float32, seed=1))


def our_step(sizes: Sizes, x: Tensor) -> Callable[[], float]:
    """Return a step of a TopK autoencoder made of our operators; it returns its loss."""
    biases = torch.zeros(sizes.latents, device=sizes.device), torch.zeros(sizes.width, device=sizes.device)
    leaves = [leaf.requires_grad_() for leaf in (initial(sizes), initial(sizes), *biases)]
    W_enc, W_dec, b_enc, b_dec = leaves
    adam = torch.optim.Adam(leaves, lr=1e-4, fused=sizes.device == "cuda")

    def take() -> float:
        values, indices = topk_encode(x - b_dec, W_enc, b_enc, sizes.k)
        error = x - sparse_decode(values.relu(), indices, W_dec, b_dec)
        loss = error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        loss.backward()
        adam.step()
        adam.zero_grad()
        return float(loss.detach())

    return take


def sparsify_step(sizes: Sizes, x: Tensor) -> Callable[[], float]:
    """Return the same step made of sparsify's module."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=sizes.latents, k=sizes.k, normalize_decoder=False)
    coder = SparseCoder(sizes.width, config, device=sizes.device, dtype=torch.float32)
    coder.encoder.weight.data.copy_(initial(sizes))
    coder.W_dec.data.copy_(initial(sizes))
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=sizes.device == "cuda")

    def take() -> float:
        loss = coder(x).fvu
        loss.backward()
        adam.step()
        adam.zero_grad()
        return float(loss.detach())

    return take


if __name__ == "__main__":
    main()
