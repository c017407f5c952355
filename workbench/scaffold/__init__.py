"""A new plugin package, written from templates: ``workbench plugin new NAME``."""

from __future__ import annotations

import keyword
from importlib.resources import files
from pathlib import Path

from workbench.errors import UserError
from workbench.plugin import PLUGIN_NAME

TEMPLATES = {
    "pyproject.toml.jinja": "pyproject.toml",
    "README.md.jinja": "README.md",
    "page.md.jinja": "docs/{name}.md",
    "plugin.py.jinja": "{module}/__init__.py",
    "method.py.jinja": "{module}/method.py",
    "py.typed.jinja": "{module}/py.typed",
    "test_plugin.py.jinja": "tests/test_{module}.py",
}


def write_package(name: str, folder: Path) -> list[Path]:
    """Write a package with a plugin that installs, runs and passes its own test.

    Parameters
    ----------
    name : str
        The plugin's name: lower-case words joined by hyphens.
    folder : Path
        Where to write; must not exist.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UserError
        For a name that is no plugin name, or a folder that exists.
    """
    from jinja2 import Environment, StrictUndefined

    if not PLUGIN_NAME.fullmatch(name) or keyword.iskeyword(name.replace("-", "_")):
        raise UserError(f"plugin name {name!r}: must be lower-case words joined by hyphens, such as norm-profile")
    if folder.exists():
        raise UserError(f"{folder} exists already: name another with --out")
    module = "workbench_" + name.replace("-", "_")
    names = {"name": name, "module": module, "title": "".join(part.title() for part in name.split("-"))}
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    written = []
    for template, target in TEMPLATES.items():
        text = files("workbench.scaffold").joinpath("templates", template).read_text(encoding="utf-8")
        path = folder / target.format(**names)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(environment.from_string(text).render(names), encoding="utf-8")
        written.append(path)
    return written
