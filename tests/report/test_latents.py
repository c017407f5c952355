"""The data of the page of latents, and what the template shows of it."""

from dataclasses import replace

import pytest

from workbench.report import LatentContext, LatentPage, latents_section
from workbench.report.environment import pieces
from workbench.report.sections import rendering

CONTEXT = LatentContext("json.decoder", ["def", " f", "(", "):\n", "    "], [0.0, 2.0, 0.0, 0.0, 0.5], 1)
PAGE = LatentPage(
    index=7,
    density=0.0123456,
    mean_activation=1.0,
    max_activation=2.0,
    histogram_counts=[9, 0, 1],
    histogram_edges=[0.0, 1.0, 1.5, 2.0],
    contexts=[CONTEXT],
    top_tokens=[(" f", 2.5), ("x", 1.0)],
    bottom_tokens=[("y", -1.25)],
    labels=[("kind.name", 0.9), ("position.first", 0.75)],
    neighbours=[(9, 0.5), (1000, 0.25)],
)
SILENT = LatentPage(9, 0.0, float("nan"), float("nan"), [], [], [], [], [], [], [])


def prepared(*pages):
    return rendering("latents", latents_section(pages, n_latents=2048)).values["latents"]


def test_data_is_plain_rounded_json_without_nan():
    data = latents_section([PAGE, SILENT], n_latents=2048)
    assert data["latents"][0]["density"] == 0.01235
    assert data["latents"][1]["mean_activation"] is None
    assert data["n_latents"] == 2048


@pytest.mark.parametrize(
    ("page", "says"),
    [
        pytest.param(replace(PAGE, histogram_edges=[0.0, 1.0]), "latent 7: 3 bins of a histogram need 4", id="edges"),
        pytest.param(replace(PAGE, contexts=[replace(CONTEXT, peak=5)]), "peak 5", id="peak outside"),
        pytest.param(replace(PAGE, contexts=[replace(CONTEXT, tokens=["a"])]), "1 tokens, 5 activations", id="lengths"),
    ],
)
def test_lists_that_do_not_fit_are_refused(page, says):
    with pytest.raises(ValueError, match=says):
        latents_section([page], n_latents=8)


def test_a_latent_has_one_page():
    with pytest.raises(ValueError, match=r"\[7\] have more than one page"):
        latents_section([PAGE, PAGE], n_latents=8)


def test_the_peak_is_marked_and_shades_follow_activation():
    runs = prepared(PAGE)[0]["contexts"][0]["runs"]
    assert [(run["tokens"], run["level"], run["peak"]) for run in runs] == [
        (["def"], 0, False),
        ([" f"], 20, True),
        (["(", "):\n"], 0, False),
        (["    "], 5, False),
    ]


def test_only_neighbours_with_a_page_are_links():
    assert [(index, linked) for index, _, linked in prepared(PAGE, SILENT)[0]["neighbours"]] == [
        (9, True),
        (1000, False),
    ]


def test_a_silent_latent_has_no_histogram_and_no_division_by_zero():
    silent = prepared(SILENT)[0]
    assert silent["histogram"] is None
    assert silent["density_width"] == 0
    shown = replace(PAGE, max_activation=0.0, contexts=[replace(CONTEXT, activations=[0.0] * 5)])
    assert {run["level"] for run in prepared(shown)[0]["contexts"][0]["runs"]} == {0}


def test_bars_are_relative_to_the_largest_effect():
    page = prepared(PAGE)[0]
    assert page["top_tokens"] == [(" f", "2.50", 100.0), ("x", "1.00", 40.0)]
    assert page["bottom_tokens"] == [("y", "−1.25", 50.0)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param(" x", " x", id="a space within a text stays"),
        pytest.param("   ", "···", id="spaces alone"),
        pytest.param("a\n\tb", "a↵⇥b", id="line and tab"),
        pytest.param("", "∅", id="empty"),
        pytest.param("\x00\x1b", "⟨0000⟩⟨001B⟩", id="control characters"),
        pytest.param("\u202egnp", "⟨202E⟩gnp", id="turned text"),
        pytest.param("\ud800", "⟨D800⟩", id="half a character"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text, shown):
    assert "".join(part for _, part in pieces(text)) == shown


def test_a_token_that_stands_alone_shows_its_spaces():
    assert pieces(" x", alone=True) == [(True, "·"), (False, "x")]
