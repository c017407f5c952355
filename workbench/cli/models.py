"""``workbench models``: addresses of subject models, or the hook points of one."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.printing import print_json, print_table
from workbench.registry import registry


def models(
    address: Annotated[str | None, typer.Argument(help="List the hook points of this subject model.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    json: options.Json = False,
) -> None:
    """List the kinds of subject models, or all hook points of one."""
    if address is None:
        rows = [
            (f"{scheme}:", offer.item.help, ", ".join(offer.item.names()))
            for scheme, offer in sorted(registry().subjects.items())
        ]
        columns = ("address", "what it is", "names")
        if json:
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            print_table("", columns, rows)
        return
    from workbench.subjects.sources import load_subject

    subject = load_subject(address, device=device, dtype=dtype, device_map=device_map)
    points = [
        (p.name, "[" + ", ".join(f"{axis} {size or '·'}" for axis, size in zip(p.axes, p.shape, strict=True)) + "]")
        for p in subject.hook_points.values()
    ]
    if json:
        shapes = [{"name": p.name, "axes": p.axes, "shape": p.shape} for p in subject.hook_points.values()]
        print_json(
            {
                "address": address,
                "fingerprint": subject.fingerprint(),
                "dtype": str(subject.dtype),
                "hook_points": shapes,
            }
        )
        return
    typer.echo(repr(subject))
    print_table("", ("hook point", "axes"), points)
