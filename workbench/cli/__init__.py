"""The command line: a module per command, each light until it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from workbench.errors import UserError

DONE, FAULT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 1 done but damage was found, jobs failed, or a fault of ours (with traceback); 2 wrong input;
    130 interrupted, resumable.
    """
    import click
    import typer

    from workbench.cli.app import app

    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if arguments is None else list(arguments), prog_name="workbench", standalone_mode=False
        )
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return WRONG_INPUT
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; the same command continues", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except Exception as error:
        if not is_wrong_input(error):
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return WRONG_INPUT
    return code if isinstance(code, int) else DONE


def is_wrong_input(error: Exception) -> bool:
    """True for errors that a person can mend: ours, and those of the ground-floor rooms that have been imported."""
    rooms = (
        ("workbench.cache", "StoreError"),
        ("workbench.probes", "ProbeError"),
        ("workbench.kernels.errors", "KernelError"),
    )
    kinds = [getattr(sys.modules[room], name) for room, name in rooms if room in sys.modules]
    return isinstance(error, (UserError, *kinds))
