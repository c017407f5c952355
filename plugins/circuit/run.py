"""The run: score by every method, hold the scores against what is known, and measure the circuits they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit import CircuitConfig, Method
from workbench.plugins.circuit.against_truth import truth_row, units_of
from workbench.plugins.circuit.circuits import prune
from workbench.plugins.circuit.comparing import compare_tasks, second_task
from workbench.plugins.circuit.controls import random_copy
from workbench.plugins.circuit.curves import Ends, members, of_size, ranked_edges
from workbench.plugins.circuit.evaluating import Evaluator, chosen_size, evaluate_method, minimality_rows
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.known import Known, find_known
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.present import present
from workbench.plugins.circuit.scoring import GROUPS, WITH_EDGES, Scores, kept, score
from workbench.plugins.circuit.tasks.induction import Induction
from workbench.plugins.circuit.tasks.planted import Planted, planted_name
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.subjects.protocol import Subject
from workbench.subjects.ungrouping import ungrouped

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result

COPY_PAIRS, COPY_PROMPTS = 8, 100  # on which copies with random weights are scored
COPY_STEPS = 5
ABLATIONS = ("resample", "mean", "zero")


@dataclass
class Found:
    """What was measured.

    Attributes
    ----------
    subject, graph, task : Subject, Graph, Task
        Of the run.
    pairs : Pairs
        All pairs.
    about : str
        What corrupted and negative prompts are.
    ends : Ends
        The whole model and nothing, on the examples to evaluate on.
    scores : dict of str to Scores
        By method.
    known : Known or None
        A known circuit.
    circuit : bool array [sources, destinations] or None
        The circuit shown, by the first method that scores edges.
    tables : dict of str to list of dict
        Rows.
    notes : list of str
        For the report.
    """

    subject: Subject
    graph: Graph
    task: Task
    pairs: Pairs
    about: str
    ends: Ends
    scores: dict[Method, Scores]
    known: Known | None
    circuit: np.ndarray | None = None
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shown_by(self) -> Method | None:
        """The method whose edges are shown."""
        return next((method for method in WITH_EDGES if method in self.scores), None)


def run(context: Context) -> Result:
    """Find the circuit of a task and put the result together.

    Raises
    ------
    UserError
        If subject, task and options do not fit each other.
    """
    config: CircuitConfig = context.config
    subject = told_apart(context)
    graph = Graph.of(subject)
    task = task_of(context, subject)
    known = find_known(subject, graph, task.name, config.truth)
    methods: tuple[Method, ...] = (
        tuple(dict.fromkeys(config.method)) if isinstance(config.method, tuple) else (config.method,)
    )
    second = second_task(context, subject, methods)
    prompts, for_codes = prompts_of(context, subject, task, "discrete-sae" in methods)
    scoring, evaluating = prompts.pairs.halves(context.rng("halves"))
    evaluator = Evaluator(context, subject, graph, evaluating)
    steps = sum(config.sae.seeds if method == "discrete-sae" else min(len(scoring), GROUPS) for method in methods)
    steps += sum(3 if method in WITH_EDGES else 1 for method in methods) + (config.copies if known else 0) + 3
    with context.progress(steps, "steps", "circuit") as ticker:
        ends = evaluator.ends(context.work, "ends")
        ticker.advance()
        scores: dict[Method, Scores] = {}
        for method in methods:
            ticker.update(method=method)
            given = for_codes if method == "discrete-sae" else prompts
            folder = context.work / method
            scores[method] = score(context, subject, graph, method, scoring, given, folder, ticker.advance)
        found = Found(subject, graph, task, prompts.pairs, prompts.about, ends, scores, known)
        if known is not None:
            found.tables["truth"] = truth_rows(context, found)
            ticker.update(method="random weights")
            found.tables["copies"] = copy_rows(context, found, scoring, for_codes, ticker.advance)
        ticker.update(method="circuits")
        measure_circuits(evaluator, found, scoring, ticker.advance)
        if second is not None:
            compare_tasks(evaluator, found, *second)
    return present(found)


def told_apart(context: Context) -> Subject:
    """Return the subject; where heads share keys and values, with those repeated, so that each head has its own."""
    subject = context.subject()
    try:
        return ungrouped(subject)
    except UserError as error:
        context.log.info("%s: heads share keys and values, and a shared one is one destination of edges", error)
        return subject


def task_of(context: Context, subject: Subject) -> Task:
    """Return the task that was asked for, or a planted subject's own, or induction, which any subject can be given."""
    if context.inputs.data is None:
        task: Task = Planted() if planted_name(subject) is not None else Induction()
        context.log.info("task: %s (another one: --data)", task.address)
        return task
    data = context.data()
    if not isinstance(data, Task):
        raise UserError(
            f"circuit takes pairs of clean and corrupted prompts, and {data.address} has none: give --data ioi, "
            "greater-than, docstring, induction, or pairs:FILE.jsonl"
        )
    return data


def prompts_of(context: Context, subject: Subject, task: Task, with_codes: bool) -> tuple[Prompts, Prompts]:
    """Return the prompts for patching and attribution, and those for the discrete SAE."""
    config: CircuitConfig = context.config
    n = max(config.examples, config.sae.examples if with_codes else 0)
    made = task.make(subject, n, context.rng("prompts"))
    if config.metric is not None:
        made = replace(made, pairs=replace(made.pairs, metric=config.metric))
    if len(made.pairs) < n:
        context.log.info("%s has %d examples: all are used", task.address, len(made.pairs))
    return first(made, config.examples), first(made, config.sae.examples)


def first(prompts: Prompts, n: int) -> Prompts:
    """Return the first n pairs and negatives."""
    pairs = prompts.pairs.take(np.arange(min(n, len(prompts.pairs))))
    negatives = Tokens(prompts.negatives.ids[:n], prompts.negatives.lengths[:n])
    return replace(prompts, pairs=pairs, negatives=negatives)


def truth_rows(context: Context, found: Found) -> list[dict[str, Any]]:
    """Hold every method's scores against the known circuit."""
    config: CircuitConfig = context.config
    assert found.known is not None
    return [
        truth_row(units, method, config.draws, config.permutations, context.rng(f"truth {method} {units.name}"))
        for method, scores in found.scores.items()
        for units in units_of(scores, found.graph, found.known)
    ]


def copy_rows(context: Context, found: Found, scoring: Pairs, for_codes: Prompts, advance: Any) -> list[dict[str, Any]]:
    """Score copies of the subject with random weights, and hold them against a circuit that they do not have."""
    config: CircuitConfig = context.config
    assert found.known is not None
    small = replace(config, steps=min(config.steps, COPY_STEPS), sae=replace(config.sae, seeds=1))
    quick = replace(context, config=small)
    pairs = scoring.take(np.arange(min(COPY_PAIRS, len(scoring))))
    prompts = first(for_codes, COPY_PROMPTS)
    rows = []
    for number in range(config.copies):
        try:
            copied = random_copy(found.subject, context.rng(f"random weights {number}"))
        except UserError as error:
            found.notes.append(f"No control of random weights: {error}.")
            break
        for method in found.scores:
            folder = context.work / f"copy-{number}" / method
            scores = score(quick, copied, found.graph, method, pairs, prompts, folder, lambda: None)
            for units in units_of(scores, found.graph, found.known):
                row = truth_row(units, method, 0, 10, context.rng("unused"))
                rows.append({"copy": number, "method": method, "units": units.name, "auc": row["auc"]})
        advance()
    return rows


def measure_circuits(evaluator: Evaluator, found: Found, scoring: Pairs, advance: Any) -> None:
    """Measure the circuits that each method names, and the one that is shown."""
    work, graph, ends = evaluator.context.work, found.graph, found.ends
    try:
        ends.check()
    except UserError as error:
        found.notes.append(f"No faithfulness: {error}.")
        evaluator.context.log.warning(found.notes[-1])
        if found.shown_by is not None:
            found.circuit = best_edges(found, found.known.edges.sum() if found.known else 20)
        return
    for_control = evaluator.context.rng("random scores")
    control = Scores(
        "random",  # type: ignore[arg-type]
        for_control.standard_normal((1, len(graph.sources))),
        for_control.standard_normal((1, *graph.real.shape)),
        np.ones(1),
    )
    for scores in (*found.scores.values(), control):
        rows, areas = evaluate_method(evaluator, ends, scores, work / "curves", advance)
        found.tables.setdefault("curve", []).extend(rows)
        found.tables.setdefault("areas", []).extend(areas)
    if found.shown_by is None:
        return
    edges = found.scores[found.shown_by].edge_mean
    size = chosen_size(evaluator, edges, scoring, work)
    found.circuit = best_edges(found, size)
    nodes = np.flatnonzero(members(graph, found.circuit))
    strength = np.abs(np.nan_to_num(found.scores[found.shown_by].node_mean))
    by_strength = nodes[np.argsort(-strength[nodes], kind="stable")].tolist()
    found.tables["minimality"] = minimality_rows(evaluator, ends, found.circuit, by_strength, work)
    found.tables["circuits"] = circuit_rows(evaluator, found)


def best_edges(found: Found, n: int) -> np.ndarray:
    """Return the n strongest edges of the method that is shown, less those of nodes that nothing enters or leaves."""
    assert found.shown_by is not None
    ranked = ranked_edges(found.graph, found.scores[found.shown_by].edge_mean, "magnitude")
    chosen = of_size(found.graph, ranked, int(n))
    connected = prune(found.graph, chosen)
    return connected if connected.any() else chosen


def circuit_rows(evaluator: Evaluator, found: Found) -> list[dict[str, Any]]:
    """Measure the circuit shown, the known one, and random ones of equal size, under each ablation."""
    graph, work = found.graph, evaluator.context.work
    assert found.circuit is not None
    rng = evaluator.context.rng("random circuit")
    size = int(found.circuit.sum())
    random = of_size(graph, rng.permutation(np.flatnonzero(graph.real)), size)
    named = {"shown": found.circuit, "random edges": random}
    if found.known is not None:
        named["known"] = found.known.edges | found.known.structural
    circuits: Sequence[np.ndarray] = [each for one in named.values() for each in (one, graph.real & ~one)]
    rows = []
    for ablation in ABLATIONS:
        ends = evaluator.ends(work, f"ends-{ablation}", None, ablation)
        measured = kept(
            work / f"circuits-{ablation}.npz",
            lambda ablation=ablation: {"scores": evaluator.run(circuits, None, ablation)},  # type: ignore[misc]
        )["scores"]
        try:
            ends.check()
        except UserError as error:
            found.notes.append(f"Ablation {ablation}: {error}.")
            continue
        for at, (name, circuit) in enumerate(named.items()):
            inside, outside = ends.faithfulness(measured[2 * at]), ends.faithfulness(measured[2 * at + 1])
            rows.append(
                {
                    "circuit": name, "ablation": ablation, "edges": int(circuit.sum()),
                    "faithfulness": inside.value, "lo": inside.lo, "hi": inside.hi,
                    "complement": outside.value, "complement_lo": outside.lo, "complement_hi": outside.hi,
                }
            )  # fmt: skip
    return rows
