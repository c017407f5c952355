"""What is installed: plugins, subject sources and dataset sources of all packages, and the packages that are broken."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import pluggy

from workbench import configuration, hookspecs
from workbench.errors import UserError, nearest
from workbench.plugin import API, PLUGIN_NAME, DatasetSource, Plugin, SubjectSource

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """The package that something came from."""

    entry_point: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Offer(Generic[T]):
    """Something offered by a package."""

    item: T
    origin: Origin


@dataclass(frozen=True)
class Broken:
    """An entry point, or one thing it offered, that cannot be used; it harms nothing else."""

    origin: Origin
    error: str


@dataclass
class Registry:
    """Everything that the installed packages offer, by name."""

    plugins: dict[str, Offer[type[Plugin]]] = field(default_factory=dict)
    subjects: dict[str, Offer[SubjectSource]] = field(default_factory=dict)
    datasets: dict[str, Offer[DatasetSource]] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    clashes: dict[str, str] = field(default_factory=dict)

    def plugin(self, name: str) -> type[Plugin]:
        """Return a plugin by name; an unknown name is an error that gives the nearest three."""
        return self.find("plugin", name, self.plugins).item

    def subject_source(self, scheme: str) -> SubjectSource:
        """Return the source of an address's scheme."""
        return self.find("subject source", scheme, self.subjects).item

    def find(self, what: str, name: str, offers: dict[str, Offer[T]]) -> Offer[T]:
        """Look something up, explaining a failure: a clash, a broken package, nothing installed, or a misspelling."""
        if name in self.clashes:
            raise UserError(self.clashes[name])
        if name in offers:
            return offers[name]
        if not offers:
            raise UserError(
                f"no {what} is installed: run 'pip install -e .' in the checkout, or 'pip install interp-workbench'"
            )
        for broken in self.broken:
            if broken.origin.entry_point == name:
                raise UserError(f"{what} {name!r} of {broken.origin} is broken: {broken.error}")
        raise UserError(f"no {what} {name!r}; nearest: {nearest(name, offers)} (all: workbench plugins)")


def load(points: Iterable[EntryPoint]) -> Registry:
    """Load entry points one by one (pluggy's bulk loader stops at the first broken one) and collect what they offer."""
    registry = Registry()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        package = point.dist.name if point.dist else "unknown package"
        origin = Origin(point.name, package, point.dist.version if point.dist else "?")
        try:
            module = point.load()
            manager.register(module, name=f"{package}:{point.name}")
            manager.check_pending()
            offered = {kind: call_one(manager, module, kind) for kind in ("plugins", "subjects", "datasets")}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's package may fail in any way, and harms none
            if manager.has_plugin(f"{package}:{point.name}"):
                manager.unregister(name=f"{package}:{point.name}")
            registry.broken.append(Broken(origin, f"{type(error).__name__}: {error}{advice(error, origin)}"))
            continue
        for plugin in offered["plugins"]:
            if problem := problem_of(plugin, origin):
                registry.broken.append(Broken(origin, problem))
            else:
                add(registry, "plugin", plugin.name, plugin, origin, registry.plugins)
        for source in offered["subjects"]:
            if problem := problem_of_source(source, SubjectSource, origin):
                registry.broken.append(Broken(origin, problem))
            else:
                add(registry, "subject source", source.scheme, source, origin, registry.subjects)
        for source in offered["datasets"]:
            if problem := problem_of_source(source, DatasetSource, origin):
                registry.broken.append(Broken(origin, problem))
            else:
                add(registry, "dataset", source.name, source, origin, registry.datasets)
    return registry


def call_one(manager: pluggy.PluginManager, module: Any, kind: str) -> list[Any]:
    """Call one hook of one package alone."""
    others = [other for other in manager.get_plugins() if other is not module]
    lists = manager.subset_hook_caller(f"provide_{kind}", remove_plugins=others)()
    return [item for offered in lists for item in offered]


def advice(error: BaseException, origin: Origin) -> str:
    """Say what to do where a package looks for something of the workbench that is not there; else nothing."""
    misses = isinstance(error, ImportError) and (error.name or "").split(".")[0] == "workbench"
    if misses or isinstance(error, pluggy.PluginValidationError):
        return (
            f"; this workbench has plugin interface {API}: for a package written for a newer one, update "
            f"interp-workbench; for an older one, update {origin.package}"
        )
    return ""


def refusal(what: str, api: Any, origin: Origin) -> str | None:
    """Say what to do about something that was written for another interface; None if it was written for this one."""
    if isinstance(api, bool) or not isinstance(api, int):
        return f"{what} states api={api!r}: must be a whole number, {API} for this workbench"
    if api == API:
        return None
    cure = (
        f"update the plugin (pip install --upgrade {origin.package})"
        if api < API
        else "update interp-workbench (pip install --upgrade interp-workbench)"
    )
    return f"{what} was written for plugin interface {api}, and this workbench has {API}: {cure}"


def problem_of_source(source: Any, kind: type, origin: Origin) -> str | None:
    """Say why something cannot be used as a source of subjects or datasets; None if it can."""
    if not isinstance(source, kind):
        return f"{source!r} is not a workbench.plugin.{kind.__name__}"
    name = source.scheme if isinstance(source, SubjectSource) else source.name  # type: ignore[attr-defined]
    return refusal(f"{kind.__name__} {name!r}", source.api, origin)  # type: ignore[attr-defined]


def problem_of(plugin: Any, origin: Origin) -> str | None:
    """Say why a class cannot be used as a plugin; None if it can."""
    if not (inspect.isclass(plugin) and issubclass(plugin, Plugin)):
        return f"{plugin!r} is not a subclass of workbench.plugin.Plugin"
    missing = [name for name in ("name", "help") if not isinstance(getattr(plugin, name, None), str)]
    if missing:
        return f"{plugin.__name__} lacks {' and '.join(missing)}"
    if other := refusal(plugin.name, plugin.api, origin):
        return other
    if not PLUGIN_NAME.fullmatch(plugin.name):
        return f"plugin name {plugin.name!r}: must be lower-case words joined by hyphens, such as norm-profile"
    if inspect.isabstract(plugin):
        return f"{plugin.__name__} lacks {', '.join(sorted(plugin.__abstractmethods__))}"
    try:
        list(configuration.fields(plugin.Config))
    except Exception as error:  # noqa: BLE001 - annotations of a stranger's class may fail in any way
        return f"{plugin.name}: {error}"
    return None


def add(registry: Registry, what: str, name: str, item: T, origin: Origin, offers: dict[str, Offer[T]]) -> None:
    """Add an offer; a name offered twice can be used from neither package."""
    if name in registry.clashes:
        return
    if name in offers:
        other = offers.pop(name).origin
        message = f"{what} {name!r} is offered by both {other} and {origin}: uninstall one of them"
        registry.clashes[name] = message
        registry.broken += [Broken(other, message), Broken(origin, message)]
        return
    offers[name] = Offer(item, origin)


@functools.cache
def registry() -> Registry:
    """Return what is installed; looked up once per process."""
    return load(entry_points(group="workbench"))
