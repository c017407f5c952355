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
PAGE = Path(__file__).parents[2] / "docs" / "writing-a-plugin.md"
DECLARED = {
    "rounding": ["test_configurations_survive_yaml", "test_configurations_survive_the_command_line"],
    "thawed": ["test_its_configuration_is_a_frozen_dataclass"],
    "unbounded": [
        "test_each_option_is_explained",
        "test_configurations_survive_yaml",
        "test_configurations_survive_the_command_line",
    ],
    "boundless": ["test_each_option_is_explained"],
    "demanding": [
        "test_it_can_be_run_without_being_given_anything",
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


def install(packages, name, text):
    """Put a package on the path: a module, and what says that it is installed."""
    about = packages / f"{name}-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[workbench]\n{name} = {name}_package\n")
    (packages / f"{name}_package.py").write_text(text, encoding="utf-8")


def run_pytest(folder, *words):
    """Run a pytest of its own, in which what was installed is found; returns what passed, failed, was said."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "-p", "workbench.testing", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "packages"), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [re.findall(rf"^{word} \S+::(\w+)::(\w+)", done.stdout, re.M) for word in ("PASSED", "FAILED")]
    return *found, done.stdout


def test_who_names_the_suite_as_a_pytest_plugin_imports_nothing_heavy():
    code = "import sys, workbench.testing; print({'torch', 'pytest', 'pandas', 'hypothesis'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.long
def test_faults_of_runs_are_found(tmp_path):
    install(tmp_path / "packages", "faulty", FAULTY.read_text(encoding="utf-8"))
    classes = {name: f"Test_{name.replace('-', '_')}" for name in ["sound", *RUN]}
    module = tmp_path / "test_faults.py"
    lines = [f"class {kind}(PluginConformance):\n    plugin = {name!r}\n" for name, kind in classes.items()]
    module.write_text("from workbench.testing import PluginConformance\n\n" + "\n\n".join(lines))
    wanted = [(classes[name], check) for name, checks in RUN.items() for check in checks]
    words = [f"{module}::{kind}::{check}" for kind, check in wanted]
    passed, failed, said = run_pytest(tmp_path, f"{module}::Test_sound", *words)
    assert {kind for kind, _ in passed} == {"Test_sound"}, said
    assert sorted(failed) == sorted(wanted), said
    assert len(passed) == len([name for name in dir(PluginConformance) if name.startswith("test_")]), said


@pytest.mark.long
def test_what_the_docs_show_conforms(tmp_path):
    """The plugin and the dataset of the page, with the tests that it gives them."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for name, holding in {"surprise": "class Surprise", "poems": "class Poems"}.items():
        (example,) = (block for block in blocks if holding in block)
        install(tmp_path / "packages", name, example)
        (test,) = (block for block in blocks if f"class Test{name.title()}" in block)
        (tmp_path / f"test_{name}.py").write_text(test, encoding="utf-8")
    passed, failed, said = run_pytest(tmp_path)
    assert not failed, said
    assert {kind for kind, _ in passed} == {"TestSurprise", "TestPoems"}, said
