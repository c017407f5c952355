"""``workbench plugins``: what is installed, and what is broken."""

from __future__ import annotations

from workbench.cli import options
from workbench.cli.printing import print_json, print_table
from workbench.registry import registry


def plugins(json: options.Json = False) -> None:
    """List plugins, subject sources and datasets with version, origin and needs, and what is broken."""
    found = registry()
    rows = [
        ("plugin", name, offer.item.version, str(offer.origin), str(offer.item.needs), offer.item.help)
        for name, offer in sorted(found.plugins.items())
    ]
    rows += [
        ("model", f"{name}:", "", str(offer.origin), "", offer.item.help)
        for name, offer in sorted(found.subjects.items())
    ]
    rows += [
        ("data", name, "", str(offer.origin), "", offer.item.help) for name, offer in sorted(found.datasets.items())
    ]
    columns = ("kind", "name", "version", "origin", "needs", "help")
    broken = [(item.origin.entry_point, str(item.origin), item.error) for item in found.broken]
    if json:
        offers = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json(
            {
                "offers": offers,
                "broken": [dict(zip(("entry_point", "origin", "error"), row, strict=True)) for row in broken],
            }
        )
        return
    if not rows and not broken:
        print_table("No plugin is installed: run 'pip install -e .' in the checkout.", (), ())
    print_table("", columns, rows)
    if broken:
        print_table("\nBroken", ("entry point", "origin", "error"), broken)
