"""How much of the encode kernel's own rate is left when a whole store is encoded, and whether memory stays flat.

    python benchmarks/encode.py [--rows 131072] [--width 768] [--latents 16384] [--k 32] [--activation topk]

Rows are float16, read from a store that the system has in memory. The kernel's own rate is that of the dictionary's
`encode` on batches that are in memory as tensors; end to end is `workbench.encode`, which reads, encodes, and writes
the codes with their checksums, by row and by latent, synced. Likewise a store of reconstructions, with codes to read
and without: held against `decode`, and `encode` and `decode`, of batches in memory; and against writing the same rows,
which no reconstruction can be faster than. Peak memory is of processes that do one of these once, and nothing else.
Needs three times the rows' bytes on the disk while it runs; removes what it made.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import in_turns, machine

from workbench.cache import ActivationSpec, ExamplesBuilder, Store, StoreWriter, open_store
from workbench.dictionary import Dictionary
from workbench.encoding import BATCH_ROWS, encode
from workbench.reconstructing import reconstruct

HOOK, CONTEXT, BATCHES = "blocks.0.hook_resid_post", 256, 4


def write_store(folder: Path, rows: int, width: int) -> Store:
    """Write Gaussian rows."""
    plan = ExamplesBuilder()
    for number in range(-(-rows // CONTEXT)):
        plan.sequence(plan.document(f"{number}"), np.arange(min(CONTEXT, rows - CONTEXT * number)))
    rng = np.random.default_rng(0)
    spec = {HOOK: ActivationSpec(("d_model",), (width,), "float16")}
    with StoreWriter(folder, spec, plan.build(), {"model": {"address": "none", "fingerprint": "m"}}) as writer:
        while writer.next_row < rows:
            n = min(BATCH_ROWS, rows - writer.next_row)
            writer.append({HOOK: rng.standard_normal((n, width), dtype=np.float32)})
    return open_store(folder)


def make_dictionary(width: int, latents: int, k: int, activation: str) -> Dictionary:
    """Return random unit directions; thresholds that some k scores of a row are above."""
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    common = {"W_enc": W, "W_dec": W, "b_enc": torch.zeros(latents), "b_dec": torch.zeros(width)}
    threshold = None
    if activation == "jumprelu":
        scores = torch.randn(512, width, generator=generator) @ W.T
        threshold = torch.full((latents,), float(scores.flatten().kthvalue(512 * (latents - k)).values))
    return Dictionary(
        **common,
        b_pre=torch.zeros(width),
        activation=activation,  # type: ignore[arg-type]  # of the parser's choices
        hook_in=HOOK,
        hook_out=HOOK,
        k=k if activation == "topk" else None,
        threshold=threshold,
        subject_fingerprint="m",
        address="bench",
    )


def prepared(folder: Path, asked: argparse.Namespace) -> tuple[Store, Dictionary, dict[str, Callable[[], object]]]:
    """Return the store in a folder, a dictionary, and what is done end to end, by name."""
    logging.getLogger("workbench").setLevel(logging.WARNING)
    store = open_store(folder)
    dictionary = make_dictionary(asked.width, asked.latents, asked.k, asked.activation).to(asked.device)

    def rebuild() -> None:
        reconstruct(store, dictionary, out=folder.parent / "reconstructed", device=asked.device)

    return (
        store,
        dictionary,
        {
            "without codes": rebuild,
            "whole": lambda: encode(store, dictionary, name="bench", device=asked.device),
            "from codes": rebuild,  # those that `whole` has made
        },
    )


def clean(folder: Path, way: str) -> None:
    """Remove what was made before, but for the codes that are to be read."""
    if way in ("whole", "without codes"):
        shutil.rmtree(folder / "codes", ignore_errors=True)
    shutil.rmtree(folder.parent / "reconstructed", ignore_errors=True)


def peak(folder: Path, asked: argparse.Namespace) -> float:
    """Return the memory that one way takes at its peak, above that of the weights and a first batch, in MB."""
    store, dictionary, ways = prepared(folder, asked)
    dictionary.decode(*dictionary.encode(store.read_tensor(HOOK, slice(0, BATCH_ROWS)).to(asked.device)))
    clean(folder, asked.only)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ways[asked.only]()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Time kernels alone and end to end on the store in a folder; returns rows a second."""
    store, dictionary, whole = prepared(folder, asked)
    batches = [
        store.read_tensor(HOOK, slice(at * BATCH_ROWS, (at + 1) * BATCH_ROWS)).to(asked.device)
        for at in range(min(BATCHES, store.n_rows // BATCH_ROWS))
    ]
    assert [len(batch) for batch in batches] == [BATCH_ROWS] * len(batches)

    def kernel() -> None:
        for batch in batches:
            dictionary.encode(batch)
        if asked.device.startswith("cuda"):
            torch.cuda.synchronize()

    coded = [dictionary.encode(batch) for batch in batches]
    rebuilt = [dictionary.decode(*codes).float().cpu().numpy() for codes in coded]

    def decoder() -> None:
        for codes in coded:
            dictionary.decode(*codes)
        if asked.device.startswith("cuda"):
            torch.cuda.synchronize()

    def write() -> None:
        with StoreWriter(folder.parent / "reconstructed", store.hook_points, store.examples, {}) as writer:
            while writer.next_row < store.n_rows:
                part = rebuilt[writer.next_row // BATCH_ROWS % len(rebuilt)]
                writer.append({HOOK: part[: store.n_rows - writer.next_row]})

    kernel()
    ways: dict[str, Callable[[], object]] = {"kernel": kernel, "decoder": decoder, "write": write, **whole}
    seconds = in_turns(ways, asked.repeats, before=lambda way: clean(folder, way))
    # equal first of all: what was stored is what the dictionary gives
    codes = store.codes("bench").csr(slice(0, BATCH_ROWS))
    want = dictionary.encode_dense(batches[0]).cpu()
    got = torch.from_numpy(codes.toarray())
    moved = ((got > 0) != (want > 0)).sum().item() / BATCH_ROWS
    torch.testing.assert_close(got * (want > 0), want * (got > 0), rtol=1e-4, atol=1e-5)
    if moved > 0.01:
        raise SystemExit(f"stored codes and encoded ones differ in {moved:.3f} latents a row")
    in_memory = len(batches) * BATCH_ROWS
    return {
        **{name: (in_memory if name in ("kernel", "decoder") else store.n_rows) / seconds[name] for name in ways},
        "entries": store.codes("bench").n_entries / store.n_rows,
    }


def in_process(folder: Path, way: str = "") -> Any:
    """Return what this program prints as one that measures the store in a folder: rates, or one way's peak memory."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", str(folder), *(["--only", way] if way else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure one size and a quarter of it, each in a process of its own, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072, help=f"at least {4 * BATCH_ROWS}")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--activation", choices=["topk", "jumprelu"], default="topk")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(peak(asked.one, asked) if asked.only else measure(asked.one, asked)))
        return
    if asked.rows < 4 * BATCH_ROWS:
        parser.error(f"--rows must be at least {4 * BATCH_ROWS}")
    found, peaks = {}, {}
    for rows in (asked.rows // 4, asked.rows):
        with tempfile.TemporaryDirectory(prefix="encode-benchmark-", dir=asked.folder) as folder:
            write_store(Path(folder, "acts"), rows, asked.width)
            start = time.perf_counter()
            found[rows] = in_process(Path(folder, "acts"))
            peaks[rows] = {
                way: in_process(Path(folder, "acts"), way) for way in ("without codes", "whole", "from codes")
            }
            print(f"{rows:>9,} rows: {time.perf_counter() - start:.1f} s")
    print(f"\nwidth {asked.width}, {asked.latents} latents, {asked.activation}, k {asked.k}, on {asked.device}")
    print(
        f"{'rows':>9} {'what':<24} {'in memory, rows/s':>18} {'end to end':>12} {'ratio':>7} {'written':>10} {'MB':>6}"
    )
    for rows, one in found.items():
        both = 1 / (1 / one["kernel"] + 1 / one["decoder"])
        for what, name, base in (
            ("encode", "whole", one["kernel"]),
            ("reconstruct", "without codes", both),
            ("reconstruct from codes", "from codes", one["decoder"]),
        ):
            written = "" if what == "encode" else f"{one[name] / one['write']:.3f}"
            print(
                f"{rows:>9,} {what:<24} {base:>18,.0f} {one[name]:>12,.0f} {one[name] / base:>7.3f} {written:>10} "
                f"{peaks[rows][name]:>6,.0f}"
            )
    print("written: of the rate at which the store's writer takes rows in memory; MB: peak memory")
    print(f"{found[asked.rows]['entries']:.1f} latents active on a row")
    print(f"\n{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")


if __name__ == "__main__":
    main()
