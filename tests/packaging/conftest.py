"""A clean copy of the tracked files, and the distributions built from it once for all tests."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tracked() -> list[str]:
    """Files of the checkout, tracked or about to be (so that the tests also hold before a commit)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="session")
def copy(tracked, tmp_path_factory) -> Path:
    """A copy of the tracked files, without any metadata of an installation."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder


@pytest.fixture(scope="session")
def build():
    """Build a distribution without isolation, so without a network."""

    def build(source: Path, kind: str, target: Path) -> Path:
        code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target / done.stdout.splitlines()[-1]

    return build


@pytest.fixture(scope="session")
def wheel(copy, build, tmp_path_factory) -> Path:
    """The wheel, from a copy of the copy: building leaves folders behind."""
    source = tmp_path_factory.mktemp("wheel-source") / "source"
    shutil.copytree(copy, source, symlinks=True)
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def unpacked(wheel, tmp_path_factory) -> Path:
    """The wheel unpacked into an empty folder, as an installation would lay it out."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="session")
def python():
    """Run Python code in a folder, with some paths first, and return what it printed."""

    def run(code: str, cwd: Path, *paths: Path, isolated: bool = True) -> str:
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)))
        flags = ["-P"] if isolated else []
        done = subprocess.run(
            [sys.executable, *flags, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
