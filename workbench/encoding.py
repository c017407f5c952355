"""A dictionary over a store: whether the two belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import UserError, nearest
from workbench.provenance import recorded_model

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.dictionary import Dictionary


def check_dictionary(store: Store, dictionary: Dictionary, *, writes: bool = True) -> None:
    """Refuse a dictionary of another subject, of hook points that the store does not hold, or of another width.

    Parameters
    ----------
    store : Store
        Activations.
    dictionary : Dictionary
        To be used on them.
    writes : bool
        Whether what it reconstructs must be in the store too.

    Raises
    ------
    UserError
        Naming what differs.
    """
    held = recorded_model(store)
    if dictionary.subject_fingerprint and held.fingerprint and dictionary.subject_fingerprint != held.fingerprint:
        raise UserError(
            f"dictionary {dictionary.address} was trained on {dictionary.subject_address} (fingerprint "
            f"{dictionary.subject_fingerprint[:12]}), but {store.folder} holds activations of "
            f"{held.address} (fingerprint {held.fingerprint[:12]})"
        )
    sides = {
        "reads": (dictionary.hooks_in, dictionary.width),
        "reconstructs": (dictionary.hooks_out, len(dictionary.b_dec)),
    }
    if not writes:
        del sides["reconstructs"]
    for does, (names, width) in sides.items():
        for name in names:
            if name not in store.hook_points:
                raise UserError(
                    f"dictionary {dictionary.address} {does} {name}, which {store.folder} does not hold; nearest: "
                    f"{nearest(name, store.hook_points)}"
                )
        held_width = sum(int(np.prod(store.hook_points[name].shape)) for name in names)
        if held_width != width:
            raise UserError(
                f"dictionary {dictionary.address} {does} {width} numbers a row, but {' + '.join(names)} in "
                f"{store.folder} has {held_width}"
            )
