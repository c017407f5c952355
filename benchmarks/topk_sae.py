"""How fast a TopK autoencoder encodes and trains, beside its peers and the bare float32 product of its encoder.

    python benchmarks/topk_sae.py [--sizes base,latents,width] [--kinds gaussian,trained,...] [--parts encode,step]
                                  [--ways ours,SAELens,...] [--repeats 7] [--peer-repeats 3] [--memory]

All ways start from the same weights, read the same rows and use torch's number of threads; that their losses agree is
checked first. Ways take turns, so that a drift of the machine hits all of them; medians are told. The floor is
``torch.mm(x, W.T, out=...)``: what every way that forms scores in float32 does first.

The peers are in the dependency group `bench`. dictionary-learning asks for torchvision through a package that is not
used here; leave it out where torch is a CPU build (uv: ``--override`` with ``torchvision; sys_platform == "never"``).
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

import torch
from measuring import Others, in_turns, machine
from topk_sae_data import KINDS, Size, make
from topk_sae_ways import FORCED, OURS, WAYS, floor

from workbench.kernels.choice import in_use

SIZES = {
    "base": Size(4096, 768, 16_384, 32),
    "latents": Size(4096, 768, 32_768, 32),
    "width": Size(4096, 2048, 16_384, 64),
}
PARTS = ("encode", "step")
PACKAGES = {"SAELens": "sae_lens", "eai-sparsify": "sparsify", "dictionary-learning": "dictionary_learning"}


def main() -> None:
    """Run what is asked for, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}; other sizes take the first")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--ways", default=",".join(name for name in WAYS if name not in FORCED), help=f"of {', '.join(WAYS)}"
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds of ours and of the floor")
    parser.add_argument("--peer-repeats", type=int, default=3, help="rounds that peers take part in")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # what --memory starts for each way
    asked = parser.parse_args()
    lists = {"sizes": SIZES, "kinds": KINDS, "parts": PARTS, "ways": WAYS}
    sizes, kinds, parts, ways = (getattr(asked, name).split(",") for name in lists)
    for (name, known), chosen in zip(lists.items(), (sizes, kinds, parts, ways), strict=True):
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if asked.memory_of:
        print(peak_memory(asked.memory_of, SIZES[sizes[0]]))
        return
    missing = [name for name in ways if not importlib.util.find_spec(PACKAGES.get(name, "torch"))]
    ways = [name for name in ways if name not in missing]
    if missing:
        print(f"not installed, and left out: {', '.join(missing)} (dependency group bench)")
    for name in sizes:
        if asked.memory:
            tell_memory(name, ways)
            continue
        for kind in kinds if name == sizes[0] else kinds[:1]:
            compare(SIZES[name], kind, parts, ways, asked.repeats, asked.peer_repeats)
    kernel = in_use()["topk_encode"]
    print(f"\n{machine()}; {torch.get_num_threads()} threads; torch {torch.__version__}; kernel {kernel}")


def compare(size: Size, kind: str, parts: list[str], names: list[str], repeats: int, peer_repeats: int) -> None:
    """Check that all ways have the same loss, then time encoding and a step of each."""
    print(f"\n{size}: {kind} rows", flush=True)
    print(f"  encoder: {in_use(size=(size.rows, size.width, size.latents, size.k))['topk_encode']}", flush=True)
    task = make(kind, size)
    for part in parts:
        ways = {name: WAYS[name](task, size.k) for name in names}
        losses = {name: way.loss() for name, way in ways.items()}
        first = next(iter(losses.values()))
        if wrong := [name for name, loss in losses.items() if abs(loss - first) > 1e-4 * abs(first)]:
            raise SystemExit(f"losses differ, so nothing is measured: {losses} ({', '.join(wrong)})")
        fewer = {name: peer_repeats for name in names if name not in OURS}
        with floor(task) as product:
            timed = {"floor": product, **{name: getattr(way, part) for name, way in ways.items()}}
            for run in timed.values():
                run()  # warm: compiled, allocated
            others = Others()
            seconds = in_turns(timed, repeats, fewer=fewer)
        del ways, timed
        told = f"floor {1e3 * seconds['floor']:.0f} ms; other processes took {others.share():.0%} of the cores"
        print(f"  {part}; loss {first:.6g} in all; {told}")
        for name in names:
            found = seconds[name]
            ratios = f"{found / seconds['floor']:7.2f} x floor {found / seconds[names[0]]:7.2f} x {names[0]}"
            print(f"    {name:<22}{1e3 * found:8.0f} ms {ratios}", flush=True)


def tell_memory(size: str, names: list[str]) -> None:
    """Print each way's peak memory above what its imports take, from a process of its own."""
    print(f"\n{SIZES[size]}: peak memory above import, three steps, rows and weights included")
    for name in names:
        command = [sys.executable, __file__, "--sizes", size, "--memory-of", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {name:<22}{int(done.stdout.split()[-1]):8d} MB", flush=True)


def peak_memory(name: str, size: Size) -> int:
    """Return MB of peak memory above import; small steps first, so that whatever is loaded late is loaded."""
    small = Size(256, 64, 2048, 8)
    way = WAYS[name](make("gaussian", small), small.k)
    way.step()
    del way
    status = Path("/proc/self/clear_refs")
    if status.exists():
        status.write_text("5", encoding="ascii")  # the peak counts from here
    before = resident()
    way = WAYS[name](make("gaussian", size), size.k)
    for _ in range(3):
        way.step()
    return (peak() - before) // 2**20


def resident() -> int:
    """Return bytes of memory in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Return the largest number of bytes that was in use."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
