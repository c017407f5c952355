"""Run folders appear whole or not at all, and an unfinished one is continued."""

import json
import subprocess
import sys

import filelock
import pytest

from workbench.errors import UserError
from workbench.runs import choose_folder, drop_unfinished, identity_of, load_run, part_of, run_folder


def finish(part):
    (part / "manifest.json").write_text(json.dumps({"schema": 1, "plugin": "p", "identity": "i"}))


def abandon(folder, identity, error):
    """Begin a run, leave something in its work folder, and fail."""
    with run_folder(folder, identity) as part:
        (part / "work" / "checkpoint").write_text("half")
        raise error


def test_a_finished_run_appears_by_rename_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "deep" / "run"
    with run_folder(folder, "i") as part:
        assert not folder.exists()
        finish(part)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json"]
    assert load_run(folder).identity == "i"


def test_an_interrupted_run_keeps_its_work_and_is_continued(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        abandon(folder, "i", KeyboardInterrupt)
    assert not folder.exists()
    with pytest.raises(UserError, match=r"run\.part is unfinished"):
        load_run(folder)
    with run_folder(folder, "i") as part:
        assert (part / "work" / "checkpoint").read_text() == "half"
        finish(part)
    assert folder.exists()
    assert not part_of(folder).exists()


def test_a_run_that_failed_before_it_had_work_leaves_nothing(tmp_path):
    with pytest.raises(UserError), run_folder(tmp_path / "run", "i"):
        raise UserError("bad")
    assert list(tmp_path.iterdir()) == []


def killed(folder, identity, work=False):
    """Leave what a killed process leaves, in the middle of writing its result."""
    part = part_of(folder)
    (part / "work").mkdir(parents=True)
    (part / "tables").mkdir()
    (part / "tables" / "other.parquet").write_text("PAR1")
    (part / ".metrics.json.123.part").write_text("{")
    (part / "identity.txt").write_text(identity)
    (part / "log.txt").write_text("begun\n")
    part.with_name(part.name + ".lock").touch()
    if work:
        (part / "work" / "checkpoint").write_text("half")


def test_what_a_killed_process_had_written_of_the_result_is_not_in_the_finished_run(tmp_path):
    killed(tmp_path / "run", "i", work=True)
    with run_folder(tmp_path / "run", "i") as part:
        assert sorted(path.name for path in part.iterdir()) == ["identity.txt", "log.txt", "work"]
        assert (part / "work" / "checkpoint").exists()
        finish(part)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log.txt", "manifest.json"]


@pytest.mark.parametrize("work", [False, True])
def test_an_unfinished_run_that_is_given_up_keeps_its_work_if_there_is_any(work, tmp_path):
    drop_unfinished(tmp_path / "none")
    killed(tmp_path / "run", "i", work)
    with filelock.FileLock(tmp_path / "run.part.lock"):
        drop_unfinished(tmp_path / "run")  # somebody is at it
    assert (tmp_path / "run.part" / "tables").exists()
    (tmp_path / "run.part.lock").touch()
    drop_unfinished(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run.part"] * work


def test_an_unfinished_run_of_another_identity_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        abandon(tmp_path / "run", "i", RuntimeError)
    with pytest.raises(UserError, match="unfinished run of other inputs"), run_folder(tmp_path / "run", "j"):
        pass
    assert (tmp_path / "run.part" / "work" / "checkpoint").exists()


HOLD = """
import sys
from pathlib import Path
from workbench.runs import run_folder
with run_folder(Path(sys.argv[1]), "i"):
    print("entered", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_make_the_same_run(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "entered\n"
        with pytest.raises(UserError, match="another process"), run_folder(tmp_path / "run", "i"):
            pass
        other.kill()  # a dead process leaves no lock behind
    with run_folder(tmp_path / "run", "i") as part:
        finish(part)


def test_the_default_folder_is_fresh_unless_the_same_run_is_unfinished(tmp_path):
    assert choose_folder("sae", "i", tmp_path).name == "sae-1"
    with run_folder(tmp_path / "sae-1", "i") as part:
        finish(part)
    assert choose_folder("sae", "i", tmp_path).name == "sae-2"
    with pytest.raises(KeyboardInterrupt):
        abandon(tmp_path / "sae-2", "j", KeyboardInterrupt)
    assert choose_folder("sae", "j", tmp_path).name == "sae-2"
    assert choose_folder("sae", "i", tmp_path).name == "sae-3"


def test_identity_depends_on_every_part_and_on_no_order():
    parts = {"plugin": "sae", "config": {"k": 1, "lr": 0.1}, "seed": 0}
    assert identity_of(parts) == identity_of({"seed": 0, "config": {"lr": 0.1, "k": 1}, "plugin": "sae"})
    assert identity_of(parts) != identity_of({**parts, "seed": 1})
    assert identity_of(parts) != identity_of({**parts, "config": {"k": 2, "lr": 0.1}})


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (None, "no manifest.json"),
        ("{", "is damaged"),
        ("[]", "names no plugin"),
        ('{"plugin": "p", "identity": "i", "schema": 99}', "newer workbench"),
    ],
)
def test_what_is_no_run_is_explained(manifest, says, tmp_path):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=says):
        load_run(tmp_path)
