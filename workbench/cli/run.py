"""``workbench run PLUGIN``: one subcommand for each installed plugin, made when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json
from workbench.errors import UserError
from workbench.registry import registry

if TYPE_CHECKING:
    from workbench.plugin import Plugin
    from workbench.results import Result


class PluginGroup(TyperGroup):
    """Looks plugins up in the registry instead of a list written here.

    Contexts and commands are typed loosely: newer typers carry a click of their own.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the installed plugins' names."""
        return sorted(registry().plugins)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Make the command of one plugin; an unknown name is explained."""
        return command_for(registry().plugin(cmd_name))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without a plugin's name in front, take it from the configuration file."""
        if args and args[0].startswith("-"):
            file = config_in(args)
            if file is not None:
                args = [plugin_named_in(file), *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Take the first word as the plugin."""
        return args[0], self.get_command(ctx, args[0]), args[1:]


def config_in(args: list[str]) -> Path | None:
    """Find the value of ``--config`` among words of the command line."""
    for word, following in zip(args, [*args[1:], None], strict=True):
        if word == "--config" and following is not None:
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def plugin_named_in(file: Path) -> str:
    """Return the plugin that a configuration file names."""
    from workbench.configuration import read_config_file

    name = read_config_file(file).get("plugin")
    if name is None:
        raise UserError(f"no plugin named: {file} has no key plugin, and no name was given")
    return str(name)


app = typer.Typer(
    cls=PluginGroup,
    invoke_without_command=True,
    help="Run a plugin and keep the result in a run folder. 'workbench run PLUGIN --help' states its options.",
)


@app.callback()
def without_plugin(ctx: typer.Context) -> None:
    """Run a plugin and keep the result in a run folder. 'workbench run PLUGIN --help' states its options."""
    if ctx.invoked_subcommand is None:
        raise UserError(
            "no plugin named: 'workbench run PLUGIN' or 'workbench run --config FILE'; 'workbench plugins' lists them"
        )


def command_for(plugin: type[Plugin]) -> Any:
    """Make the command line of one plugin."""

    def run(
        store: Annotated[Path | None, typer.Option(help="Activation store to read; captured if not given.")] = None,
        model: Annotated[str | None, typer.Option(help="Subject model: zoo:NAME, tl:NAME, hf:NAME-OR-FOLDER.")] = None,
        data: Annotated[str | None, typer.Option(help="Dataset: a name, a file or a folder.")] = None,
        dictionary: Annotated[str | None, typer.Option(help="A run of 'sae', or a folder in SAELens's layout.")] = None,
        device: options.Device = "auto",
        dtype: options.Dtype = None,
        device_map: options.DeviceMap = None,
        seed: Annotated[int | None, typer.Option(help="Of every random choice; 0 if not given.")] = None,
        config: Annotated[Path | None, typer.Option(help="YAML file; see docs/configuration.md.")] = None,
        set_: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="KEY=VALUE", help="An option from the list below; repeatable."),
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Run folder; a fresh one under runs/ if not given.")] = None,
        json: options.Json = False,
    ) -> None:
        run_plugin(
            plugin.name,
            json=json,
            store=store,
            model=model,
            data=data,
            dictionary=dictionary,
            device=None if device == "auto" else device,
            dtype=dtype,
            device_map=device_map,
            seed=seed,
            config=config,
            settings=set_ or [],
            out=out,
        )

    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(plugin.name, help=plugin.help, epilog=options_text(plugin))(run)
    return typer.main.get_command(single)


def options_text(plugin: type[Plugin]) -> str:
    """State every option of a plugin: what it is, unit, range and default."""
    from dataclasses import MISSING

    from rich.markup import escape

    from workbench.configuration import fields, write_value

    lines = [f"Needs: {plugin.needs}.", "Options for --set:"]
    for field in fields(plugin.Config):
        facts = [field.type_name, field.range, f"in {field.option.unit}" if field.option.unit else ""]
        default = "required" if field.default is MISSING else "default nothing"
        if field.default is not MISSING and field.default is not None:
            default = f"default {write_value(field.default)}"
        lines.append(f"{field.key}: {field.option.help} ({'; '.join(fact for fact in [*facts, default] if fact)})")
    return escape("\n\n".join(lines))  # else rich would take [a, b] for a style


def run_plugin(name: str | None, *, json: bool = False, settings: list[str] | None = None, **given: Any) -> None:
    """Run, and print where the result is and its metrics."""
    from workbench.configuration import parse_setting
    from workbench.execution import run

    log_to_terminal()
    result = run(name, set=dict(parse_setting(setting) for setting in settings or []), **given)
    if result.folder is None:  # one of several processes, and not the first
        return
    if json:
        print_json(summary(result))
        return
    for key, metric in result.metrics.items():
        interval = f"  [{metric.lo:.4g}, {metric.hi:.4g}]" if metric.lo is not None and metric.hi is not None else ""
        typer.echo(f"{key:32s} {metric.value:.6g} {metric.unit}{interval}")
    typer.echo(f"{result.folder}/report.html")


def summary(result: Result) -> dict[str, Any]:
    """Return folder, identity and metrics of a run as plain values."""
    from workbench.runs import load_run

    assert result.folder is not None
    metrics = {key: {"value": m.value, "unit": m.unit, "lo": m.lo, "hi": m.hi} for key, m in result.metrics.items()}
    return {"folder": str(result.folder), "identity": load_run(result.folder).identity, "metrics": metrics}
