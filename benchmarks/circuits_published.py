"""The published table of the discrete SAE (O'Neill & Bui, arXiv:2405.12522), and ours by the same protocol.

250 positive and 250 negative prompts, ten trials of one autoencoder each, trained on ten prompts, raw outputs averaged
over positions; area under the ROC curve over all heads (ties count one half) and its standard deviation over trials.
"edge" is the paper's word for heads scored by the best quarter of pairs. Prompts are made by the tasks of this package,
in the papers' forms; weights are the checkpoint's own, where the paper's were processed by TransformerLens. The last
columns divide the outputs by their root mean square, as `workbench run circuit` does.

    python benchmarks/circuits_published.py
    python benchmarks/circuits_published.py --labels oneill-bui --trials 3
    python benchmarks/circuits_published.py --tasks ioi --gpt2 hf:checkpoints/gpt2       any model of that shape
"""

from __future__ import annotations

import argparse
import functools

import numpy as np
from measuring import machine

import workbench as wb
from workbench.errors import UserError
from workbench.plugins.circuit.known import published
from workbench.plugins.circuit.paper import outputs_of, run_trials
from workbench.plugins.circuit.tasks.task import Prompts
from workbench.subjects.protocol import Subject

MODELS = {"ioi": "gpt2", "greater-than": "gpt2", "docstring": "attn_only"}


def told(values: np.ndarray) -> str:
    """Write mean and standard deviation."""
    return f"{values.mean():.3f} ({values.std(ddof=1) if len(values) > 1 else float('nan'):.3f})"


@functools.cache
def subject_at(address: str) -> Subject:
    """Load a model, once for all tasks that ask for it."""
    return wb.load_subject(address)


def made_for(name: str, address: str, n: int, seed: int) -> tuple[Subject, Prompts]:
    """Return the model of a task, and its prompts for it."""
    subject = subject_at(address)
    return subject, wb.load_dataset(name).make(subject, n, np.random.default_rng(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", default="tl:gpt2", help="address of GPT-2 small")
    parser.add_argument(
        "--attn-only", default="tl:attn-only-4l", help="address of the attention-only model of 4 layers"
    )
    parser.add_argument("--tasks", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--labels", default="acdc", choices=["acdc", "oneill-bui"])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--examples", type=int, default=250, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    records = {record["task"]: record for record in published() if record["labels"] == args.labels}
    try:  # of all tasks before the first is measured: a model or tokenizer that does not fit is known at once
        made = {name: made_for(name, getattr(args, MODELS[name]), args.examples, args.seed) for name in args.tasks}
    except UserError as error:
        parser.error(str(error))
    print(f"{'task':<14}{'':<7}{'published':>15}{'ours, raw':>15}{'ours, scaled':>15}   silent raw / scaled")
    for name in args.tasks:
        record = records[name]
        subject, prompts = made[name]
        outputs = outputs_of(subject, prompts)
        raw, scaled = (
            run_trials(subject, record, prompts, trials=args.trials, scaled=each, seed=args.seed, outputs=outputs)
            for each in (False, True)
        )
        for row, key in (("node", "node"), ("“edge”", "node_via_pairs")):
            mean, sd = record["published"][key]
            ours = "".join(f"{told(getattr(each, key)):>15}" for each in (raw, scaled))
            silent = f"{raw.silent.mean():.2f} / {scaled.silent.mean():.2f}"
            print(f"{name:<14}{row:<7}{f'{mean:.3f} ({sd:.3f})':>15}{ours}   {silent}", flush=True)
    print(f"labels {args.labels}, {args.trials} trials, {args.examples} + {args.examples} prompts; {machine()}")


if __name__ == "__main__":
    main()
