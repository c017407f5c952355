"""``workbench kernels``: what is told, and what is built."""

import json

import pytest

from workbench.cli import main
from workbench.kernels.cpu.units import UNITS


def test_status_names_every_kernel_and_why(capsys):
    assert main(["kernels", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in told["kernels"]] == [*UNITS, "reference"]
    assert [row["state"].startswith("in use") for row in told["kernels"]].count(True) == 1
    assert main(["kernels", "status"]) == 0
    assert "in use" in capsys.readouterr().out


def test_status_tells_how_latents_of_a_size_are_chosen(monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_KERNELS", "generic")
    for size, screen in {"4096,768,16384,32": "float32", "3,768,16384,32": "exact"}.items():
        assert main(["kernels", "status", "--json", "--size", size]) == 0
        assert json.loads(capsys.readouterr().out)["topk_encode"] == f"generic:{screen}"
    assert main(["kernels", "status", "--size", "4096,768,16384,32"]) == 0
    assert "generic:float32 for rows, width, latents, k = 4096,768,16384,32" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["4096", "1,2,3,x", "1,2,3,4", "0,2,3,1", ""])
def test_a_size_that_is_none_is_wrong_input(size, capsys):
    assert main(["kernels", "status", "--size", size or ","]) == 2
    assert "must be rows, width, latents, k" in capsys.readouterr().err


def test_build_names_the_files(capsys):
    assert main(["kernels", "build"]) == 0
    built = capsys.readouterr().out.split()
    assert len(built) == sum(not unit.lacking() for unit in UNITS.values())


def test_a_wrong_choice_is_wrong_input(monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_KERNELS", "fastest")
    assert main(["kernels", "status"]) == 2
    assert "kernel 'fastest': there are reference, " in capsys.readouterr().err
