"""Packages join through entry points, one by one; a broken one is listed and harms nothing."""

import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from workbench import registry as registries
from workbench.errors import UserError
from workbench.hookspecs import hookimpl
from workbench.plugin import DatasetSource, Plugin, SubjectSource
from workbench.results import Result


def plugin_class(name, **attributes):
    return type("Made", (Plugin,), {"name": name, "help": "…", "run": lambda self, context: Result(), **attributes})


@pytest.fixture
def module(monkeypatch):
    """Install a module made of functions, and return its entry point."""

    def install(name, **functions):
        made = types.ModuleType(f"made_{name}")
        for key, function in functions.items():
            setattr(made, key, function)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return EntryPoint(name, made.__name__, "workbench")

    return install


def offer(*plugins):
    def provide_plugins():
        return list(plugins)

    return hookimpl(provide_plugins)


def test_plugins_of_all_packages_are_joined(module):
    found = registries.load(
        [
            module("a", provide_plugins=offer(plugin_class("one"))),
            module("b", provide_plugins=offer(plugin_class("two"))),
        ]
    )
    assert set(found.plugins) == {"one", "two"}
    assert found.plugin("one").name == "one"
    assert not found.broken


def raising():
    raise RuntimeError("out of luck")


def extra_argument(colour):
    return []


def leaving():
    raise SystemExit(3)


def offer_sources(kind, source):
    return hookimpl(specname=f"provide_{kind}")(lambda: [source])


def importing_what_is_not_there():
    from workbench.plugin import Nonsense

    return [Nonsense]


@dataclass(frozen=True)
class Bare:
    k: int = 1


def offer_datasets():
    return ["poems"]


def offer_subjects():
    return [{"scheme": "x"}]


BROKEN = [
    pytest.param({"provide_plugins": hookimpl(specname="provide_plugins")(leaving)}, "SystemExit: 3", id="exits"),
    pytest.param(
        {"provide_datasets": hookimpl(specname="provide_datasets")(offer_datasets)},
        "'poems' is not a",
        id="no dataset source",
    ),
    pytest.param(
        {"provide_subjects": hookimpl(specname="provide_subjects")(offer_subjects)},
        "SubjectSource",
        id="no subject source",
    ),
    pytest.param({"provide_plugins": offer(plugin_class("bare", Config=Bare))}, "Bare.k must be", id="bare"),
    pytest.param(
        {"provide_plugins": hookimpl(specname="provide_plugins")(raising)}, "RuntimeError: out of luck", id="raises"
    ),
    pytest.param(
        {"provide_plugins": hookimpl(specname="provide_plugins")(extra_argument)}, "colour", id="wrong arguments"
    ),
    pytest.param({"provide_pluggins": hookimpl(lambda: [])}, "unknown hook", id="misspelt hook"),
    pytest.param({"provide_plugins": offer(int)}, "not a subclass", id="no plugin"),
    pytest.param(
        {"provide_plugins": offer(plugin_class("new", api=2))}, "update interp-workbench", id="newer interface"
    ),
    pytest.param({"provide_plugins": offer(plugin_class("old", api=0))}, "update the plugin", id="older interface"),
    pytest.param(
        {"provide_plugins": offer(plugin_class("text", api="1"))}, "must be a whole number, 1", id="no number"
    ),
    pytest.param({"provide_plugins": offer(plugin_class("Bad Name"))}, "joined by hyphens", id="name"),
    pytest.param({"provide_pluggins": hookimpl(lambda: [])}, "update interp-workbench", id="hook of a newer interface"),
    pytest.param(
        {"provide_datasets": offer_sources("datasets", DatasetSource("poems", "…", list, api=2))},
        "DatasetSource 'poems' was written for plugin interface 2, and this workbench has 1: update interp-workbench",
        id="dataset source of a newer interface",
    ),
    pytest.param(
        {"provide_subjects": offer_sources("subjects", SubjectSource("deaf", "…", list, api=0))},
        "pip install --upgrade unknown package",
        id="subject source of an older interface",
    ),
    pytest.param(
        {"provide_plugins": hookimpl(specname="provide_plugins")(importing_what_is_not_there)},
        "cannot import name 'Nonsense' from 'workbench.plugin'",
        id="imports what is not there",
    ),
    pytest.param(
        {"provide_plugins": hookimpl(specname="provide_plugins")(importing_what_is_not_there)},
        "for a package written for a newer one, update interp-workbench; for an older one, update unknown package",
        id="imports what is not there, advice",
    ),
    pytest.param(
        {"provide_plugins": offer(type("NoRun", (Plugin,), {"name": "no-run", "help": "…"}))}, "lacks run", id="no run"
    ),
]


@pytest.mark.parametrize(("functions", "says"), BROKEN)
def test_a_broken_package_is_listed_and_harms_nothing(module, functions, says):
    good = module("good", provide_plugins=offer(plugin_class("fine")))
    found = registries.load([module("bad", **functions), good])
    assert set(found.plugins) == {"fine"}
    assert [broken.origin.entry_point for broken in found.broken] == ["bad"]
    assert says in found.broken[0].error


def test_a_module_that_does_not_import_is_listed(module):
    found = registries.load(
        [EntryPoint("gone", "no_such_module", "workbench"), module("good", provide_plugins=offer(plugin_class("fine")))]
    )
    assert set(found.plugins) == {"fine"}
    assert "no_such_module" in found.broken[0].error
    with pytest.raises(UserError, match=r"'gone' of .* is broken: ModuleNotFoundError"):
        found.plugin("gone")


def test_a_name_offered_twice_names_both_packages(module):
    first, second = (
        module("a", provide_plugins=offer(plugin_class("same"))),
        module("b", provide_plugins=offer(plugin_class("same"))),
    )
    found = registries.load([first, second])
    assert "same" not in found.plugins
    assert len(found.broken) == 2
    with pytest.raises(UserError, match="offered by both"):
        found.plugin("same")


def test_an_unknown_name_gives_the_nearest_three(module):
    found = registries.load(
        [module("a", provide_plugins=offer(*map(plugin_class, ["sae", "sparse-probe", "circuit", "circular"])))]
    )
    with pytest.raises(UserError, match="no plugin 'sprase-probe'; nearest: sparse-probe, "):
        found.plugin("sprase-probe")


def test_with_nothing_installed_it_says_what_to_do():
    with pytest.raises(UserError, match="pip install"):
        registries.load([]).plugin("sae")


def test_the_built_ins_come_through_the_same_door():
    found = registries.registry()
    assert {"sae", "sparse-probe"} <= set(found.plugins)
    assert {"zoo", "tl", "hf"} <= set(found.subjects)
    assert {"python-stdlib", "calendar"} <= set(found.datasets)
    assert not found.broken
    assert all(offer.origin.package == "interp-workbench" for offer in found.plugins.values())
    assert all(isinstance(offer.item, SubjectSource) for offer in found.subjects.values())


def test_a_plugin_that_does_not_say_was_written_for_the_first_interface(module, monkeypatch):
    """When the interface moves on, it is refused like any other of the first."""
    monkeypatch.setattr(registries, "API", 2)
    found = registries.load([module("a", provide_plugins=offer(plugin_class("silent")))])
    assert not found.plugins
    assert "was written for plugin interface 1, and this workbench has 2: update the plugin" in found.broken[0].error
