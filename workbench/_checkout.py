"""Find the rooms when the package runs from a checkout, where they lie beside it instead of inside."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOMS = {f"workbench.{room}" for room in ("cache", "kernels", "plugins", "probes")}
HERE = Path(__file__).parent


class RoomFinder(MetaPathFinder):
    """Resolve `workbench.ROOM` to the folder ROOM beside the package, and nothing else."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the room's spec, or None for any other name."""
        return PathFinder.find_spec(name, [str(HERE.parent)]) if name in ROOMS else None


if not (HERE / "cache").is_dir():
    sys.meta_path.insert(0, RoomFinder())  # before the finder of an editable install, which may be of another checkout
