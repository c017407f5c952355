"""Counting pairs of codes (the discrete SAE of `workbench run circuit`): ours, the published dense array, naive loops.

For every two heads: how many pairs of codes co-occur in a positive example and in no negative one. The published way
fills an array [heads, heads, codes, codes] for each class, 6.6 GB at 144 heads and 200 codes. Here it is filled for a
few heads at a time, which computes the same, keeps the memory bounded, and is no slower. The naive loops, which all
must equal as integers, run once. The floor is one pass that reads every example's pair of codes and writes it down.

    python benchmarks/circuits.py        GPT-2 small's 144 heads, and the paper's 200 codes and 250 + 250 examples
    python benchmarks/circuits.py --heads 32 --distinct 8
"""

from __future__ import annotations

import argparse

import numpy as np
from measuring import in_turns, machine

from workbench.plugins.circuit.counting import count_pairs

MAX_CELLS = 60_000_000  # of the dense array at once, float64


def dense(positive: np.ndarray, negative: np.ndarray, n_codes: int) -> np.ndarray:
    """Count with arrays over all pairs of codes."""
    n_heads = positive.shape[1]
    block = max(1, MAX_CELLS // (n_heads * n_codes**2))
    counts = np.zeros((n_heads, n_heads), dtype=np.int64)
    for start in range(0, n_heads, block):
        mine = np.arange(start, min(start + block, n_heads))
        together = []
        for codes in (positive, negative):
            cells = np.zeros((len(mine), n_heads, n_codes, n_codes))
            for row in codes:  # an example has each pair of heads once, so no cell is named twice
                cells[mine[:, None] - start, np.arange(n_heads)[None], row[mine, None], row[None]] += 1
            together.append(cells)
        counts[mine] = ((together[0] > 0) & (together[1] == 0)).sum(axis=(2, 3))
    np.fill_diagonal(counts, 0)
    return counts


def loops(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Count with sets, pair by pair."""
    n_heads = positive.shape[1]
    counts = np.zeros((n_heads, n_heads), dtype=np.int64)
    for first in range(n_heads):
        for second in range(n_heads):
            if first != second:
                seen = set(zip(positive[:, first].tolist(), positive[:, second].tolist(), strict=True))
                counts[first, second] = len(
                    seen - set(zip(negative[:, first].tolist(), negative[:, second].tolist(), strict=True))
                )
    return counts


def floor(codes: np.ndarray, out: np.ndarray) -> None:
    """Write down the pair of codes of every example and every two heads, once."""
    for head in range(codes.shape[1] - 1):
        np.add(codes[:, head + 1 :], codes[:, head, None], out=out[:, head + 1 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=144)
    parser.add_argument("--codes", type=int, default=200)
    parser.add_argument(
        "--distinct", type=int, default=200, help="codes that a head takes in fact; few is the usual case"
    )
    parser.add_argument("--examples", type=int, default=250, help="of each class")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dense-repeats", type=int, default=1, help="the dense array takes seconds")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    chosen = rng.integers(args.codes, size=(args.heads, args.distinct))
    drawn = rng.integers(args.distinct, size=(2 * args.examples, args.heads))
    codes = chosen[np.arange(args.heads), drawn]
    positive, negative = codes[: args.examples], codes[args.examples :]

    ours, want = count_pairs(positive, negative), loops(positive, negative)
    if not (np.array_equal(ours, want) and np.array_equal(dense(positive, negative, args.codes), want)):
        raise SystemExit("the counts differ")
    out = np.empty_like(codes)
    seconds = in_turns(
        {
            "ours": lambda: count_pairs(positive, negative),
            "floor": lambda: floor(codes, out),
            "dense": lambda: dense(positive, negative, args.codes),
        },
        args.repeats,
        fewer={"dense": args.dense_repeats},
    )
    print(
        f"{args.heads} heads, {args.codes} codes, at most {args.distinct} of a head, {args.examples} + {args.examples}"
    )
    print(f"examples; counts of pairs from 0 to {ours.max()}, equal to naive loops as integers")
    for name, found in seconds.items():
        ratios = f"{seconds['dense'] / found:8.1f} x as fast as dense  {found / seconds['floor']:6.2f} x floor"
        print(f"  {name:<6}{1e3 * found:10.1f} ms  {ratios}")
    print(machine())
    if seconds["dense"] < 100 * seconds["ours"]:
        raise SystemExit("less than 100 times as fast as the dense array")


if __name__ == "__main__":
    main()
