"""The suite finds what is wrong: each faulty plugin fails the checks that are about its fault, and a sound one none."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from workbench import registry as registries
from workbench.testing import PluginConformance, declared

FAULTY = Path(__file__).with_name("faulty.py")
DECLARED = {
    "rounding": ["test_configurations_survive_yaml", "test_configurations_survive_the_command_line"],
    "thawed": ["test_its_configuration_is_a_frozen_dataclass"],
    "unbounded": [
        "test_each_option_is_explained",
        "test_configurations_survive_yaml",
        "test_configurations_survive_the_command_line",
    ],
    "wordy": ["test_name_help_and_version_are_well_formed"],
}
RUN = {
    "torn-work": ["test_stopped_and_continued_it_gives_the_same_numbers"],
    "no-work": ["test_what_is_done_is_kept"],
    "other-numbers": ["test_stopped_and_continued_it_gives_the_same_numbers"],
    "unseeded": ["test_the_same_seed_gives_the_same_numbers"],
    "undescribed": ["test_everything_in_the_result_is_described"],
    "of-this-machine": ["test_nothing_of_this_machine_is_in_the_result"],
    "strange": ["test_the_report_is_whole_in_itself"],
    "careless": ["test_wrong_input_is_explained"],
    "silent": ["test_it_shows_its_progress"],
}


@pytest.fixture
def faulty(monkeypatch):
    """Register the faulty plugins, and them alone."""
    spec = importlib.util.spec_from_file_location("faulty_plugins", FAULTY)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "faulty_plugins", module)
    spec.loader.exec_module(module)
    found = registries.load([EntryPoint("faulty", "faulty_plugins", "workbench")])
    assert not found.broken
    for place in (declared, importlib.import_module("workbench.cli.run")):
        monkeypatch.setattr(place, "registry", lambda: found)
    return module


def declared_checks(plugin, tmp_path):
    """Return the names of the checks that a plugin fails, of those that run nothing."""
    tested = type("Tested", (PluginConformance,), {"plugin": plugin})()
    names = [name for name in dir(declared.DeclaredChecks) if name.startswith("test_")]
    failed = []
    for name in names:
        check = getattr(tested, name)
        try:
            check(tmp_path) if "yaml" in name else check()
        except Exception:  # noqa: BLE001 - an error finds something, too
            failed.append(name)
    return failed


@pytest.mark.parametrize("plugin", ["sound", *DECLARED])
def test_faults_of_declarations_are_found(plugin, faulty, tmp_path):
    assert sorted(declared_checks(plugin, tmp_path)) == sorted(DECLARED.get(plugin, []))


@pytest.mark.long
def test_faults_of_runs_are_found(tmp_path):
    """In a pytest of its own, where the plugins are installed: their package lies on the path."""
    packages = tmp_path / "packages"
    (packages / "faulty-1.dist-info").mkdir(parents=True)
    (packages / "faulty-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
    (packages / "faulty-1.dist-info" / "entry_points.txt").write_text("[workbench]\nfaulty = faulty_plugins\n")
    (packages / "faulty_plugins.py").write_text(FAULTY.read_text(encoding="utf-8"), encoding="utf-8")
    classes = [
        f"class Test_{name.replace('-', '_')}(PluginConformance):\n    plugin = {name!r}\n" for name in ["sound", *RUN]
    ]
    module = tmp_path / "test_faults.py"
    module.write_text("from workbench.testing import PluginConformance\n\n" + "\n\n".join(classes))
    wanted = [f"{module}::Test_{name.replace('-', '_')}::{check}" for name, checks in RUN.items() for check in checks]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rA",
            "--tb=no",
            "-p",
            "workbench.testing",
            f"{module}::Test_sound",
            *wanted,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    passed, failed = (
        re.findall(rf"^{word} \S+::Test_(\w+)::(\w+)", done.stdout, re.M) for word in ("PASSED", "FAILED")
    )
    assert {name for name, _ in passed} == {"sound"}, done.stdout
    assert sorted(failed) == sorted((name.replace("-", "_"), check) for name, checks in RUN.items() for check in checks)
    assert len(passed) == len([name for name in dir(PluginConformance) if name.startswith("test_")]), done.stdout
