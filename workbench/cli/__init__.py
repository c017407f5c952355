"""The command line: a module per command, each light until it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from workbench.errors import is_wrong_input

DONE, FAULT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 1 done but damage was found, jobs failed, or a fault of ours (with traceback); 2 wrong input;
    130 interrupted, resumable.
    """
    # Before torch is imported: on a busy machine, threads that spin while they wait take cores from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    try:
        import typer

        from workbench.cli.app import app

        command = typer.main.get_command(app)
        words = None if arguments is None else list(arguments)
        code = command.main(args=words, prog_name="workbench", standalone_mode=False)
    except KeyboardInterrupt:  # first: it may come before there is a typer
        code = INTERRUPTED
    except typer.Exit as leave:
        code = leave.exit_code
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "show", None)
        if show is not None:  # a complaint of click's, which newer typers carry inside
            show()
        elif is_wrong_input(error):
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
        else:
            raise
        return WRONG_INPUT
    if code == INTERRUPTED:  # newer typers make this number of Ctrl-C themselves
        print("interrupted; the same command continues", file=sys.stderr)  # noqa: T201
    return code if isinstance(code, int) else DONE
