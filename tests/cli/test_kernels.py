"""``workbench kernels``: what is told, and what is built."""

import json

from workbench.cli import main
from workbench.kernels.cpu.units import UNITS


def test_status_names_every_kernel_and_why(capsys):
    assert main(["kernels", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in told["kernels"]] == [*UNITS, "reference"]
    assert [row["state"].startswith("in use") for row in told["kernels"]].count(True) == 1
    assert main(["kernels", "status"]) == 0
    assert "in use" in capsys.readouterr().out


def test_build_names_the_files(capsys):
    assert main(["kernels", "build"]) == 0
    built = capsys.readouterr().out.split()
    assert len(built) == sum(not unit.lacking() for unit in UNITS.values())


def test_a_wrong_choice_is_wrong_input(monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_KERNELS", "fastest")
    assert main(["kernels", "status"]) == 2
    assert "kernel 'fastest': there are reference, " in capsys.readouterr().err
