#!/usr/bin/env bash
# All that only a GPU can show about the CUDA kernels, in one command, on a machine with one:
#
#     benchmarks/gpu_checks.sh [FOLDER]
#
# Writes logs and figures to FOLDER (default gpu-checks); the figures, figures.md, are tables for docs/performance.md.
# Needs Python 3.11 with torch for CUDA, and compute-sanitizer (in a CUDA toolkit, or in the package
# nvidia-cuda-sanitizer-api). PYTHON names the interpreter; by default the repository's own environment, made if absent.
#
# What this adds to `make shim`: many blocks at once, races between warps and between blocks, memory that others see
# late, asynchronous copies that take time, what the tensor cores' sums really cut, the driver, and speed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-checks}
if [ -z "${PYTHON:-}" ]; then
    make .venv/.ready
    PYTHON=.venv/bin/python
fi
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "gpu_checks: torch $("$PYTHON" -c 'import torch; print(torch.__version__)') sees no CUDA device" >&2
    exit 2
}
sanitizer=$(command -v compute-sanitizer || "$PYTHON" -c '
import pathlib, sysconfig
found = sorted(pathlib.Path(sysconfig.get_path("purelib"), "nvidia").rglob("compute-sanitizer"))
print(next((path for path in found if path.is_file()), ""))')
if [ -z "$sanitizer" ]; then
    echo "gpu_checks: no compute-sanitizer on the PATH; it is in a CUDA toolkit and in nvidia-cuda-sanitizer-api" >&2
    exit 2
fi

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
status=0
check() { # NAME COMMAND...: go on after a failure, so that one visit to the machine tells everything
    local name=$1
    shift
    step "$name"
    if "$@" > "$out/$name.log" 2>&1; then
        tail -n 1 "$out/$name.log"
    else
        status=1
        tail -n 20 "$out/$name.log"
        echo "FAILED, see $out/$name.log"
    fi
}

mkdir -p "$out"
nvidia-smi | tee "$out/machine.txt"
check correctness "$PYTHON" -m pytest -q -m gpu tests/kernels

# torch keeps freed memory and cuts tensors from large pieces: without that, an access past a tensor's end is seen.
# A few tests of each kernel: a sanitized kernel runs 10 to 100 times slower.
some="large_tiles or linear_kernels or stable_sort or without_the_screen or scored_exactly"
for tool in memcheck racecheck synccheck initcheck; do
    check "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 \
        --target-processes all "$PYTHON" -m pytest -q -m "gpu and not shim" tests/kernels/cuda -k "$some"
done

step figures
if ! "$PYTHON" benchmarks/topk_gpu.py 2> "$out/figures.log" | tee "$out/figures.md"; then
    status=1
    tail -n 20 "$out/figures.log"
    echo "FAILED, see $out/figures.log"
fi
step "done: $([ "$status" = 0 ] && echo 'nothing found' || echo 'FAILURES above')"
exit "$status"
