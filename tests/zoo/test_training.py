import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from workbench.cli.app import app
from workbench.errors import UserError
from workbench.zoo import calendar
from workbench.zoo.compression import gzip_bits, lzma_bits
from workbench.zoo.loading import load_zoo
from workbench.zoo.shelf import FILES, WEIGHTS, zoo_record
from workbench.zoo.training import recipe_of, thinned, train_zoo


@pytest.fixture(autouse=True)
def small_course(monkeypatch):
    monkeypatch.setattr(calendar, "N_SENTENCES", 300)
    recipe = replace(calendar.RECIPE, steps=4, batch_size=8, checkpoint_every=2)
    monkeypatch.setattr(calendar, "RECIPE", recipe)


class Killed(Exception):
    pass


def kill_at_3(progress):
    if progress.step == 3:
        raise Killed


def weights(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}


def test_an_interrupted_training_ends_with_the_same_subject(tmp_path):
    train_zoo("calendar", tmp_path / "straight")
    with pytest.raises(Killed):
        train_zoo("calendar", tmp_path / "killed", on_step=kill_at_3)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    record = train_zoo("calendar", tmp_path / "killed")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(FILES)
    straight, killed = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert all(torch.equal(straight[name], killed[name]) for name in straight | killed)
    assert load_zoo(str(tmp_path / "killed"), "cpu").fingerprint() == record["fingerprint"]
    assert json.loads(json.dumps(record)) == zoo_record(str(tmp_path / "killed"))


def test_the_record_says_how_it_was_made(tmp_path):
    record = json.loads(json.dumps(train_zoo("calendar", tmp_path / "out", recipe_of("calendar", seed=5, steps=2))))
    assert (record["recipe"]["seed"], record["recipe"]["steps"]) == (5, 2)
    assert record["training"]["threads"] == torch.get_num_threads()
    assert [step for step, _ in record["losses"]["curve"]] == [1, 2]
    assert set(record["accuracy"]["held_out"]["weekday"]) == {*calendar.PHRASINGS, "all"}
    assert record["accuracy"]["held_out"]["weekday"]["all"] < 0.3  # two steps teach nothing: the measure can fail


def test_a_finished_subject_is_never_overwritten(tmp_path):
    train_zoo("calendar", tmp_path / "out", recipe_of("calendar", steps=1))
    for folder in (tmp_path / "out", WEIGHTS / "calendar"):
        with pytest.raises(UserError, match="holds a finished subject"):
            train_zoo("calendar", folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")  # as an activation store has one
    with pytest.raises(UserError, match=r"holds something else than a training \('manifest.json'"):
        train_zoo("calendar", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(UserError, match="the checkpoint of another training"):
        train_zoo("calendar", tmp_path)


@pytest.mark.parametrize("place", ["file", "file/inner/out"])
def test_a_file_in_the_way_is_named(tmp_path, place):
    (tmp_path / "file").write_text("do not lose")
    done = CliRunner().invoke(app, ["zoo", "train", "calendar", "--out", str(tmp_path / place)])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith(f"{tmp_path / 'file'} is a file: --out must be a folder")


def test_a_training_killed_in_its_first_checkpoint_starts_again(tmp_path):
    (tmp_path / "checkpoint.part").write_bytes(b"half")
    train_zoo("calendar", tmp_path, recipe_of("calendar", steps=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train calendr", "nearest: calendar"),
        ("train calendar --steps 0", "steps 0: must be at least 1"),
        ("train calendar --seed -1", "seed -1: must be 0 or more"),
    ],
)
def test_bad_input_is_explained(line, says, tmp_path):
    done = CliRunner().invoke(app, ["zoo", *line.split(), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["zoo", "train", "calendar", "--steps", "2", "--threads", "1"])
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "zoo").iterdir()
    assert load_zoo(str(folder), "cpu").n_layers == 2
    assert "held-out operands" in done.stdout


def test_the_list_names_each_subject_and_how_good_it_is():
    done = CliRunner().invoke(app, ["zoo", "list", "--json"])
    assert {record["name"] for record in json.loads(done.stdout)} >= {"zoo:calendar", "zoo:pycode"}


def test_a_curve_is_thinned_to_means():
    assert thinned([(1, 4.0), (2, 2.0)]) == [(1, 4.0), (2, 2.0)]
    curve = thinned([(step, float(step)) for step in range(1, 161)])
    assert len(curve) == 80
    assert curve[0] == (2, 1.5)


def test_compressors_count_bits():
    text = b"the same line again and again\n" * 50
    assert 8 < gzip_bits([text]) < 8 * len(text) / 5
    assert gzip_bits([text, text]) == 2 * gzip_bits([text])  # each alone
    assert gzip_bits([text], dictionary=text) < gzip_bits([text])
    noise = bytes(torch.randint(256, (2000,), generator=torch.Generator().manual_seed(0)).tolist())
    assert gzip_bits([noise]) > 8 * len(noise)
    assert lzma_bits([noise], known=noise) < 0.1 * lzma_bits([noise], known=text)
