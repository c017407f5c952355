"""Memory does not grow with the store: a process that exports or imports 600 MB needs but some of that."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workbench.store_formats.importing import import_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc tells the peak here (issue 4)"),
]
HOOK, N_ROWS, WIDTH = "blocks.0.hook_resid_post", 400_000, 768
LIMIT_MB = 300

RUN = """
import pathlib
import pyarrow, torch  # what is loaded anyway is no part of it
from workbench.store_formats.exporting import export_store
from workbench.store_formats.importing import import_store
def peak():  # of this program; what getrusage tells is that of the process that started it, if it was larger
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
before = peak()
{}
print(peak() - before)
"""


def grows(work):
    """Return by how many MB a process grows that does some work."""
    code = RUN.format(work)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, and the same rows in files of each kind."""
    made = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(0)
    x = np.frombuffer(rng.bytes(2 * N_ROWS * WIDTH), np.float16).reshape(N_ROWS, WIDTH).copy()
    np.save(made / "x.npy", x)
    np.save(made / "columns.npy", np.asfortranarray(x))
    torch.save(torch.from_numpy(x), made / "x.pt")
    save_file({"x": torch.from_numpy(x)}, made / "x.safetensors")
    import_store(made / "x.npy", out=made / "acts", hooks=HOOK)
    yield made
    for path in made.rglob("*"):
        if path.is_file():
            path.unlink()  # three gigabytes


LONG = pytest.mark.long  # one of a kind runs each time, the others at length


@pytest.mark.parametrize("to", ["npy", pytest.param("safetensors", marks=LONG), pytest.param("saelens", marks=LONG)])
def test_of_an_export_and_its_import(folder, to):
    grown = grows(f"export_store({str(folder / 'acts')!r}, to={to!r}, out={str(folder / to)!r})")
    assert grown < LIMIT_MB
    assert grows(f"import_store({str(folder / to)!r}, out={str(folder / f'back-{to}')!r})") < LIMIT_MB


@pytest.mark.parametrize(
    "name", ["x.npy", *(pytest.param(name, marks=LONG) for name in ("columns.npy", "x.pt", "x.safetensors"))]
)
def test_of_an_import(folder, name):
    assert grows(f"import_store({str(folder / name)!r}, out={str(folder / f'of-{name}')!r})") < LIMIT_MB


def test_that_the_limit_means_something(folder):
    assert grows(f"import numpy; x = numpy.load({str(folder / 'x.npy')!r})") > 2 * N_ROWS * WIDTH / 1e6 / 2 > LIMIT_MB
