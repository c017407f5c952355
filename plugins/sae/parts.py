"""What is told apart by hook point or by attention head: explained variance, and which of them latents belong to."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from workbench.cache import Store
from workbench.dictionary import Dictionary
from workbench.plugins.sae.attribution import decoder_shares, parts_of, score_parts
from workbench.plugins.sae.figures import share_histogram
from workbench.plugins.sae.metrics import Reconstruction, Resamples, explained
from workbench.results import Result


def add_parts(
    result: Result, store: Store, ways: dict[str, Dictionary], found: Reconstruction, resamples: Resamples
) -> None:
    """Add what there is to say of each hook point, or each head, where there are several.

    Parameters
    ----------
    result : Result
        Added to.
    store : Store
        Activations.
    ways : dict of str to Dictionary
        ``dictionary``, and ``random``, the control.
    found : Reconstruction
        Of held-out rows.
    resamples : Resamples
        Of their documents.
    """
    dictionary = ways["dictionary"]
    if len(dictionary.hooks_out) > 1:
        add_hook_points(result, dictionary, found, resamples)
    written, read = parts_of(store, dictionary.hooks_out), parts_of(store, dictionary.hooks_in)
    if written is not None:
        shares = {name: decoder_shares(way.W_dec, written) for name, way in ways.items()}
        result.add_array(
            "decoder-shares",
            xr.DataArray(shares["dictionary"], dims=("latent", "part"), coords={"part": written.names}),
            description=f"Length of each latent's decoder row in each {written.kind}, as a share of their sum.",
        )
        result.add_figure(
            "decoder-shares",
            share_histogram({name: each.max(1) for name, each in shares.items()}, written.kind, len(written.names)),
            description=f"How far each latent belongs to one {written.kind}: the largest share of its decoder row; 1 "
            f"for one {written.kind} alone, 1 / {len(written.names)} for all alike.",
        )
    if read is not None and dictionary.normalisation == "none":
        result.add_array(
            "score-parts",
            xr.DataArray(
                score_parts(store, dictionary, found.codes, read),
                dims=("latent", "part"),
                coords={"part": read.names},
            ),
            description=f"What each {read.kind} adds to a latent's score, mean over the held-out rows on which it is "
            "active, in units of its activation; biases left out.",
        )


def add_hook_points(result: Result, dictionary: Dictionary, found: Reconstruction, resamples: Resamples) -> None:
    """Add a table of explained variance at each hook point: of all together the largest ones have the most."""
    rows = []
    for number, hook_point in enumerate(dictionary.hooks_out):
        row: dict[str, object] = {"hook point": hook_point}
        for name, sums in found.ways.items():
            interval = explained(resamples, sums.squared_error[:, number], found.variation[:, number])
            row[name] = interval.value
            if name == "dictionary":
                row |= {"lo": interval.lo, "hi": interval.hi}
        rows.append(row)
    result.add_table(
        "hook-points",
        pd.DataFrame(rows),
        description="Explained variance of held-out rows at each hook point, with its 95 % interval over documents, "
        "beside that of the random dictionary and of the training mean.",
    )
