"""The shim itself: it runs right kernels rightly, whatever the order of threads, and finds each planted error."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "kernels" / "cuda"
FLAGS = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-Wno-unknown-pragmas"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SEEDS = range(8)
RIGHT, WRONG, STOPPED = 0, 10, 11

RIGHT_KERNELS = ["reverses", "sums_by_shuffles", "reverses_in_warps", "counts", "multiplies", "converts"]

MISUSE = [  # what is planted, what the message says
    ("half_reach_the_barrier", "__syncthreads"),
    ("half_end_before_the_barrier", "__syncthreads"),
    ("two_barriers_for_one", "different barriers"),
    ("reads_a_lane_outside_the_mask", "which is not in the mask 0000ffff"),
    ("leaves_itself_out_of_the_mask", "is not in its own mask 0000ffff"),
    ("half_a_warp_shuffles", "stands still: 32 of 64 threads have ended; 32 wait in __shfl_xor_sync"),
    ("lanes_at_different_operations", "lanes of one warp meet at different operations"),
    ("takes_more_than_it_was_given", "but the launch gave 2048 in all"),
    ("traps", "trap at"),
    ("never_waits_for_the_copy", "asynchronous copies that it never waited for"),
]

WRONG_RESULT = [  # found because the result depends on an order that nobody promised, or on what nobody wrote
    "forgets_the_barrier",
    "trusts_lanes_to_march_together",
    "takes_places_in_order_of_arrival",
    "reads_what_nobody_wrote",
    "mistakes_the_fragment",
    "reads_before_the_copy_landed",
]

SANITIZER = [
    ("writes_behind_shared_memory", "AddressSanitizer: use-after-poison"),
    ("writes_behind_a_shared_variable", "index 64 out of bounds"),
    ("writes_behind_the_output", "AddressSanitizer: heap-buffer-overflow"),
    ("loads_from_an_odd_address", "misaligned address"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the planted kernels")
    program = tmp_path_factory.mktemp("shim") / "planted"
    sources = [HERE / "shim.cpp", HERE / "fibers.cpp", "-x", "c++", HERE / "planted.cu"]
    command = [compiler, *FLAGS, f"-I{HERE}", f"-I{KERNELS}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)

    env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # a launch that is stopped leaves its frames as they are

    def run(name: str, seed: int) -> subprocess.CompletedProcess:
        command = [program, name, str(seed)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.mark.parametrize("name", RIGHT_KERNELS)
def test_a_right_kernel_gives_the_right_result_in_every_order(run, name):
    for seed in SEEDS:
        done = run(name, seed)
        assert (done.returncode, done.stdout, done.stderr) == (RIGHT, "", "")


@pytest.mark.parametrize(("name", "says"), MISUSE)
def test_misuse_of_the_execution_model_is_named(run, name, says):
    for seed in SEEDS[:3]:
        done = run(name, seed)
        assert done.returncode == STOPPED, done.stderr
        assert says in done.stdout


@pytest.mark.parametrize("name", WRONG_RESULT)
def test_what_no_message_can_name_gives_a_wrong_result(run, name):
    outcomes = {run(name, seed).returncode for seed in SEEDS}
    assert WRONG in outcomes
    assert outcomes <= {RIGHT, WRONG}


@pytest.mark.parametrize(("name", "says"), SANITIZER)
def test_the_sanitizers_see_shared_and_global_memory(run, name, says):
    done = run(name, 0)
    assert done.returncode not in (RIGHT, WRONG, STOPPED)
    assert says in done.stderr
