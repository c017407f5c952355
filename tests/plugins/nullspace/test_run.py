"""The plugin on planted directions: they are erased, what is beside them stays, and what is wrong is said."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store
from workbench.cli import main
from workbench.context import Context, Inputs
from workbench.erasing import check_subject, edit_of, edits_of, load_projection
from workbench.errors import UserError
from workbench.labelled_rows import DocumentRows
from workbench.plugins.nullspace import LiveConfig, Nullspace, NullspaceConfig
from workbench.plugins.nullspace.fresh import Sets, erased_rows, fit_fresh, measured
from workbench.plugins.nullspace.live import drawn_sequences
from workbench.plugins.nullspace.tasks import make_task
from workbench.probes import Projection, bootstrap_weights, largest_angle
from workbench.splice import stored_examples

HOOK, NOISE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
N_DOCUMENTS, N_TOKENS, WIDTH = 80, 40, 16
DIRECTIONS = np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, 4)))[0].T


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """`span` lies along direction 0, `other` along 1, `genre` along 2 and 3; at the second hook point nothing does."""
    folder = tmp_path_factory.mktemp("nullspace") / "acts"
    rng = np.random.default_rng(0)
    builder = ExamplesBuilder()
    for number in range(N_DOCUMENTS):
        special = np.arange(N_TOKENS + 1) == 0
        tokens = np.append(0, rng.integers(1, 30, N_TOKENS))
        builder.sequence(builder.document(f"module{number}.py"), tokens, special=special, window=0)
    examples = builder.build()
    ordinary = ~examples.origins(0, examples.n_rows)["special"]
    n = examples.n_rows
    span, other, genre = rng.random(n) < 0.3, rng.random(n) < 0.5, rng.integers(0, 3, n)
    arrays = {name: rng.normal(size=(n, WIDTH)).astype(np.float32) + 3 for name in (HOOK, NOISE)}
    arrays[HOOK] += (3 * span[:, None] * DIRECTIONS[0] + 3 * other[:, None] * DIRECTIONS[1]).astype(np.float32)
    arrays[HOOK] += (3 * (genre == 1)[:, None] * DIRECTIONS[2] + 3 * (genre == 2)[:, None] * DIRECTIONS[3]).astype("f4")
    specs = {name: ActivationSpec(("d_model",), (WIDTH,), "float32") for name in arrays}
    with StoreWriter(folder, specs, examples, {}) as writer:
        writer.append(arrays)
    store = open_store(folder)
    kinds = {
        "span": ("binary", (), span),
        "other": ("binary", (), other),
        "rare": ("binary", (), np.arange(n) == 7),
        "genre": ("categories", ("prose", "verse", "drama", "never"), genre),
        "depth": ("number", (), np.arange(n)),
    }
    labels = {
        name: (LabelInfo(name, "made", "row", kind, categories), values.astype(float), ordinary)
        for name, (kind, categories, values) in kinds.items()
    }
    store.add_labels("made", labels)
    return store


QUICK = NullspaceConfig(
    hook_point=HOOK,
    label="span",
    others="other",
    nonlinear=False,
    controls=2,
    permutations=2,
    draws=200,
    live=LiveConfig(tokens=0),
)

FAST = replace(QUICK, method="leace", controls=1, permutations=1, draws=50)


def erase(store, work, config=QUICK, seed=0):
    """Run the plugin as the workbench would."""
    return Nullspace().run(Context(config, Inputs(store=store), "cpu", seed, work, logging.getLogger("workbench.test")))


@pytest.fixture(scope="module")
def result(planted, tmp_path_factory):
    config = replace(QUICK, label=("span", "genre=verse"), method=("inlp", "leace", "mean-projection"), draws=100)
    return erase(planted, tmp_path_factory.mktemp("work"), config)


def score(result, label, method, target=None, metric="balanced_accuracy"):
    frame = result.tables["scores"]
    at = (frame["label"] == label) & (frame["method"] == method) & (frame["target"] == (target or label))
    return frame[at & (frame["metric"] == metric) & (frame["probe"] == "logistic")].iloc[0]


def projection(result, label, method):
    (name,) = [name for name in result.weights if name == f"{method}.{label}.{HOOK}"]
    held = result.weights[name]
    return Projection.from_parts({key: value.numpy() for key, value in held.items()}, held.config)


@pytest.mark.parametrize("method", ["inlp", "leace", "mean-projection"])
@pytest.mark.parametrize("label", ["span", "genre=verse"])
def test_a_planted_label_is_erased_and_another_stays(result, label, method):
    before, after = score(result, label, "none"), score(result, label, method)
    assert before["value"] > before["floor"] + 0.3
    if method != "inlp":  # which stops at what 640 select rows cannot tell from chance
        assert after["lo"] <= after["floor"] + 0.005
    assert after["value"] < after["floor"] + 0.15
    control = score(result, label, f"random {method}")
    assert control["lo"] > control["floor"] + 0.2
    kept = score(result, label, method, "other")
    assert kept["value"] > (0.7 if method == "inlp" else 0.9)  # which takes more directions than it must
    found = projection(result, label.replace("=", "-"), method)
    assert found.rank == 1 or method == "inlp"
    if label == "span":
        assert largest_angle(DIRECTIONS[:1].T, found.removed) < 15  # of 2 000 fitting rows


@pytest.mark.slow
def test_several_classes_are_erased_at_once(planted, tmp_path):
    result = erase(planted, tmp_path, replace(QUICK, label="genre"))
    for method in ("inlp", "leace"):
        before, after = score(result, "genre", "none"), score(result, "genre", method)
        assert before["value"] > 0.75
        assert after["value"] < 1 / 3 + 0.1
        assert before["floor"] == pytest.approx(1 / 3)
    found = projection(result, "genre", "leace")
    assert found.rank == 2
    assert largest_angle(DIRECTIONS[2:].T, found.removed) < 15


def test_accuracy_is_held_against_the_majority_and_auc_against_a_half(result):
    after = score(result, "span", "leace", metric="accuracy")
    assert after["lo"] <= after["floor"] <= after["hi"]
    assert after["floor"] == pytest.approx(0.7, abs=0.05)
    assert score(result, "span", "leace", metric="auc")["floor"] == 0.5
    assert score(result, "span", "none", metric="auc")["value"] > 0.9
    assert (
        score(result, "span", "leace", metric="bits")["value"]
        < 0.02
        < score(result, "span", "none", metric="bits")["lo"]
    )


def test_permuted_labels_and_noise_have_nothing_to_erase(result, planted, tmp_path):
    frame = result.tables["scores"]
    null = frame[(frame["method"] == "permuted labels") & (frame["metric"] == "balanced_accuracy")]
    assert len(null) == 2 * QUICK.permutations
    assert (null["value"] - null["floor"]).abs().max() < 0.08
    noise = erase(planted, tmp_path, replace(QUICK, hook_point=NOISE))
    rows = noise.tables["projections"].set_index("method")
    assert rows.loc["inlp", "rank"] == 0
    assert (result.tables["projections"]["rank_permuted"] == 0).all()


def test_the_negative_control_says_how_likely_it_is(result):
    """Counted by hand, and the probability of so many misses summed up, not taken from a library."""
    frame = result.tables["scores"]
    null = frame[(frame["method"] == "permuted labels") & (frame["metric"] == "balanced_accuracy")]
    missed = int(((null["lo"] > null["floor"]) | (null["hi"] < null["floor"])).sum())
    n = len(null)
    control = result.metrics["negative_control"]
    assert control.value == 1 - missed / n
    assert control.lo <= control.value <= control.hi
    want = sum(math.comb(n, k) * 0.05**k * 0.95 ** (n - k) for k in range(missed, n + 1))
    assert result.metrics["negative_control_p"].value == pytest.approx(want)


def test_nothing_is_read_of_the_rounding_that_an_erasure_of_everything_leaves():
    rng = np.random.default_rng(0)
    codes = rng.choice(3, size=900, p=[0.6, 0.2, 0.2])
    X = rng.normal(size=(900, 6)) @ rng.normal(size=(6, 6)) + 5 + codes[:, None]
    left = erased_rows(Projection.orthogonal(np.eye(6), X[:300].mean(axis=0)), X)
    parts = [slice(0, 300), slice(300, 600), slice(600, 900)]
    sets = Sets(tuple(left[at] for at in parts), tuple(codes[at] for at in parts), np.arange(300) % 30, 3)
    for probe in ("lda", "rbf"):
        found = measured(fit_fresh(probe, sets, rng).scores, sets, bootstrap_weights(30, 20, rng))
        assert found["balanced_accuracy"][0].value == pytest.approx(1 / 3)
        assert found["bits"][0].value == pytest.approx(0, abs=1e-9)
    one = erased_rows(Projection.orthogonal(np.eye(6)[:1]), X)
    np.testing.assert_array_equal(one[:, 1:], X[:, 1:])  # the others as they were


def test_tables_figures_and_words(result):
    assert set(result.figures) == {"left", "others", "rounds"}
    assert result.figures["left"].png()[:4] == b"\x89PNG"
    rows = result.tables["projections"]
    assert len(rows) == 6
    assert set(rows[rows["method"] == "inlp"]["stopped"]) == {"indistinguishable"}
    change = rows.pivot_table(index="label", columns="method", values="change")
    assert (change["leace"] < 1.02 * change["mean-projection"]).all()  # least on the fitting rows, these are others
    text = " ".join(result.sections["how-to-read"].data)
    assert "LEACE of span at" in text
    assert "not applied live: live.tokens=0" in text


def test_the_same_seed_is_the_same_numbers_and_another_seed_another_split(planted, tmp_path):
    first, again, other = (erase(planted, tmp_path / str(n), FAST, seed) for n, seed in enumerate((0, 0, 1)))
    assert first.tables["scores"].equals(again.tables["scores"])
    assert first.tables["projections"].equals(again.tables["projections"])
    assert not first.tables["scores"]["value"].equals(other.tables["scores"]["value"])


def test_an_interrupted_run_goes_on(planted, tmp_path, monkeypatch):
    import workbench.plugins.nullspace.run as module

    config = replace(FAST, hook_point=None)
    real, calls = module.erase_label, []

    def stop_at_second(context, hook_point, *rest):
        calls.append(hook_point)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(context, hook_point, *rest)

    monkeypatch.setattr(module, "erase_label", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        erase(planted, tmp_path / "a", config)
    finished = erase(planted, tmp_path / "a", config)
    assert calls == [HOOK, NOISE, NOISE]
    assert finished.tables["scores"].equals(erase(planted, tmp_path / "b", config).tables["scores"])


def test_rates_of_a_main_task(planted, tmp_path):
    """The main task does not depend on the label here: gaps are small, and the rates are a naive count's."""
    config = replace(FAST, main="genre", by_class=True, method=("inlp", "leace"))
    result = erase(planted, tmp_path, config)
    bias = result.tables["bias"]
    whole = bias[(bias["class"] == "all") & (bias["method"] == "leace")].iloc[0]
    assert whole["lo"] <= whole["rms"] <= whole["hi"] < 0.2
    assert whole["accuracy"] > 0.75
    of_class = bias[(bias["method"] == "leace") & (bias["class"] != "all")]
    assert len(of_class) == 3
    assert whole["rms"] == pytest.approx(np.sqrt((of_class["gap"] ** 2).mean()))
    assert (of_class["n_with"] + of_class["n_without"]).sum() == whole["n_with"] + whole["n_without"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hook_point": "blocks.0.hook_resid_pots"}, "nearest: blocks.0.hook_resid_post"),
        ({"label": "spam"}, "nearest: span"),
        ({"label": "depth"}, "of kind 'number'"),
        ({"label": "rare"}, "has not two classes with 10 rows in 2 documents"),
        ({"label": "genre=opera"}, "no category 'opera'; nearest: verse"),
        ({"others": "genre"}, "others=genre: must be a yes/no label"),
        ({"others": "rare"}, "others=rare: 0 of the rows of 'span'"),
        ({"main": "plot"}, "no label 'plot'"),
        ({"main": "other", "label": "genre"}, "between two classes, but 'genre' has more"),
        ({"main": "rare", "by_class": True}, "by_class: no class|fewer than two classes"),
    ],
)
def test_bad_input_is_explained(planted, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        erase(planted, tmp_path, replace(QUICK, **changes))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--set label=spam", "nearest: span"),
        ("--set method=sal", "method=sal: must be"),
        ("--set by_class=true", "by_class: needs the label of a main task"),
        ("--set C=0", "C=0: must be"),
        ("--set max_rounds=0", "max_rounds=0: must be"),
    ],
)
def test_bad_input_on_the_command_line_is_exit_code_2(planted, tmp_path, capsys, line, says):
    out = tmp_path / "run"
    assert main(["run", "nullspace", "--store", str(planted.folder), *line.split(), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert says in " ".join(told.err.split())
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def calendar(tmp_path_factory):
    """A run on a trained subject, with the projection applied live."""
    folder = tmp_path_factory.mktemp("calendar")
    store = wb.capture("zoo:calendar", data="calendar", hooks=HOOK, rows=3000, out=folder / "acts")
    label = f"direction={store.labels['direction'].categories[0]}"
    result = wb.run(
        "nullspace", store=store, label=label, method="leace", nonlinear=False, controls=1, permutations=1, draws=100,
        out=folder / "run", **{"live.tokens": 600, "live.examples": 3},
    )  # fmt: skip
    return store, label, result, folder / "run"


def test_a_saved_projection_is_an_edit_of_the_live_model(calendar):
    """It projects ordinary positions, as it does plain rows, and nothing else; on other weights it is refused."""
    store, label, result, run = calendar
    subject = wb.load_subject("zoo:calendar")
    erase = wb.load_projection(run)
    assert erase.fingerprint() == result.tables["projections"]["fingerprint"][0]
    assert (erase.about["label"], erase.about["method"]) == (label, "leace")
    check_subject(erase, subject)
    edits = edits_of(erase)
    batch = subject.batch(stored_examples(store, [0, 1]))
    plain = subject.capture(batch, [HOOK])[HOOK]
    edited = subject.run(batch, capture=[HOOK], edits=edits).captured[HOOK]
    ordinary = batch.mask & ~batch.special
    want = torch.from_numpy(erase(plain[ordinary].numpy()))
    torch.testing.assert_close(edited[ordinary], want, rtol=1e-4, atol=1e-5)
    assert torch.equal(edited[batch.special], plain[batch.special])
    kept = subject.run(batch, capture=[HOOK], edits={HOOK: edit_of(erase.complement)}).captured[HOOK]
    torch.testing.assert_close(
        (edited + kept)[ordinary], plain[ordinary] + torch.tensor(erase.mean).float(), rtol=1e-3, atol=1e-4
    )

    live = result.tables["live"]
    whole = live[(live["where"] == "everywhere") & (live["method"] == "leace")].iloc[0]
    assert whole["n"] + 200 >= 600
    assert whole["lo"] <= whole["rise"] <= whole["hi"]
    assert whole["divergence"] > 0
    with pytest.raises(UserError, match="fitted on zoo:calendar"):
        check_subject(erase.described(subject_fingerprint="0" * 32), subject)
    with pytest.raises(UserError, match="does not say which hook point"):
        edits_of(Projection.orthogonal(np.eye(3)))
    with pytest.raises(UserError, match="takes 3 units at each position"):
        subject.run(batch, edits={HOOK: edit_of(Projection.orthogonal(np.eye(3)))})


def test_live_losses_are_those_of_a_loop_over_single_predictions(calendar, tmp_path):
    store, label, result, run = calendar
    subject, erase = wb.load_subject("zoo:calendar"), wb.load_projection(run)
    config = NullspaceConfig(label=label, live=LiveConfig(tokens=600))
    context = Context(config, Inputs(store=store), "cpu", 0, tmp_path, logging.getLogger("workbench.test"))
    task = make_task(DocumentRows(store, 0), label, config.max_rows, context.log, None)
    origins = store.origins
    losses = {("none", "at yes"): [], ("leace", "at yes"): [], ("none", "everywhere"): [], ("leace", "everywhere"): []}
    for sequence in drawn_sequences(context, task)[0]:
        batch = subject.batch(stored_examples(store, [sequence]))
        ways = {"none": subject.run(batch).value, "leace": subject.intervene(batch, edits_of(erase))}
        for row in np.flatnonzero((origins["sequence"] == sequence) & ~origins["special"]):
            at = int(origins["position"][row])
            if at + 1 < batch.inputs.shape[1]:
                for way, logits in ways.items():
                    loss = -float(logits[0, at].log_softmax(-1)[batch.inputs[0, at + 1]])
                    losses[way, "everywhere"].append(loss)
                    if task.label.codes[row] == 1:
                        losses[way, "at yes"].append(loss)
    live = result.tables["live"].set_index(["method", "where"])
    for key, values in losses.items():
        assert live.loc[key, "n"] == len(values) > 20
        assert live.loc[key, "loss"] == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("{run}#nope", "made none of that name; nearest"),
        ("{acts}", "is no run folder"),
        ("{run}/absent", "no such file"),
        ("{run}/manifest.json", "is damaged"),
    ],
)
def test_a_wrong_address_of_a_projection_is_explained(calendar, address, says):
    store, _, _, run = calendar
    with pytest.raises(UserError, match=says):
        load_projection(address.format(run=run, acts=store.folder))


def test_a_damaged_projection_is_noticed(calendar, tmp_path):
    import shutil

    shutil.copytree(calendar[3], tmp_path / "run")
    (path,) = (tmp_path / "run" / "weights").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        load_projection(tmp_path / "run")
    index = json.loads((tmp_path / "run" / "result.json").read_text())
    index["weights"] = {}
    (tmp_path / "run" / "result.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="this run made none"):
        load_projection(tmp_path / "run")
