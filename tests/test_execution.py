"""One run, however it is started: the same identity, the same numbers, the same folder."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import workbench as wb
from workbench import execution
from workbench.cli import main
from workbench.errors import UserError
from workbench.registry import registry
from workbench.runs import load_run

HOOK = "blocks.1.hook_resid_post"
TINY = {
    "hook_point": HOOK,
    "latents": 64,
    "k": 4,
    "train.rows": 2560,
    "train.batch_rows": 128,
    "evaluate.splice_tokens": 300,
    "evaluate.draws": 50,
    "pages.latents": 4,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return wb.capture(
        "zoo:calendar", data="calendar", hooks=HOOK, rows=3000, out=tmp_path_factory.mktemp("acts") / "acts"
    )


@pytest.fixture(scope="module")
def done(store, tmp_path_factory):
    return wb.run("sae", store=store, seed=3, out=tmp_path_factory.mktemp("runs") / "run", **TINY)


def test_figures_come_back_as_they_were_drawn(done):
    drawn = done.figures["loss-curves"]
    assert drawn.axes[0].lines
    assert (done.folder / "figures" / "loss-curves.svg").read_bytes() == drawn.svg()


def test_the_folder_holds_what_makes_it_again(done, store):
    manifest = load_run(done.folder).manifest
    assert manifest["plugin"] == "sae"
    assert manifest["seed"] == 3
    assert manifest["config"]["k"] == 4
    assert manifest["store"]["fingerprint"] == store.fingerprint()
    assert manifest["subject"] == {"address": "zoo:calendar", "fingerprint": store.manifest["model"]["fingerprint"]}
    assert {"device", "threads", "kernels", "versions", "seconds", "command"} <= set(manifest)
    assert {"manifest.json", "metrics.json", "log.txt", "report.html"} <= {path.name for path in done.folder.iterdir()}


def test_the_command_line_gives_the_same_identity_and_numbers(done, store, tmp_path):
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    command = [
        "run",
        "sae",
        "--store",
        str(store.folder),
        "--seed",
        "3",
        "--out",
        str(tmp_path / "run"),
        "--json",
        *settings,
    ]
    shell = subprocess.run([sys.executable, "-m", "workbench", *command], capture_output=True, text=True, check=True)
    answer = json.loads(shell.stdout)
    assert answer["identity"] == load_run(done.folder).identity
    assert {name: metric["value"] for name, metric in answer["metrics"].items()} == {
        name: metric.value for name, metric in done.metrics.items()
    }


def test_a_configuration_file_gives_the_same_identity(done, store, tmp_path):
    (tmp_path / "run.yaml").write_text(
        json.dumps({"plugin": "sae", "store": str(store.folder), "seed": 3, "set": TINY})  # JSON is YAML
    )
    again = wb.run(config=tmp_path / "run.yaml", out=tmp_path / "run")
    assert load_run(again.folder).identity == load_run(done.folder).identity


def test_from_the_command_line_options_win_over_the_file_that_names_the_plugin(done, store, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"plugin": "sae", "store": str(store.folder), "seed": 7, "set": TINY}))
    assert main(["run", "--config", str(file), "--seed", "3", "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identity"] == load_run(done.folder).identity
    with pytest.raises(UserError, match="is for the plugin 'sae', not for 'sparse-probe'"):
        wb.run("sparse-probe", config=file)


def test_a_dataset_that_nobody_reads_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="leave the data out"):
        wb.run("sae", store=store, data="python-stdlib", out=tmp_path / "run", **TINY)


def test_a_store_holds_addresses_that_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("today is monday. tomorrow is tuesday.")
    (tmp_path / "calendar").mkdir()  # a name of the zoo is no path
    store = wb.capture("zoo:calendar", data="prompts.txt", hooks=HOOK, out="acts")
    assert store.manifest["dataset"]["address"] == str(tmp_path / "prompts.txt")
    assert store.manifest["model"]["address"] == "zoo:calendar"


def test_a_finished_run_is_read_back_and_another_is_refused(done, store):
    before = (done.folder / "metrics.json").stat().st_mtime_ns
    again = wb.run("sae", store=store, seed=3, out=done.folder, **TINY)
    assert (done.folder / "metrics.json").stat().st_mtime_ns == before
    assert again.metrics == done.metrics
    with pytest.raises(UserError, match="exists already and holds another run"):
        wb.run("sae", store=store, seed=4, out=done.folder, **TINY)


def test_another_seed_gives_other_numbers(done, store, tmp_path):
    other = wb.run("sae", store=store, seed=4, out=tmp_path / "run", **TINY)
    assert other.metrics["explained_variance"].value != done.metrics["explained_variance"].value


def test_a_model_with_other_weights_is_refused(store, tmp_path):
    subject = wb.load_subject("zoo:calendar")
    subject.weights("W_E").mul_(1.5)
    with pytest.raises(UserError, match="was captured from zoo:calendar"):
        wb.run("sae", store=store, model=subject, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_labels_decide_the_identity(done, store, tmp_path):
    from workbench.configuration import build
    from workbench.context import Context, Inputs
    from workbench.registry import registry
    from workbench.request import Request
    from workbench.run_manifest import identity_parts

    sae = registry().plugin("sae")
    request = Request(sae, build(sae.Config, TINY), Inputs(store=store))
    context = Context(config=request.config, inputs=request.inputs, device="cpu", seed=0, work=tmp_path)
    assert identity_parts(request, context)["labels"] == store.labels_fingerprint()


def test_a_dictionary_made_on_the_way_has_a_folder_for_each_store(monkeypatch, tmp_path):
    made = []

    def run(_, **given):
        made.append(given["out"])
        return SimpleNamespace(folder=given["out"])

    monkeypatch.setattr(execution, "run", run)
    request = SimpleNamespace(plugin=registry().plugin("circular"), device="cpu", seed=0)
    for text in ("days", "sums", "days"):
        store = SimpleNamespace(fingerprint=lambda text=text: text)
        execution.default_dictionary(request, SimpleNamespace(store=store, model=None), tmp_path)
    assert made[0] == made[2] != made[1]
    assert made[0].name.startswith("sae-for-circular-")
