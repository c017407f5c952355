"""A second task on the same subject: which nodes both use, and what each loses without the other's circuit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.datasets.loading import load_dataset
from workbench.errors import UserError
from workbench.plugins.circuit import CircuitConfig, Method
from workbench.plugins.circuit.controls import layers
from workbench.plugins.circuit.curves import of_size, ranked_edges
from workbench.plugins.circuit.evaluating import Evaluator
from workbench.plugins.circuit.overlap import shared
from workbench.plugins.circuit.scoring import CAUSAL, WITH_EDGES, kept, score
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.subjects.protocol import Subject

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.circuit.run import Found


def second_task(context: Context, subject: Subject, methods: Sequence[Method]) -> tuple[Task, Prompts, Method] | None:
    """Return the second task, its prompts, and the method by which tasks are compared; None if none was asked for.

    Raises
    ------
    UserError
        If the second task is none or does not fit the subject, or no causal method was asked for.
    """
    config: CircuitConfig = context.config
    if config.other is None:
        return None
    task = load_dataset(config.other)
    if not isinstance(task, Task):
        raise UserError(f"other={config.other}: must be a task, such as ioi, greater-than, or pairs:FILE.jsonl")
    method = next((each for each in (*WITH_EDGES, *CAUSAL) if each in methods), None)
    if method is None:
        raise UserError(f"other={config.other}: tasks are compared by a causal method: add one of {', '.join(CAUSAL)}")
    return task, task.make(subject, config.examples, context.rng(f"prompts {task.address}")), method


def compare_tasks(evaluator: Evaluator, found: Found, other: Task, prompts: Prompts, method: Method) -> None:
    """Score the second task, and add the tables ``overlap`` and ``crossed``."""
    context, graph = evaluator.context, found.graph
    config: CircuitConfig = context.config
    scoring, evaluating = prompts.pairs.halves(context.rng("halves of the other"))
    theirs = score(context, found.subject, graph, method, scoring, prompts, context.work / "other", lambda: None)
    mine = found.scores[method]
    ranked = ~np.isnan(mine.node_mean)
    first, second = (np.abs(each.node_mean[ranked]) for each in (mine, theirs))
    n = int(found.known.nodes.sum()) if found.known is not None else max(1, round(0.1 * len(first)))
    compared = shared(first, second, layers(graph)[ranked], n, config.permutations, context.rng("overlap"))
    found.tables["overlap"] = [{"method": method, "other": other.address, "n": n, **compared._asdict()}]
    if mine.edges is None or found.circuit is None:
        return
    size = int(found.circuit.sum())
    own = found.circuit, of_size(graph, ranked_edges(graph, theirs.edge_mean, "magnitude"), size)
    drawn = of_size(graph, context.rng("random circuit").permutation(np.flatnonzero(graph.real)), size)
    names = found.task.address, other.address
    if names[0] == names[1]:
        names = names[0], f"{names[1]} (second)"
    removed = {names[0]: own[0], names[1]: own[1], "random edges": drawn}
    left_out = [graph.real & ~each for each in removed.values()]
    rows: list[dict[str, Any]] = []
    for name, pairs in ((names[0], evaluator.pairs), (names[1], evaluating)):
        ends = evaluator.ends(context.work, f"ends-of-{len(rows)}", pairs)
        try:
            ends.check()
        except UserError as error:
            found.notes.append(f"{name}: {error}.")
            continue
        path = context.work / f"crossed-{len(rows)}.npz"
        measured = kept(path, lambda pairs=pairs: {"scores": evaluator.run(left_out, pairs)})["scores"]  # type: ignore[misc]
        for at, without in enumerate(removed):
            left = ends.faithfulness(measured[at])
            rows.append({"task": name, "without": without, "left": left.value, "lo": left.lo, "hi": left.hi})
    found.tables["crossed"] = rows
