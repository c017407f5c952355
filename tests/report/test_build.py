"""The report as a whole: complete, safe, the same each time, also from unusual folders."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from workbench.errors import UserError
from workbench.report import LatentContext, LatentPage, latents_section, new_figure, write_report
from workbench.report.tables import MAX_ROWS
from workbench.results import Result

HOSTILE = "</script></template></style>'\"><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.inside = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        self.inside.append(f"/{tag}")

    def handle_data(self, data):
        if not self.inside or self.inside[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder):
    return Page(write_report(folder).read_text("utf-8"))


@pytest.fixture(scope="module")
def sae_page(sae_run):
    return page_of(sae_run)


def test_it_says_what_was_run_on_what_and_what_came_out(sae_page):
    for words in (
        "Which sparse features does a hook point hold", "zoo:pycode", "python-stdlib", "21 November 2026, 09:41 UTC",
        "3 min 12 s", "torch 2.13.0", "0.871", "0.865 to 0.877", "nats", "Loss and dead latents over the training.",
        "train.lr", "learning rate", "3×10⁻⁴", "workbench run sae --store", "A row for each evaluation.",
        "latent 2\u202f048",
    ):  # fmt: skip
        assert words in sae_page.text


def test_it_is_complete_in_itself(sae_page):
    assert not sae_page.all("link")
    sources = [attributes["src"] for attributes in sae_page.all("img")]
    assert len(sources) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(attributes["href"].startswith("#") for attributes in sae_page.all("a"))


def test_its_policy_allows_its_own_script_and_nothing_else(sae_run):
    html = write_report(sae_run).read_text("utf-8")
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [meta["content"] for meta in Page(html).all("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


def test_latents_can_be_browsed_and_the_first_are_there_without_a_script(sae_page):
    assert sum("data-latent" in attributes for attributes in sae_page.all("article")) == 40
    assert len(sae_page.all("template")) == 35
    assert sum("data-search" in attributes for attributes in sae_page.all("li")) == 40


def test_the_same_folder_gives_the_same_bytes_and_no_leftovers(probe_run):
    first = write_report(probe_run).read_bytes()
    (probe_run / "report.html").unlink()
    assert write_report(probe_run).read_bytes() == first
    assert not [path for path in probe_run.iterdir() if path.name.endswith(".part")]


def test_tables_have_units_exact_values_and_words_for_what_is_undefined(probe_run):
    html = write_report(probe_run).read_text("utf-8")
    assert '<th scope="col" class="number">k <span class="unit">neurons</span></th>' in html
    assert '<td class="number" data-value="">–</td>' in html
    assert ">yes</td>" in html
    assert html.count('data-value="0.5">0.5000</td>') == 120


def test_pictures_keep_their_colours_and_drawings_may_be_turned(sae_page, probe_run):
    assert {attributes["class"] for attributes in sae_page.all("img")} == {"drawing"}
    assert {attributes["class"] for attributes in page_of(probe_run).all("img")} == {"picture"}


def hostile_result():
    result = Result()
    result.add_metric("m", 1.0, unit=HOSTILE, description=HOSTILE, lo=0, hi=2)
    result.add_table("t", pd.DataFrame({HOSTILE: [HOSTILE]}), description=HOSTILE, units={HOSTILE: HOSTILE})
    figure, (axes,) = new_figure(width_in=2, height_in=2)
    axes.set_title(HOSTILE.replace("$", ""))
    result.add_figure("f", figure, description=HOSTILE)
    context = LatentContext(HOSTILE, [HOSTILE, "quiet", HOSTILE], [1.0, 0.0, 0.0], 0)
    effects = [(HOSTILE, 1.0)]
    page = LatentPage(0, 0.5, 1.0, 1.0, [1], [0.0, 1.0], [context], effects, effects, effects, [(0, 1.0)])
    data = latents_section([page], n_latents=1, label_measure=HOSTILE, token_measure=HOSTILE)
    result.add_section("l", "latents", data, HOSTILE)
    result.add_section("text", "text", [HOSTILE], HOSTILE)
    result.add_section("other", HOSTILE, {HOSTILE: HOSTILE}, HOSTILE)
    return result


def test_text_from_data_is_shown_and_never_run(tmp_path):
    hostile_result().save(tmp_path)
    manifest = {"plugin": HOSTILE, "help": HOSTILE, "config": {HOSTILE: HOSTILE}, "command": HOSTILE, "store": HOSTILE}
    manifest |= {"options": {HOSTILE: {"help": HOSTILE, "unit": HOSTILE}}, "versions": {HOSTILE: HOSTILE}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(tmp_path)
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert [attributes["class"] for attributes in page.all("img")] == ["drawing"]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 25


def test_half_characters_do_not_stop_it(tmp_path):
    result = Result()
    result.add_section("note", "text", ["\ud800"], "d")
    result.save(tmp_path)
    assert "\\ud800" in page_of(tmp_path).text


def test_an_empty_result_without_a_manifest_has_a_report(tmp_path):
    folder = tmp_path / "probe-3.part"  # as while the run is being finished
    Result().save(folder)
    page = page_of(folder)
    assert "probe-3" in page.text
    assert ".part" not in page.text


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        pytest.param("hologram", {"a": 1}, "knows no sections of kind “hologram”", id="unknown kind"),
        pytest.param("latents", {"a": 1}, "Not of the form that kind “latents” needs", id="no latents"),
        pytest.param("latents", {"latents": [{"index": 1}], "n_latents": 1}, "Not of", id="half a latent"),
        pytest.param("text", {"a": 1}, "Not of the form that kind “text” needs", id="no text"),
    ],
)  # fmt: skip
def test_sections_that_it_cannot_render_are_shown_as_data(kind, data, says, tmp_path):
    result = Result()
    result.add_section("odd", kind, data)
    result.save(tmp_path)
    text = page_of(tmp_path).text
    assert says in text
    assert '"' + next(iter(data)) + '"' in text


def test_a_long_table_is_cut_and_says_so(tmp_path):
    result = Result()
    result.add_table("long", pd.DataFrame({"row": np.arange(MAX_ROWS + 5)}), description="d")
    result.save(tmp_path)
    page = page_of(tmp_path)
    assert len(page.all("tr")) == MAX_ROWS + 1
    assert "The first 2\u202f000 of 2\u202f005 rows; all are in tables/long.parquet" in page.text


def test_a_figure_of_many_points_is_embedded_as_pixels(tmp_path):
    figure, (axes,) = new_figure(width_in=2, height_in=2)
    points = np.random.default_rng(0).random((2, 20000))
    axes.scatter(*points, s=1)
    result = Result()
    result.add_figure("cloud", figure, description="d")
    result.save(tmp_path)
    [image] = page_of(tmp_path).all("img")
    assert image["src"].startswith("data:image/png;base64,")


def test_a_folder_without_a_result_and_a_damaged_manifest_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        write_report(tmp_path)
    Result().save(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
