"""``workbench store``: info, verify, label."""

import json

import pytest

from workbench.capturing import capture
from workbench.cli import main
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder


@pytest.fixture
def store(tmp_path):
    subject = load_subject(f"zoo:{save_tiny_decoder(tmp_path / 'tiny')}", device="cpu")
    return capture(subject, data=["one text", "another"], hooks="blocks.*.hook_resid_post", out=tmp_path / "acts")


def test_info(store, capsys):
    assert main(["store", "info", str(store.folder)]) == 0
    said = capsys.readouterr().out
    assert "2 strings in memory" in said
    assert "blocks.1.hook_resid_post" in said
    assert "d_model 8" in said
    assert main(["store", "info", str(store.folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["documents"], facts["finished"]) == (store.n_rows, 2, True)


def test_label(store, tmp_path, capsys):
    (tmp_path / "mood.csv").write_text("document,mood\n0,good\n1,bad\n")
    assert main(["store", "label", str(store.folder), str(tmp_path / "mood.csv")]) == 0
    assert "mood" in capsys.readouterr().out
    assert store.labels["mood"].categories == ("bad", "good")
    assert main(["store", "label", str(store.folder), str(tmp_path / "mood.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "mood", "group": "mood", "rows": store.n_rows}]
    assert main(["store", "info", str(store.folder)]) == 0
    assert "categories" in capsys.readouterr().out


def test_verify_finds_nothing_and_then_the_byte_that_was_changed(store, capsys):
    assert main(["store", "verify", str(store.folder)]) == 0
    assert "no damage" in capsys.readouterr().out
    shard = next(store.folder.glob("shards/*.h5"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["store", "verify", str(store.folder)]) == 1
    assert "shards/000000.h5" in capsys.readouterr().out


def test_verify_names_a_damaged_manifest(store, capsys):
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"n_rows": ', '"n_rows": 1', 1))
    assert main(["store", "verify", str(store.folder)]) == 1
    said = capsys.readouterr().out
    assert "manifest.json: its contents differ from its checksum" in said
    assert "1 faults" in said
    assert main(["store", "verify", str(store.folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["damage"][0]["file"] == "manifest.json"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["info", "{}/nowhere"], "there is no folder", id="no folder"),
        pytest.param(["info", "{}/tiny"], "is not an activation store", id="no store"),
        pytest.param(["label", "{}/acts", "{}/none.csv"], "no such label file", id="no label file"),
        pytest.param(["vrify", "{}/acts"], "vrify", id="command"),
    ],
)
def test_bad_input_is_explained(store, tmp_path, capsys, words, says):
    assert main(["store", *(word.format(tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
