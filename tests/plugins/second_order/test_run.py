"""Runs: a real CLIP folder with a folder of images, other towers, interruption, wrong input."""

import numpy as np
import pytest
import transformers

import workbench as wb
from workbench.cli import main
from workbench.testing.checkpoints import save_random

SMALL = {
    "images": 60,
    "top": 10,
    "selective": 10,
    "permutations": 200,
    "draws": 50,
    "shown": 2,
    "segmentation": {"images": 16, "neurons": (3, 8)},
}
COMMAND = "run second-order --set images=60"

BAD_INPUT = [
    pytest.param("--set layer=2", "layer=2: the layers of hf:", id="last layer"),
    pytest.param("--set layer=[]", "at least one", id="no layer"),
    pytest.param("--set label=colour", "nearest of", id="unknown label"),
    pytest.param("--set classes={here}/one.txt", "two classes or more", id="one class"),
    pytest.param("--set classes={here}/three.txt", "3 names do not fit the 2 categories", id="too many names"),
    pytest.param("--set classes={here}/none.txt", "cannot be read as text", id="no such file"),
    pytest.param("--set texts={here}/one.txt", "at least two are needed", id="one text"),
    pytest.param("--set masks={here}/none", "there is no such folder", id="no masks"),
    pytest.param("--set template=photo", "must have {} where", id="no place for a name"),
    pytest.param("--set segmentation.data=calendar", "has no labels of pixels", id="no labels of pixels"),
    pytest.param("--set images=5", "must be at least 20", id="too few images"),
    pytest.param("--set text_model={clip}#vision", "is no text tower", id="no text tower"),
    pytest.param("--set convention=mean", "convention", id="no such convention"),
]


@pytest.mark.parametrize(("words", "says"), BAD_INPUT)
def test_bad_input_is_explained(words, says, clip_folder, photos, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("dog\n")
    (tmp_path / "three.txt").write_text("dog\ncat\ntree\n")
    words = words.replace("{here}", str(tmp_path)).replace("{clip}", f"hf:{clip_folder}")
    out = tmp_path / "run"
    line = [*COMMAND.split(), *words.split(), "--model", f"hf:{clip_folder}#vision", "--data", str(photos[0])]
    assert (main([*line, "--out", str(out)]), out.exists()) == (2, False)
    error = capsys.readouterr().err.replace("\n", " ")
    assert says in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_clip_folder_a_folder_of_images_and_a_file_of_class_names(clip_folder, photos, tmp_path):
    images, masks = photos
    (tmp_path / "names.txt").write_text("blue\ta blue square\nred\ta red square\n")
    given = {**SMALL, "classes": str(tmp_path / "names.txt"), "masks": str(masks), "convention": "published"}
    result = wb.run("second-order", model=f"hf:{clip_folder}#vision", data=str(images), out=tmp_path / "run", set=given)
    assert set(result.tables) == {
        "ablations", "approximations", "neurons", "selective", "agreement", "polysemous", "segmentation",
    }  # fmt: skip
    assert set(result.figures) == {"ablations", "neurons", "agreement", "segmentation", "maps"}
    ablations = result.tables["ablations"]
    assert set(ablations["effect"]) == {"none", "second order", "first order", "total indirect"}
    assert ((ablations["lo"] <= ablations["accuracy"]) & (ablations["accuracy"] <= ablations["hi"])).all()
    kept = result.tables["approximations"].set_index(["layer", "kept"])
    assert kept.loc[(0, "as they are"), "error"] == 0
    assert kept.loc[(0, "all at their means"), "error"] == pytest.approx(1)
    assert (kept["error"].xs("rank one", level="kept") < 1).all()
    directions = result.arrays["directions-0"].data
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    assert result.metrics["negative_control"].value == 1
    assert "a blue square" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_tower_without_text_has_directions_and_images(photos, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    config = transformers.Dinov2Config(**sizes, mlp_ratio=2)
    save_random(transformers.Dinov2Model(config), tmp_path / "dino")
    given = {**SMALL, "indirect": False}
    result = wb.run(
        "second-order", model=f"hf:{tmp_path / 'dino'}", data=str(photos[0]), out=tmp_path / "run", set=given
    )
    assert set(result.tables) == {"ablations", "approximations", "neurons"}
    assert "no text tower" in " ".join(result.sections["how-to-read"].data)
    assert (result.tables["neurons"]["auc"] >= 0.5).all()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(clip_folder, photos, tmp_path, monkeypatch):
    from workbench.plugins.second_order import passes, run

    monkeypatch.setattr(passes, "IMAGES_PER_CHUNK", 16)
    given = {**SMALL, "controls": False, "segmentation": {"images": 0}}
    options = {"model": f"hf:{clip_folder}#vision", "data": str(photos[0]), "set": given}
    whole = wb.run("second-order", **options, out=tmp_path / "whole")
    calls = []
    describe = run.describe_neurons

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return describe(*args, **kwargs)

    monkeypatch.setattr(run, "describe_neurons", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wb.run("second-order", **options, out=tmp_path / "run")
    done = sorted((tmp_path / "run.part" / "work").rglob("*.npy"))
    times = {path: path.stat().st_mtime_ns for path in done}
    assert len(times) > 8
    seen = []
    real = passes.trace
    monkeypatch.setattr(passes, "trace", lambda *args: seen.append(args) or real(*args))
    again = wb.run("second-order", **options, out=tmp_path / "run")
    assert not seen  # nothing was run through the subject again
    assert again.metrics == whole.metrics
    assert again.tables["neurons"].equals(whole.tables["neurons"])
