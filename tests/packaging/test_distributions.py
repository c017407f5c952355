"""What is built holds the five folders under one name, and nothing else."""

import shutil
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOMS = ("cache", "kernels", "plugins", "probes")
SHIPPED = {".c", ".py", ".typed", ".html", ".css", ".js", ".json", ".yaml", ".toml", ".jinja", ".safetensors"}
SHIPPED |= {".cpp", ".h", ".cu", ".cuh"}


@pytest.fixture(scope="module")
def expected(tracked) -> set[str]:
    """The tracked files of the five folders, renamed."""
    inside = {name for name in tracked if name.split("/")[0] in {"workbench", *ROOMS}}
    return {name if name.startswith("workbench/") else f"workbench/{name}" for name in inside}


def names_in(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_five_folders_renamed_and_nothing_else(wheel, expected):
    assert names_in(wheel) == expected
    assert {"workbench/py.typed", "workbench/cache/__init__.py"} <= names_in(wheel)
    assert any(name.endswith(".safetensors") for name in names_in(wheel))


def test_the_wheel_is_pure_and_its_entry_points_are_those_of_pyproject(wheel):
    assert wheel.name.endswith("py3-none-any.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    archive = zipfile.ZipFile(wheel)
    (listed,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    text = archive.read(listed).decode()
    for name, target in project["entry-points"]["workbench"].items():
        assert f"{name} = {target}" in text


def test_the_sdist_builds_the_same_wheel(copy, build, wheel, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(copy, source, symlinks=True)
    sdist = build(source, "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path)
    assert names_in(again) == names_in(wheel)


def test_every_kind_of_file_in_the_folders_is_shipped(expected):
    assert {Path(name).suffix for name in expected} <= SHIPPED


# --- dependencies ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).extend(spec.version for spec in requirement.specifier)
    return found


def direct() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Requirement(text) for text in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]]


def test_constraints_fit_every_machine(pins):
    assert "torchvision" not in pins
    assert not [version for versions in pins.values() for version in versions if "+" in version]


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_every_direct_dependency_has_a_pin_within_its_range(requirement, pins):
    versions = pins[canonicalize_name(requirement.name)]
    assert versions
    assert all(requirement.specifier.contains(version, prereleases=True) for version in versions)
