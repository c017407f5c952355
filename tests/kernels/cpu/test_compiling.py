"""Compiling on first use: found again, raced for, mended, and done without."""

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workbench.kernels.cpu import compiler
from workbench.kernels.cpu.library import Library
from workbench.kernels.cpu.units import UNITS

GENERIC = UNITS["generic"]
QUICK = ("-O0",)  # what these tests compile need not be fast
ENCODE = """
import torch
from workbench.kernels.choice import in_use
from workbench.kernels.topk import topk_encode
numbers = torch.Generator().manual_seed(0)
x, W, b = (torch.randn(*shape, generator=numbers) for shape in [(20, 12), (64, 12), (64,)])
values, indices = topk_encode(x, W, b, 3)
print(in_use()["topk_encode"], values.view(torch.int32).sum().item(), indices.sum().item())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty folder for what is compiled."""
    folder = tmp_path / "compiled"
    monkeypatch.setenv("WORKBENCH_KERNEL_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def reference() -> list[str]:
    """What the reference prints."""
    return encode_elsewhere(WORKBENCH_KERNELS="reference")[0]


def encode_elsewhere(**environment: str) -> tuple[list[str], str]:
    """Encode in a process of its own: the words it prints, and what it logs."""
    done = subprocess.run(
        [sys.executable, "-c", ENCODE], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.split(), done.stderr


def real_compiler() -> str:
    return " ".join(compiler.find_compiler().command)


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="ascii")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_unit_is_compiled_once_and_found_again(cache):
    path = compiler.build(GENERIC, QUICK)
    written = path.stat().st_mtime_ns
    assert compiler.build(GENERIC, QUICK) == path
    assert path.stat().st_mtime_ns == written
    assert not list(cache.glob("*.part"))


def test_what_goes_into_a_unit_decides_its_name(cache, tmp_path, monkeypatch):
    found = compiler.find_compiler()
    names = {compiler.built_path(GENERIC, found), compiler.built_path(GENERIC, found, QUICK)}
    names.add(compiler.built_path(GENERIC, compiler.Compiler(found.command, "another version")))
    sources = shutil.copytree(compiler.SOURCES, tmp_path / "csrc")
    with (sources / "exact.h").open("a") as header:
        header.write("// changed\n")
    monkeypatch.setattr(compiler, "SOURCES", sources)
    names.add(compiler.built_path(GENERIC, found))
    assert len(names) == 4


@pytest.mark.slow
def test_processes_that_start_at_once_compile_once(cache, tmp_path):
    quick = script(tmp_path / "c", f'exec {real_compiler()} "$@" -O0')
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(encode_elsewhere, WORKBENCH_KERNELS="generic", CXX=quick) for _ in range(2)]
    first, second = (run.result()[0] for run in runs)
    assert first == second
    assert first[0] == "generic"
    assert len(list(cache.glob("*.so"))) == 1


@pytest.mark.parametrize(
    "damage", [b"", *(pytest.param(each, marks=pytest.mark.slow) for each in (b"not a library", None))]
)
def test_a_damaged_file_is_compiled_anew(cache, damage):
    path = compiler.build(GENERIC, QUICK)
    sound = path.read_bytes()
    if damage is None:
        middle = len(sound) // 2
        damage = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    path.write_bytes(damage)
    assert Library(GENERIC, QUICK).path.stat().st_size == len(sound)


@pytest.mark.parametrize(
    ("compilers", "says"),
    [
        pytest.param({"PATH": "/nonexistent"}, "no C++ compiler: looked for c++, g++, clang++", id="none"),
        pytest.param({"CXX": "broken"}, ".cpp: this.cpp:1: error: cannot", id="broken"),
    ],
)
def test_without_a_compiler_the_reference_answers_and_one_line_says_why(cache, tmp_path, reference, compilers, says):
    if compilers.get("CXX"):
        failing = '[ "$1" = --version ] || { echo "this.cpp:1: error: cannot" >&2; false; }'
        compilers = {"CXX": script(tmp_path / "c", failing)}
    words, log = encode_elsewhere(**compilers)
    assert words == reference
    (line,) = [line for line in log.splitlines() if line]
    assert "the PyTorch reference runs" in line
    assert says in line


@pytest.mark.slow
def test_a_compiler_that_knows_fewer_instruction_sets_gives_what_it_can(cache, tmp_path, reference):
    refuse = 'case "$*" in *-mavx*) echo "error: unknown flag" >&2; exit 1;; esac'
    refusing = script(tmp_path / "c", f'{refuse}; exec {real_compiler()} "$@" -O0')
    words, log = encode_elsewhere(CXX=refusing)
    assert words == ["generic", *reference[1:]]
    if RICHER:
        assert "generic is used; better ones cannot be built" in log


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORKBENCH_KERNEL_CACHE", str(tmp_path / "file" / "inside"))
    with pytest.raises(compiler.BuildError, match=r"cannot write to .*WORKBENCH_KERNEL_CACHE"):
        compiler.build(GENERIC)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux's /proc")
def test_kernels_and_torch_share_one_pool_of_threads():
    code = """
import os, torch
from workbench.kernels.topk import topk_encode
threads = lambda: len(os.listdir("/proc/self/task"))
x, W, b = torch.randn(300, 64), torch.randn(900, 64), torch.zeros(900)
torch.ones(4_000_000).add(1).sum()
before = threads()
topk_encode(x, W, b, 3)
print(before, threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    before, after = map(int, done.stdout.split())
    assert before == after > 1


RICHER = [unit for unit in UNITS.values() if unit.flags and not unit.lacking()]


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_every_unit_compiles_even_where_it_cannot_run(name):
    assert compiler.build(UNITS[name]).exists()
