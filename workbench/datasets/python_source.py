"""The standard library's own source: which modules, their text, and which are held out."""

from __future__ import annotations

import hashlib
import io
import sysconfig
import tokenize
from pathlib import Path

from workbench.errors import UserError

# Tests are no library code, and `site-packages` is not the standard library. Demos and the editor stay: they are text.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
HELD_OUT_TENTHS = 1


def standard_library() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def modules(root: Path) -> dict[str, Path]:
    """Return the modules under a folder, sorted by dotted name.

    Left out: tests, installed packages, and what the build of this very Python generated (``_sysconfigdata...``, which
    holds the paths of the machine that built it). A package is the module of its ``__init__``.

    Parameters
    ----------
    root : Path
        Folder that is on the import path.

    Raises
    ------
    UserError
        If the folder holds no module.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT & set(parts) or parts[-1].startswith("_sysconfigdata") or not all(p.isidentifier() for p in parts):
            continue
        package = parts[-1] == "__init__" and len(parts) > 1
        name = ".".join(parts[:-1] if package else parts)
        if package or name not in found:  # import prefers a package to a module of the same name
            found[name] = path
    if not found:
        raise UserError(f"{root} holds no Python source: this Python was installed without its library's .py files")
    return dict(sorted(found.items()))


def is_held_out(name: str) -> bool:
    """Return whether a module is kept out of `zoo:pycode`'s training: a tenth of all, by a hash of the dotted name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 < HELD_OUT_TENTHS


def read_source(content: bytes) -> str | None:
    """Return a file's text as Python reads it: its declared encoding, line ends as newlines; None if it cannot be."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return io.TextIOWrapper(io.BytesIO(content), encoding).read()
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None
