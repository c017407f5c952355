"""What tools see of the layout: type checkers see the rooms, and no file is loaded under two names."""

import subprocess
import sys

import pytest

EVERYTHING = """
import importlib, pkgutil, sys
from pathlib import Path
root = Path(sys.argv[1])
for room in ("", ".cache", ".kernels", ".plugins", ".probes"):
    package = importlib.import_module("workbench" + room)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name != "workbench.__main__":
            importlib.import_module(found.name)
names = {}
for name, module in list(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and Path(path).is_relative_to(root) and name != "__main__":
        names.setdefault(path, []).append(name)
print(len(names), [many for many in names.values() if len(many) > 1 or many[0].split(".")[0] != "workbench"])
"""


@pytest.mark.slow
def test_no_file_is_loaded_under_two_names_nor_outside_the_package(copy):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVERYTHING, str(copy)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, doubled = done.stdout.strip().split(" ", 1)
    assert int(count) > 100
    assert doubled == "[]"


@pytest.mark.slow
def test_the_type_checker_sees_the_working_copy_of_a_room(copy):
    planted = copy / "cache" / "planted.py"
    planted.write_text('"""Wrong on purpose."""\n\nVALUE: int = "text"\n')
    try:
        done = subprocess.run([sys.executable, "-m", "mypy"], cwd=copy, capture_output=True, text=True, check=False)
    finally:
        planted.unlink()
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if "planted.py:3: error" in line]
    assert "Found 1 error" in done.stdout
