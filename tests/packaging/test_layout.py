"""The rooms import under one name, from a checkout and from an installation, and never twice."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("cache", "kernels", "plugins", "probes")
WHERE = "import workbench, importlib; from importlib.util import find_spec; "
FOLDER = "next(iter(find_spec(f'workbench.{r}').submodule_search_locations))"
LOCATE = f"{WHERE}print([{FOLDER} for r in {ROOMS!r}])"


def test_an_installation_has_the_rooms_inside_the_package(unpacked, tmp_path, python):
    assert python(LOCATE, tmp_path, unpacked) == str([str(unpacked / "workbench" / room) for room in ROOMS])


def test_a_checkout_has_the_rooms_beside_the_package(copy, tmp_path, python):
    assert python(LOCATE, tmp_path, copy) == str([str(copy / room) for room in ROOMS])


def test_started_in_the_root_the_working_copy_runs_whatever_is_installed(copy, unpacked, python):
    assert python(LOCATE, copy, unpacked, isolated=False) == str([str(copy / room) for room in ROOMS])


def test_nothing_generic_lands_at_the_top(tmp_path, unpacked, python):
    code = f"from importlib.util import find_spec; print([r for r in {ROOMS!r} if find_spec(r)])"
    assert python(code, tmp_path) == "[]"
    assert python(code, tmp_path, unpacked) == "[]"


def test_the_command_line_works_from_a_checkout_without_an_installation(copy):
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "--help"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "capture" in done.stdout


def test_a_new_file_in_a_room_needs_no_reinstallation(copy, tmp_path, python):
    new = copy / "cache" / "brand_new_module.py"
    new.write_text("VALUE = 42\n")
    try:
        assert python("from workbench.cache.brand_new_module import VALUE; print(VALUE)", tmp_path, copy) == "42"
    finally:
        new.unlink()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_child_processes_in_another_folder_import_the_rooms(method, copy, tmp_path, python):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os\n"
        "def child(queue):\n"
        "    import workbench.cache, workbench.probes\n"
        "    queue.put(workbench.cache.__file__)\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    queue = context.Queue()\n"
        "    process = context.Process(target=child, args=(queue,))\n"
        "    process.start(); print(queue.get(timeout=60)); process.join()\n"
    )
    env = dict(os.environ, PYTHONPATH=str(copy))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(copy / "cache" / "__init__.py")


def test_the_four_lists_of_rooms_agree():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    mapped = pyproject["tool"]["setuptools"]["package-dir"]
    assert mapped == {f"workbench.{room}": room for room in ROOMS}
    assert f"ROOMS = {ROOMS!r}".replace("'", '"') in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert repr(ROOMS).replace("'", '"') in (ROOT / "workbench" / "_checkout.py").read_text(encoding="utf-8")
    for room in ROOMS:
        assert (ROOT / "typings" / "workbench" / room).resolve() == ROOT / room
    assert (ROOT / "typings" / "workbench" / "__init__.py").resolve() == ROOT / "workbench" / "__init__.py"


def test_kernels_is_no_regular_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.slow
def test_transformers_started_in_the_root_does_not_import_our_kernels(copy, python):
    code = (
        "import sys\nfrom transformers import PreTrainedModel\n"
        "found = sys.modules.get('kernels')\nprint(getattr(found, '__file__', None))"
    )
    assert python(code, copy, isolated=False) == "None"


def test_transformers_finds_a_real_distribution_called_kernels(copy, tmp_path, python):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("__version__ = '0.0.1'\n")
    code = "import kernels; print(kernels.__file__)"
    assert python(code, copy, tmp_path, isolated=False) == str(tmp_path / "kernels" / "__init__.py")


# --- what may import what --------------------------------------------------------------------------------------------
HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "sae_lens",
    "sklearn",
    "pandas",
    "matplotlib",
    "h5py",
    "scipy",
    "dask",
)


def imports(path: Path, module_level: bool = False) -> set[str]:
    """Names imported in a file, anywhere or at the top level only (type-checking blocks left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(tree.body) if module_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


GROUND = {
    "cache": {"workbench.cache"},
    "kernels": {"workbench.kernels"},
    "probes": {"workbench.probes"},
}


@pytest.mark.parametrize("room", GROUND)
def test_the_ground_floor_knows_nothing_of_the_rest(room):
    for path in (ROOT / room).rglob("*.py"):
        above = {name for name in imports(path) if name.split(".")[0] == "workbench"}
        assert all(name.startswith(f"workbench.{room}") for name in above), f"{path} imports {sorted(above)}"


def test_the_core_imports_no_plugin():
    for path in (ROOT / "workbench").rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith("workbench.plugins")], path


def test_plugins_do_not_import_each_other():
    for path in (ROOT / "plugins").rglob("*.py"):
        own = "workbench.plugins." + path.relative_to(ROOT / "plugins").parts[0].removesuffix(".py")
        others = [name for name in imports(path) if name.startswith("workbench.plugins") and not name.startswith(own)]
        assert not others, f"{path} imports {others}"


ENTRY = [*(ROOT / "plugins").glob("*.py"), *(ROOT / "plugins").glob("*/__init__.py")]


@pytest.mark.parametrize(
    "path", [*ENTRY, *(ROOT / "workbench" / "cli").glob("*.py")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_entry_modules_and_commands_import_nothing_heavy_at_the_top(path):
    heavy = {name for name in imports(path, module_level=True) if name.split(".")[0] in HEAVY}
    assert not heavy


def test_import_workbench_and_listing_plugins_load_nothing_heavy(tmp_path, python):
    code = (
        "import sys, workbench\nfrom workbench.registry import registry\nregistry()\nimport workbench.cli.app\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert python(code, tmp_path) == "[]"


# --- what is declared ------------------------------------------------------------------------------------------------
def test_every_third_party_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    declared = {text.split(">")[0].split("<")[0].split("[")[0].strip().lower() for text in texts}
    names = {"sklearn": "scikit-learn", "PIL": "pillow", "ruamel": "ruamel.yaml", "yaml": "pyyaml", "cuda": "cuda-core"}
    undeclared = set()
    for folder in ("workbench", *ROOMS):
        for path in (ROOT / folder).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
            tops -= {"workbench", "", "typing_extensions"}
            undeclared |= {top for top in tops if names.get(top, top).lower().replace("_", "-") not in declared}
    assert not undeclared
