"""A stranger's package: written by `plugin new`, installed into an environment of its own, run from the shell."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import workbench as wb
from workbench.scaffold import write_package
from workbench.testing import PluginConformance

NAME = "norm-profile"
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment that sees the packages of this one, and has the stranger's package besides."""
    folder = tmp_path_factory.mktemp("third-party")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    parent = sysconfig.get_path("purelib")
    Path(site.stdout.strip(), "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    package = folder / f"workbench-{NAME}"
    workbench(Path(sys.executable), folder, "plugin", "new", NAME)
    assert (package / "pyproject.toml").is_file()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--editable",
            package,
        ],
        check=True,
    )
    return python, package


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return wb.capture(
        "zoo:calendar", data="calendar", hooks=HOOK, rows=300, out=tmp_path_factory.mktemp("acts") / "acts"
    )


def workbench(python: Path, cwd: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [python, "-m", "workbench", *words], cwd=cwd, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_it_is_listed_with_version_origin_and_needs(environment, tmp_path):
    python, _ = environment
    listed = json.loads(workbench(python, tmp_path, "plugins", "--json"))
    (entry,) = [offer for offer in listed["offers"] if offer["name"] == NAME]
    assert (entry["origin"], entry["needs"]) == (f"workbench-{NAME} 0.1.0", "store")
    assert not listed["broken"]


@pytest.mark.slow
def test_it_runs_from_the_command_line(environment, store, tmp_path):
    python, _ = environment
    answer = json.loads(
        workbench(python, tmp_path, "run", NAME, "--store", str(store.folder), "--out", "run", "--json")
    )
    metric = answer["metrics"][f"norm.{HOOK}"]
    assert metric["lo"] < metric["value"] < metric["hi"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_its_help_states_its_options(environment, tmp_path):
    python, _ = environment
    told = workbench(python, tmp_path, "run", NAME, "--help")
    assert "resamples" in told
    assert "between 100 and 100000" in " ".join(told.split())


def test_its_errors_are_a_message_and_code_2(environment, store, tmp_path):
    python, _ = environment
    told = workbench(python, tmp_path, "run", NAME, "--store", str(store.folder), "--set", "resamples=1", code=2)
    assert told.strip().endswith(
        "resamples=1: must be between 100 and 100000 (bootstrap resamples of documents for the interval)"
    )


@pytest.mark.slow
def test_the_tests_it_came_with_pass(environment):
    """Its own, and the conformance suite, as its author would run them."""
    python, package = environment
    done = subprocess.run([python, "-m", "pytest", "-q"], cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len([name for name in dir(PluginConformance) if name.startswith('test_')]) + 1} passed" in done.stdout


@pytest.mark.parametrize("name", [NAME, "x", "a-name-of-many-words-that-makes-every-line-longer-than-it-was"])
def test_what_is_written_is_formatted_and_lints(name, tmp_path):
    package = tmp_path / name
    write_package(name, package)
    rules = "E,F,W,I,UP,B,C4,SIM,RUF,PT,PTH,ERA,PGH,D417"
    for command in (["check", "--select", rules], ["format", "--check"]):
        done = subprocess.run(
            [Path(sys.executable).with_name("ruff"), *command, "--no-cache", "."],
            cwd=package,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    assert (package / "docs" / f"{name}.md").is_file()


@pytest.mark.long
def test_what_is_written_has_types(tmp_path):
    write_package(NAME, tmp_path / NAME)
    command = [sys.executable, "-m", "mypy", f"workbench_{NAME.replace('-', '_')}", "tests"]
    done = subprocess.run(command, cwd=tmp_path / NAME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Norm", "norm_profile", "1norm", "norm-", ""])
def test_a_name_that_is_no_plugin_name(name, tmp_path):
    told = workbench(Path(sys.executable), tmp_path, "plugin", "new", name, code=2)
    assert "lower-case words joined by hyphens" in told
    assert not list(tmp_path.iterdir())
