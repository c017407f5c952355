"""The root of the command line."""

from __future__ import annotations

import typer

from workbench.cli import (
    batch,
    capture,
    demo,
    dictionary,
    encode,
    kernels,
    models,
    plugin,
    plugins,
    report,
    run,
    store,
    zoo,
)

app = typer.Typer(
    help="One workbench for mechanistic interpretability: hook, cache, train, probe and intervene.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("capture")(capture.capture)
app.add_typer(run.app, name="run")
app.command("batch")(batch.batch)
app.command("encode")(encode.encode)
app.command("reconstruct")(encode.reconstruct)
app.command("plugins")(plugins.plugins)
app.command("models")(models.models)
app.add_typer(store.app, name="store")
app.add_typer(dictionary.app, name="dictionary")
app.command("report")(report.report)
app.add_typer(zoo.app, name="zoo")
app.add_typer(plugin.app, name="plugin")
app.add_typer(kernels.app, name="kernels")
