"""``workbench store export`` and ``workbench store import``."""

import json

import numpy as np
import pytest

from workbench.cache import open_store
from workbench.capturing import capture
from workbench.cli import main
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small store in ``acts``, and an array in ``x.npy``."""
    made = tmp_path_factory.mktemp("transfer")
    subject = load_subject(f"zoo:{save_tiny_decoder(made / 'tiny')}", device="cpu")
    capture(subject, data=["one text", "another, longer one"], hooks="blocks.*.hook_resid_post", out=made / "acts")
    np.save(made / "x.npy", np.zeros((6, 2), np.float32))
    np.save(made / "wide.npy", np.zeros((6, 2)))
    return made


@pytest.mark.parametrize("to", ["npy", "safetensors", "saelens"])
def test_there_and_back(folder, tmp_path, capsys, to):
    out, back = tmp_path / "an export", tmp_path / "bäck"
    assert main(["store", "export", str(folder / "acts"), "--to", to, "--out", str(out), "--hook", HOOK]) == 0
    said = capsys.readouterr().out
    assert f"{out}: " in said
    assert ("fill no window of 16 rows" in said) == (to == "saelens")
    assert main(["store", "import", str(out), "--out", str(back), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    store, first = open_store(folder / "acts"), open_store(back)
    assert facts["model"] == store.manifest["model"]["address"]
    kept = np.flatnonzero(np.isin(store.origins, first.origins))
    assert first.read(HOOK).tobytes() == store.read(HOOK, kept).tobytes()
    assert main(["store", "import", str(out), "--out", str(back)]) == 0  # finished: nothing to do
    assert main(["store", "verify", str(back)]) == 0


def test_an_array_of_ones_own(folder, tmp_path, capsys):
    words = ["store", "import", str(folder / "x.npy"), "--out", str(tmp_path / "acts"), "--hook", "mine"]
    assert main(words) == 0
    assert "6 rows, 1 documents, 1 sequences" in capsys.readouterr().out
    assert main(["store", "info", str(tmp_path / "acts")]) == 0
    said = capsys.readouterr().out
    assert "model        unknown" in said
    assert "mine" in said


BAD_INPUT = [
    pytest.param("export {acts} --to numpy --out {out}", "nearest: npy", id="format"),
    pytest.param("export {acts} --to npy --out {acts}", "exists already", id="out exists"),
    pytest.param("export {dir}/nowhere --to npy --out {out}", "there is no folder", id="no store"),
    pytest.param("export {acts} --to npy --out {out} --hook nope", "no hook point 'nope'; nearest:", id="hook point"),
    pytest.param("export {acts} --to npy --out {out} --file-mb 0", "--file-mb", id="file size"),
    pytest.param("export {acts} --to npy --out {out} --dtype int8", "dtype 'int8': must be one of", id="dtype"),
    pytest.param("export {acts} --to saelens --out {out} --context-size 17", "the longest has 16", id="window"),
    pytest.param("export {acts} --out {out}", "--to", id="no format"),
    pytest.param("import {dir}/nowhere --out {out}", "there is no", id="no source"),
    pytest.param("import {acts} --out {out}", "is an activation store already", id="a store"),
    pytest.param("import {dir}/x.npy --out {dir}", "neither empty nor an activation store", id="full folder"),
    pytest.param("import {dir}/x.npy --out {dir}/wide.npy", "is a file; a store is a folder", id="out is a file"),
    pytest.param("import {dir}/wide.npy --out {out}", "give --store-dtype float32", id="float64"),
    pytest.param("import {dir}/x.npy --out {out} --from arrow", "imported from saelens, npy", id="import format"),
    pytest.param("import {dir}/x.npy --out {out} --special-token 3", "name them with --tokens", id="special"),
]


@pytest.mark.parametrize(("line", "says"), BAD_INPUT)
def test_bad_input_is_explained(folder, tmp_path, capsys, line, says):
    places = {"dir": folder, "acts": folder / "acts", "out": tmp_path / "out"}
    assert main(["store", *(word.format(**places) for word in line.split())]) == 2
    told = capsys.readouterr()
    assert says in " ".join(told.err.split())
    assert "Traceback" not in told.err + told.out
    assert list(tmp_path.iterdir()) == []  # nothing half-written
