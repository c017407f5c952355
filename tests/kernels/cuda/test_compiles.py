"""Every CUDA source compiles for every architecture it promises, without a warning, wherever a compiler is."""

import re
import subprocess

import pytest

from workbench.kernels.cuda import cubins

SOURCES = sorted(path.stem for path in cubins.SOURCES.glob("*.cu"))


@pytest.fixture(autouse=True)
def _no_sanitizers(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # `make shim` preloads them, and nvcc does not run with them


@pytest.mark.shim
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc_compiles_without_a_warning_or_a_spill(source, architecture, tmp_path):
    nvcc = cubins._nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    strict = ["-Werror", "all-warnings", "-Xptxas", "-v"]
    command = [nvcc.path, *cubins.NVCC_FLAGS, *strict, f"-arch={architecture}", "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run([*command, str(cubins.SOURCES / f"{source}.cu")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert spills
    assert set(spills) == {"0"}, done.stderr


@pytest.mark.shim
@pytest.mark.parametrize("source", SOURCES)
def test_nvrtc_compiles_without_any_header(source):
    nvrtc = cubins._nvrtc()
    if nvrtc is None:
        pytest.skip("needs the package cuda-core and NVRTC")
    assert nvrtc.compile(cubins.SOURCES / f"{source}.cu", "sm_90")[:4] == b"\x7fELF"


def test_a_source_that_does_not_compile_is_an_error_with_the_compilers_words(monkeypatch, tmp_path):
    nvcc = cubins._nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    (tmp_path / "wrong.cu").write_text("this is no CUDA\n")
    with pytest.raises(cubins.CompilationError, match=r"wrong.cu\(1\): error"):
        nvcc.compile(tmp_path / "wrong.cu", "sm_90")
