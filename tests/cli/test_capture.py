"""``workbench capture`` from the command line: what it prints, exit codes, and killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.cache import open_store
from workbench.cli import main
from workbench.testing.tiny import save_tiny_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'))}"


@pytest.fixture
def line(model, tmp_path):
    """The command, with what is given replacing what is there; `--labels` and the like are not needed here."""
    (tmp_path / "corpus.txt").write_text("a text that is cut into windows of sixteen tokens")
    options = {"model": model, "data": str(tmp_path / "corpus.txt"), "hook": "blocks.*.hook_resid_post"}

    def line(**changed):
        given = {**options, "out": str(tmp_path / "acts"), "device": "cpu", **changed}
        return ["capture", *(word for name, value in given.items() for word in (f"--{name}", value))]

    return line


def test_it_captures_and_says_what(line, tmp_path, capsys):
    assert main(line()) == 0
    assert "rows 53, documents 1, hook points 2, labels 0" in capsys.readouterr().out
    assert main([*line(), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    store = open_store(tmp_path / "acts")
    assert facts["fingerprint"] == store.fingerprint()
    assert (facts["rows"], facts["hook_points"]) == (53, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])


def test_options_reach_loader_and_store(line, tmp_path):
    more = {"dtype": "bfloat16", "store-dtype": "float32", "rows": "7", "context-length": "9", "seed": "4"}
    assert main(line(**more, positions="share:0.5")) == 0
    manifest = open_store(tmp_path / "acts").manifest
    assert manifest["model"]["dtype"] == "bfloat16"
    assert manifest["activations"]["blocks.0.hook_resid_post"]["dtype"] == "float32"
    said = manifest["capture"]
    assert (said["rows"], said["context_length"], said["seed"], said["positions"]) == (7, 9, 4, "share:0.5")


def test_an_interruption_is_130_and_the_same_command_goes_on(line, tmp_path, monkeypatch, capsys):
    import workbench.capture_passes

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workbench.capture_passes, "run_batch", interrupted)
        assert main(line()) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert not open_store(tmp_path / "acts").finished
    assert main(line()) == 0
    assert open_store(tmp_path / "acts").finished
    assert main(line()) == 0
    assert "is finished: 53 rows" in capsys.readouterr().err


BAD_INPUT = [
    pytest.param({"hook": "blocks.0.hook_resid_pst"}, "nearest: blocks.0.hook_resid_post", id="hook point"),
    pytest.param({"model": "zoo:pycod"}, "no zoo subject 'pycod'", id="model"),
    pytest.param({"data": "nowhere.jsonl"}, "no dataset 'nowhere.jsonl'", id="data"),
    pytest.param({"device": "tpu"}, "device 'tpu': must be auto, cpu or cuda:N", id="device"),
    pytest.param({"dtype": "float23"}, "dtype 'float23': must be one of", id="dtype"),
    pytest.param({"rows": "many"}, "Invalid value for '--rows'", id="rows"),
]


@pytest.mark.parametrize(("changed", "says"), BAD_INPUT)
def test_bad_input_is_explained(line, tmp_path, capsys, changed, says):
    assert main(line(**changed)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "acts").exists()


def test_a_folder_of_something_else_is_refused(line, tmp_path, capsys):
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts" / "thesis.txt").write_text("do not touch")
    assert main(line()) == 2
    assert "is neither empty nor an activation store (it holds 'thesis.txt')" in capsys.readouterr().err


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {".lock", "index.h5"})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.crash
def test_killed_at_any_time_it_ends_with_the_same_bytes(tmp_path):
    """Attention patterns make rows of 4 KiB, so that there are six shards or so; killed once for each."""
    folder = save_tiny_decoder(tmp_path / "tiny", n_context=512)
    (tmp_path / "texts").mkdir()
    for i in range(40):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i} " * (20 + i))
    command = [sys.executable, "-m", "workbench", "capture", "--model", f"zoo:{folder}", "--data", tmp_path / "texts"]
    command += ["--hook", "blocks.*.attn.hook_pattern", "--hook", "hook_embed", "--batch-size", "4", "--device", "cpu"]
    command = [*map(str, command), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    shards = len(open_store(tmp_path / "whole").manifest["shards"])
    killed = 0
    for until in range(shards + 1):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.PIPE)
        while process.poll() is None and n_parts(tmp_path / "killed") <= until:
            time.sleep(0.002)
        time.sleep(0.01 * (until % 3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert killed >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert open_store(tmp_path / "killed").verify() == []


def n_parts(folder: Path) -> int:
    """How many shards have been begun."""
    return len(list(folder.glob("shards/*")))
