"""Options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Device = Annotated[str, typer.Option(help="auto (CUDA if there is one, else CPU), cpu or cuda:N.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Load the model as float32, float64, float16 or bfloat16; the checkpoint's if not given."),
]
DeviceMap = Annotated[
    str | None, typer.Option(help="Spread a large model over devices, as accelerate understands it: auto.")
]
Out = Annotated[Path | None, typer.Option(help="Folder to write.")]
