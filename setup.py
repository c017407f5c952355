"""Name the packages: what lies in a room's folder is installed as workbench.ROOM."""

from setuptools import find_namespace_packages, setup

ROOMS = ("cache", "kernels", "plugins", "probes")


def inside(folder: str) -> list[str]:
    """List the room's package and those below it, under the names they have when installed."""
    found = find_namespace_packages(folder, exclude=["*__pycache__*"])
    return [f"workbench.{folder}", *(f"workbench.{folder}.{name}" for name in found)]


core = find_namespace_packages(include=["workbench", "workbench.*"], exclude=["*__pycache__*"])
setup(packages=core + [name for room in ROOMS for name in inside(room)])
