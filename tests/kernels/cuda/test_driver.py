"""Loading and launching through the driver, on the shim's driver; what happens where a GPU or a compiler is missing."""

import ctypes
import logging

import pytest
import torch

from workbench.kernels import operators
from workbench.kernels.cuda import cubins, driver, linear, registration
from workbench.kernels.cuda.driver import Device, DriverError, Unavailable


class FixedCompiler:
    """Hands out a given cubin, and counts how often."""

    def __init__(self, identity: str, code: bytes = b"\x7fELF") -> None:
        self.identity, self.code, self.calls = identity, code, 0

    def compile(self, source, architecture):
        self.calls += 1
        if not self.code:
            raise cubins.CompilationError("no such architecture: " + architecture)
        return self.code


@pytest.fixture
def machine(shim_library, monkeypatch, tmp_path):
    """A GPU and one compiler, as far as `driver` can see; returns the driver's library."""

    class Stream:
        cuda_stream = 0x5EED

    monkeypatch.setattr(driver, "LIBRARY", str(shim_library))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Shim 1")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: Stream)
    monkeypatch.setattr(cubins, "_folder", lambda: tmp_path / "cubins")
    use_compilers(monkeypatch, FixedCompiler("nvcc 13"))
    return ctypes.CDLL(str(shim_library))


def use_compilers(monkeypatch, *compilers):
    monkeypatch.setattr(driver, "compilers", lambda: iter(compilers))


ARGUMENTS = torch.ones(2, 1), torch.tensor([[1], [0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def test_a_kernel_runs_on_torchs_stream_in_its_context(machine):
    device = Device(0)
    assert (device.architecture, device.n_processors, device.shared_bytes) == ("sm_90", 3, 227 * 1024)
    assert linear.sparse_decode(device, *ARGUMENTS).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert ctypes.c_void_p.in_dll(machine, "shim_stream").value == 0x5EED
    assert ctypes.c_int.in_dll(machine, "shim_pushed").value == 0


def test_large_shared_memory_is_asked_for(machine):
    out = torch.empty(2, 2)
    sizes = ctypes.c_longlong(2), ctypes.c_longlong(2), ctypes.c_int(2), ctypes.c_int(1)
    kernel = "decode.sparse_decode_f32"
    Device(0).launch(kernel, (1,), (32, 2), *ARGUMENTS, out, *sizes, shared_bytes=100_000)
    assert ctypes.c_uint.in_dll(machine, "shim_allowed").value == 100_000


def test_a_kernel_that_fails_is_an_error_that_names_the_call(machine):
    values, _, W = ARGUMENTS
    with pytest.raises(DriverError, match="cuLaunchKernel: error 719, unspecified launch failure"):
        linear.sparse_decode(Device(0), values, torch.tensor([[1], [7]]), W)
    assert ctypes.c_int.in_dll(machine, "shim_pushed").value == 0


def test_a_cubin_is_compiled_once_for_each_source_compiler_and_architecture(machine, monkeypatch):
    first, second = FixedCompiler("nvcc 13"), FixedCompiler("nvcc 12")
    for compiler in (first, first, second):
        for architecture in ("sm_80", "sm_90"):
            assert cubins.cubin(compiler, "decode", architecture) == b"\x7fELF"
    assert (first.calls, second.calls) == (2, 2)
    monkeypatch.setattr(cubins, "NVCC_FLAGS", ("-O0",))
    cubins.cubin(first, "decode", "sm_80")
    assert first.calls == 3
    assert not list(cubins._folder().glob("*.part"))


def test_a_kept_cubin_that_was_damaged_is_compiled_anew(machine):
    compiler = FixedCompiler("nvcc 13", b"\x7fELF and so on")
    cubins.cubin(compiler, "decode", "sm_80")
    (kept,) = cubins._folder().glob("*.cubin")
    data = bytearray(kept.read_bytes())
    data[5] ^= 1
    for damaged in (bytes(data), kept.read_bytes()[:-1], b""):
        kept.write_bytes(damaged)
        assert cubins.cubin(compiler, "decode", "sm_80") == compiler.code
    assert compiler.calls == 4


def test_where_nothing_can_be_kept_a_cubin_is_compiled_all_the_same(machine, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(cubins, "_folder", lambda: tmp_path / "file")
    assert cubins.cubin(FixedCompiler("nvcc 13"), "decode", "sm_80") == b"\x7fELF"
    assert "cannot be kept" in caplog.text


def test_a_compiler_whose_code_the_driver_refuses_is_passed_over(machine, monkeypatch):
    use_compilers(monkeypatch, FixedCompiler("too new", b"junk"), FixedCompiler("too old", b""), FixedCompiler("right"))
    assert Device(0).compiler.identity == "right"


@pytest.mark.parametrize(
    ("compilers", "says"),
    [
        ([], "neither the package cuda-core with NVRTC nor nvcc was found"),
        ([FixedCompiler("old", b"")], "Shim 1: old: no such architecture: sm_90"),
        ([FixedCompiler("new", b"junk")], "new: cuModuleLoadData: error 200, device kernel image is invalid"),
    ],
)
def test_without_a_working_compiler_the_reason_is_told(machine, monkeypatch, compilers, says):
    use_compilers(monkeypatch, *compilers)
    with pytest.raises(Unavailable) as error:
        Device(0)
    assert says in str(error.value)


def test_an_old_device_or_a_missing_driver_is_told(machine, monkeypatch):
    monkeypatch.setattr(driver, "OLDEST", (9, 1))
    with pytest.raises(Unavailable, match=r"Shim 1 has compute capability 9.0, needs"):
        Device(0)
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-absent.so")
    with pytest.raises(Unavailable, match=r"libcuda-absent.so cannot be loaded"):
        Device(0)


def test_the_reference_answers_where_no_kernel_can_and_one_line_says_why(machine, monkeypatch, caplog):
    use_compilers(monkeypatch)
    registration.device.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [registration.device(0), registration.device(0)] == [registration.device(0)] * 2
    registration.device.cache_clear()
    assert len(caplog.records) == 1
    assert "PyTorch reference runs instead: Shim 1: neither" in caplog.text


def test_every_kernel_is_registered_for_cuda_tensors():
    for name in ("topk_encode", "sparse_decode", "gathered_dot", "scatter_outer"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"workbench::{name}", "CUDA")
    assert operators.sparse_decode(*ARGUMENTS).tolist() == [[3.0, 4.0], [1.0, 2.0]]  # on a CPU nothing has changed


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")
def test_status_says_that_there_is_no_gpu():
    assert registration.status() == ["no CUDA device"]
