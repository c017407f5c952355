"""The docs are read, and fail if a hook, a command, an option or a plugin is missing from them."""

import inspect
import re
from pathlib import Path

import pytest
import typer

from workbench import configuration, hookspecs
from workbench.cli.app import app
from workbench.registry import registry

ROOT = Path(__file__).parents[1]
DOCS = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
}
ALL = "\n".join(DOCS.values())
HEADINGS = (
    "What it answers",
    "Run it",
    "What it needs",
    "Configuration",
    "What comes back",
    "How far to trust it",
    "Cost",
    "Source",
)


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs) if name.startswith("provide_")])
def test_each_hook_is_described_with_its_signature(hook):
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"`{hook}{signature}`" in DOCS[Path("docs/writing-a-plugin.md")]


def commands(group, prefix=()):
    for name, command in getattr(group, "commands", {}).items():
        inner = dict(getattr(command, "commands", {}))
        yield from commands(command, (*prefix, name)) if inner else [" ".join((*prefix, name))]


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app))))
def test_each_command_is_shown(command):
    assert f"workbench {command}" in ALL or f"make {command}" in ALL


@pytest.mark.parametrize("key", configuration.FILE_KEYS)
def test_each_key_of_a_configuration_file_is_named(key):
    assert f"`{key}`" in DOCS[Path("docs/configuration.md")]


@pytest.mark.parametrize(
    "plugin", [offer.item for offer in registry().plugins.values()], ids=lambda plugin: plugin.name
)
def test_each_plugin_has_a_page_with_the_same_headings_and_all_its_options(plugin):
    page = DOCS[Path(f"docs/plugins/{plugin.name}.md")]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(HEADINGS)
    for field in configuration.fields(plugin.Config):
        assert f"`{field.key}`" in page


def test_links_between_pages_lead_somewhere():
    for path, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / path.parent / target).exists(), f"{path} links to {target}"
