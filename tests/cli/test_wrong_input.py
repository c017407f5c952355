"""Wrong input is a table: a message that names the thing and what would be right, exit code 2, nothing written."""

import subprocess
import sys

import pytest

import workbench as wb
from workbench.cli import main

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    """A small store, and other things to name wrongly."""
    folder = tmp_path_factory.mktemp("wrong")
    wb.capture("zoo:calendar", data="calendar", hooks=HOOK, rows=200, out=folder / "acts")
    (folder / "empty").mkdir()
    (folder / "bad.yaml").write_text("plugin: sae\nstores: acts\n")
    (folder / "broken.jsonl").write_text('{"text": "one"}\n{"text": \n')
    return folder


CAPTURE = "capture --model zoo:calendar --data calendar --rows 100 --out {out}"
BAD_INPUT = [
    pytest.param(
        f"{CAPTURE} --hook blocks.1.hook_resid_pots",
        "no hook point 'blocks.1.hook_resid_pots'; nearest: blocks.1.hook_resid_post",
        id="hook point",
    ),
    pytest.param(
        "capture --model zoo:calender --data calendar --hook '*' --out {out}", "nearest: calendar", id="zoo name"
    ),
    pytest.param(
        "capture --model gpt2 --data calendar --hook x --out {out}",
        "'gpt2' is not an address",
        id="model without scheme",
    ),
    pytest.param(
        "capture --model zoom:gpt2 --data calendar --hook x --out {out}",
        "no subject source 'zoom'; nearest: zoo",
        id="scheme",
    ),
    pytest.param(
        "capture --model hf:{dir}/absent --data calendar --hook x --out {out}", "absent", id="missing model folder"
    ),
    pytest.param("capture --model zoo:calendar --data calender --hook x --out {out}", "calendar", id="dataset name"),
    pytest.param(
        "capture --model zoo:calendar --data {dir}/absent.txt --hook x --out {out}",
        "absent.txt",
        id="missing data file",
    ),
    pytest.param(
        "capture --model zoo:calendar --data {dir}/broken.jsonl --hook '*resid_post' --out {out}",
        "line 2",
        id="broken JSON line",
    ),
    pytest.param(f"{CAPTURE} --hook {HOOK} --positions label:nope", "nope", id="positions of an unknown label"),
    pytest.param(f"{CAPTURE} --hook {HOOK} --positions some", "some", id="positions"),
    pytest.param(f"{CAPTURE} --hook {HOOK} --dtype float31", "float31", id="dtype"),
    pytest.param(f"{CAPTURE} --hook {HOOK} --device cuda:77", "cuda:77", id="device"),
    pytest.param(f"{CAPTURE} --hook {HOOK} --rows -5", "-5", id="negative rows"),
    pytest.param("run sprase-probe --store {acts}", "no plugin 'sprase-probe'; nearest: sparse-probe", id="plugin"),
    pytest.param("run sae --store {dir}/absent --out {out}", "absent", id="missing store"),
    pytest.param("run sae --store {dir}/empty --out {out}", "empty", id="folder that is no store"),
    pytest.param("run sae --store {acts} --set k=0 --out {out}", "k=0: must be", id="option out of range"),
    pytest.param("run sae --store {acts} --set k=many --out {out}", "k=many: must be", id="option of the wrong type"),
    pytest.param("run sae --store {acts} --set kk=3 --out {out}", "no option 'kk'; nearest: k", id="option"),
    pytest.param("run sae --store {acts} --set k --out {out}", "write KEY=VALUE", id="setting without value"),
    pytest.param(
        "run sae --store {acts} --set hook_point=blocks.1.hook_resid_pots --out {out}",
        f"nearest: {HOOK}",
        id="hook point of a store",
    ),
    pytest.param("run sae --store {acts} --seed -1 --out {out}", "seed", id="seed"),
    pytest.param("run sae --store {acts} --out {dir}/empty", "exists already", id="run folder that exists"),
    pytest.param("run sparse-probe --store {acts} --set label=wekday --out {out}", "weekday", id="label"),
    pytest.param(
        "run sparse-probe --store {acts} --dictionary {dir}/absent --out {out}", "absent", id="missing dictionary"
    ),
    pytest.param(
        "run sparse-probe --store {acts} --dictionary {dir}/empty --out {out}",
        "empty",
        id="folder that is no dictionary",
    ),
    pytest.param("run --config {dir}/bad.yaml", "no key 'stores'; nearest: store", id="configuration file"),
    pytest.param("run --config {dir}/absent.yaml", "no configuration file", id="missing configuration file"),
    pytest.param("run", "no plugin named", id="no plugin"),
    pytest.param("store info {dir}/absent", "absent", id="info of a missing store"),
    pytest.param("report {dir}/empty", "is not a run folder", id="report of no run"),
    pytest.param("models zoo:calender", "nearest: calendar", id="models"),
    pytest.param("zoo train pycod", "nearest: pycode", id="zoo train"),
    pytest.param("zoo train calendar --out {acts}", "holds something else", id="zoo train into a store"),
    pytest.param("zoo train calendar --out {dir}/bad.yaml", "is a file", id="zoo train into a file"),
    pytest.param(
        "run sae --store {acts} --out {dir}/bad.yaml", "exists already and is no run folder", id="run in a file"
    ),
    pytest.param("run sae --store {acts} --data python-stdlib --out {out}", "leave the data out", id="unread data"),
    pytest.param("plugin new Bad_Name --out {out}", "lower-case words joined by hyphens", id="plugin name"),
    pytest.param("captuer", "No such command", id="command"),
]


@pytest.mark.parametrize(("line", "says"), BAD_INPUT)
def test_bad_input_is_explained(line, says, acts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"dir": acts, "acts": acts / "acts", "out": tmp_path / "out"}
    words = [word.strip("'").format(**places) for word in line.split()]
    assert main(words) == 2
    told = capsys.readouterr()
    assert says in " ".join(told.err.split())
    assert "Traceback" not in told.err + told.out
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_the_exit_code_reaches_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "run", "nope"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no plugin 'nope'")
