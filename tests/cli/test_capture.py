"""``workbench capture`` from the command line: what it prints, exit codes, and killed in the middle."""

import json

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
    more = {
        "dtype": "bfloat16",
        "store-dtype": "float32",
        "compression": "zstd",
        "rows": "7",
        "context-length": "9",
        "seed": "4",
    }
    assert main(line(**more, positions="share:0.5")) == 0
    manifest = open_store(tmp_path / "acts").manifest
    assert manifest["model"]["dtype"] == "bfloat16"
    assert manifest["activations"]["blocks.0.hook_resid_post"]["dtype"] == "float32"
    assert manifest["activations"]["blocks.0.hook_resid_post"]["compression"] == "zstd"
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
