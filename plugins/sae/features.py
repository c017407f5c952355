"""How well single latents stand for labels: sparse probing, feature splitting and absorption, beside their controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from workbench.context import Context
from workbench.dictionary import Dictionary
from workbench.encoding import latents_of_rows
from workbench.plugins.sae.absorption import Absorbed, absorbed, main_latents, numbers_of_main
from workbench.plugins.sae.metrics import Resamples, choose_sequences
from workbench.plugins.sae.outcome import add
from workbench.plugins.sae.questions import Question, choose_questions
from workbench.plugins.sae.readouts import Dense, Sparse, dense_probe, sparse_probes
from workbench.plugins.sae.split import Split
from workbench.probes.statistics import (
    Interval,
    bootstrap_metrics,
    group_intervals,
    percentile_interval,
)
from workbench.results import Result

KS = (1, 5)
SHOWN = {
    "auc_1": "mean AUC of probes of one latent",
    "auc_5": "mean AUC of probes of up to five latents",
    "split": "mean number of latents that a label's feature is split into",
    "absorption": "mean share of a label's rows on which another latent has fully absorbed the feature",
    "absorption_fraction": "mean share of the feature's projection that other latents carry in the main ones' place",
}
NAMES = {
    "auc_1": "sparse_probing_1",
    "auc_5": "sparse_probing_5",
    "split": "splitting",
    "absorption": "absorption",
    "absorption_fraction": "absorption_fraction",
}


WHOSE = {
    "dictionary": "",
    "random": "; random dictionary, the control",
    "permuted": "; labels permuted in fitting",
}


@dataclass(frozen=True)
class Sides:
    """Rows to fit on and rows to score on, as the dictionary reads them.

    Attributes
    ----------
    fit, test : int64 array [rows]
        Rows of the store, ascending; of training and of held-out documents.
    x_fit, x_test : float32 array [rows, width]
        What is read.
    y_test : float32 array [rows, width]
        What is reconstructed, of the rows to score on.
    groups : int64 array [test rows]
        Which document, numbered from 0.
    """

    fit: NDArray[np.int64]
    test: NDArray[np.int64]
    x_fit: NDArray[np.float32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.float32]
    groups: NDArray[np.int64]

    @property
    def n_documents(self) -> int:
        """Documents that are scored on."""
        return int(self.groups.max()) + 1


@dataclass(frozen=True)
class Found:
    """One question on one dictionary.

    Attributes
    ----------
    question : Question
        What was asked.
    sparse : Sparse
        Probes of latents.
    main : list of int
        Latents that the feature is split into.
    absorbed : Absorbed, optional
        Where others took it over; None for permuted labels.
    """

    question: Question
    sparse: Sparse
    main: list[int]
    absorbed: Absorbed | None


def add_features(context: Context, result: Result, split: Split, ways: dict[str, Dictionary]) -> None:
    """Measure single latents against labels, and add a table and metrics, if the store has labels that serve.

    Parameters
    ----------
    context : Context
        Of a run of `sae`.
    result : Result
        Added to.
    split : Split
        Probes are fitted on training documents and scored on held-out ones.
    ways : dict of str to Dictionary
        ``dictionary``, and ``random``, the control.
    """
    config = context.config.evaluate
    if not config.labels or not context.store.labels:
        return
    sides = read_sides(context, split, ways["dictionary"])
    questions = choose_questions(context.store, sides.fit, sides.test, config.labels)
    if not questions:
        context.log.warning("no label has enough rows of both answers to be probed; evaluate.probe_rows may be raised")
        return
    context.log.info("probing %d labels: %s", len(questions), ", ".join(question.name for question in questions))
    found: dict[str, list[Found]] = {name: [] for name in (*ways, "permuted")}
    dense: list[Dense] = []
    codes = {name: sides_codes(context, sides, dictionary) for name, dictionary in ways.items()}
    with context.progress(len(questions), "labels", "probing") as ticker:
        for question in questions:
            dense.append(dense_probe(question, sides.x_fit, sides.x_test))
            for name, dictionary in ways.items():
                found[name].append(look(question, dense[-1], codes[name], sides, dictionary))
            turned = context.rng(f"permuted {question.name}").permutation(question.y_fit)
            permuted = replace(question, y_fit=turned)
            sparse = sparse_probes(permuted, *codes["dictionary"], most=max(KS))
            found["permuted"].append(Found(question, sparse, [], None))
            ticker.advance()
    resamples = Resamples.draw(sides.n_documents, config.draws, context.rng("probed documents"))
    add_metrics(result, found, dense, sides, resamples)


def read_sides(context: Context, split: Split, dictionary: Dictionary) -> Sides:
    """Draw whole sequences of training and of held-out documents, and read their rows."""
    store, n = context.store, context.config.evaluate.probe_rows
    fit, test = (
        np.flatnonzero(mask & np.isin(store.origins["sequence"], choose_sequences(store, mask, n, context.rng(name))))
        for name, mask in (("probe", split.train), ("probed", split.held_out))
    )
    names = dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out))

    def read(rows: NDArray[np.int64]) -> dict[str, Any]:
        return {name: store.read_tensor(name, rows) for name in names}

    on_fit, on_test = read(fit), read(test)
    return Sides(
        fit,
        test,
        dictionary.rows_in(on_fit).float().numpy(),
        dictionary.rows_in(on_test).float().numpy(),
        dictionary.rows_out(on_test).float().numpy(),
        np.unique(store.origins["document"][test], return_inverse=True)[1].astype(np.int64),
    )


def sides_codes(context: Context, sides: Sides, dictionary: Dictionary) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Return a dictionary's activations on the rows of both sides."""
    fit, test = (
        latents_of_rows(context.store, dictionary, rows, context.torch_device) for rows in (sides.fit, sides.test)
    )
    return fit, test


def look(
    question: Question,
    dense: Dense,
    codes: tuple[sp.csr_matrix, sp.csr_matrix],
    sides: Sides,
    dictionary: Dictionary,
) -> Found:
    """Probe one question, and find out where its feature went."""
    sparse = sparse_probes(question, *codes)
    main = main_latents(sparse.latents, sparse.f1)
    W_dec, b_dec = ((part.float().cpu() / dictionary.scale).numpy() for part in (dictionary.W_dec, dictionary.b_dec))
    taken = None
    if dictionary.hook_in == dictionary.hook_out and dictionary.normalisation == "none":
        taken = absorbed(
            codes[1][question.test], sides.y_test[question.test], question.y_test, dense.score, dense.direction, main,
            W_dec, b_dec,
        )  # fmt: skip
    return Found(question, sparse, main, taken)


# --- numbers ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Drawn:
    """A number of one question, and what it is in each resample of documents."""

    value: float
    draws: NDArray[np.float64]


def measured(one: Found, sides: Sides, resamples: Resamples) -> dict[str, Drawn]:
    """Return a question's numbers by the names of `SHOWN`."""
    question, numbers = one.question, {}
    groups = sides.groups[question.test]
    for k in KS:
        score = one.sparse.score(k)
        score = np.zeros(len(question.test)) if score is None else score
        numbers[f"auc_{k}"] = Drawn(*auc(question.y_test, score, groups, resamples))
    if one.absorbed is not None:
        drawn = numbers_of_main(one.sparse.scores, question.y_test, groups, resamples.weights)
        numbers["split"] = Drawn(len(one.main), drawn)
        of = groups[one.absorbed.rows]
        n = np.bincount(of, minlength=sides.n_documents).astype(np.float64)
        for name, share in (("absorption", one.absorbed.full), ("absorption_fraction", one.absorbed.fraction)):
            total = np.bincount(of, weights=share.astype(np.float64), minlength=sides.n_documents)
            with np.errstate(invalid="ignore", divide="ignore"):
                numbers[name] = Drawn(
                    float(np.divide(total.sum(), n.sum())), (resamples.weights @ total) / (resamples.weights @ n)
                )
    return numbers


def auc(
    y: NDArray[np.bool_], score: NDArray[np.float64], groups: NDArray[np.int64], resamples: Resamples
) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC, and that of each resample of documents."""
    value = group_intervals(y, score, groups, resamples.weights[:1])["auc"].value
    return value, bootstrap_metrics(y, score, groups, resamples.weights)["auc"]


def mean_over(numbers: list[dict[str, Drawn]], name: str) -> Interval:
    """Return the mean over questions of a number, with its interval over documents."""
    values = np.array([each[name].value for each in numbers if name in each])
    draws = np.stack([each[name].draws for each in numbers if name in each])
    if not np.isfinite(values).any():
        return Interval(float("nan"), float("nan"), float("nan"))
    means = np.nanmean(np.where(np.isfinite(values)[:, None], draws, np.nan), axis=0)
    return Interval(float(np.nanmean(values)), *percentile_interval(means))


def add_metrics(
    result: Result, found: dict[str, list[Found]], dense: list[Dense], sides: Sides, resamples: Resamples
) -> None:
    """Add the means over labels with intervals over documents, and a table with a row per label."""
    numbers = {name: [measured(one, sides, resamples) for one in each] for name, each in found.items()}
    n = len(dense)
    for name in SHOWN:
        for way, suffix in (("dictionary", ""), ("random", "_random"), ("permuted", "_permuted")):
            if name not in numbers[way][0]:
                continue
            description = f"{SHOWN[name]}, {n} labels{WHOSE[way]}"
            unit = "latents" if name == "split" else ""
            add(result, NAMES[name] + suffix, mean_over(numbers[way], name), description, unit)
    rows = []
    for number, (one, probe) in enumerate(zip(found["dictionary"], dense, strict=True)):
        question, own = one.question, numbers["dictionary"][number]
        rows.append(
            {
                "label": question.name,
                "prevalence": question.y_test.mean(),
                "auc, 1 latent": own["auc_1"].value,
                "auc, 5 latents": own["auc_5"].value,
                "auc, activation": auc(question.y_test, probe.score, sides.groups[question.test], resamples)[0],
                "auc, random": numbers["random"][number]["auc_1"].value,
                "auc, permuted": numbers["permuted"][number]["auc_1"].value,
                **({} if "split" not in own else {
                    "latents": ", ".join(map(str, one.main)),
                    "absorption": own["absorption"].value,
                    "absorption_random": numbers["random"][number].get("absorption", Drawn(np.nan, np.empty(0))).value,
                    "absorption_fraction": own["absorption_fraction"].value,
                }),
            }
        )  # fmt: skip
    result.add_table(
        "labels",
        pd.DataFrame(rows),
        description="How well latents tell each label on held-out documents: probes of one and of up to five latents, "
        "beside a probe of the whole activation, the random dictionary's best latent, and labels permuted in fitting. "
        "`latents`: those that the label's feature is split into; `absorption`: share of its rows on which all of them "
        "are silent and another latent carries the direction of the dense probe.",
    )
