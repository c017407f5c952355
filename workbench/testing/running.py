"""What must hold of a plugin's runs: described, repeatable, kept, rendered, of no machine."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest

import workbench as wb
from workbench.errors import UserError
from workbench.plugin import CaptureDefault
from workbench.progress import Ticker
from workbench.results import Result
from workbench.runs import Run, identity_of, load_run
from workbench.testing.comparing import KINDS, description_of, differences
from workbench.testing.declared import DeclaredChecks, imports_of
from workbench.testing.pages import HOSTILE, Page, hostile

QUICK_CAPTURE = CaptureDefault("zoo:calendar", "calendar", ("blocks.*.hook_resid_post",), rows=400)
SHOWN = 3


@dataclass(frozen=True)
class Finished:
    """A run that nothing interrupted.

    Attributes
    ----------
    made : Result
        As the plugin returned it.
    run : Run
        As it lies on disk.
    steps : int
        How often progress was told.
    """

    made: Result
    run: Run
    steps: int


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Write down what each step of a progress bar adds."""
    seen: list[int] = []
    advance: Callable[[Ticker, int], None] = Ticker.advance

    def counting(self: Ticker, n: int = 1) -> None:
        seen.append(n)
        advance(self, n)

    with mock.patch.object(Ticker, "advance", counting):
        yield seen


class RunningChecks(DeclaredChecks):
    """Checks of a quick run; it is made once for all of them."""

    capture: ClassVar[CaptureDefault] = QUICK_CAPTURE
    model: ClassVar[str | None] = None
    data: ClassVar[str | None] = None
    dictionary: ClassVar[str | None] = None
    varies: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture(scope="class")
    @classmethod
    def inputs(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
        """What the plugin reads, as on the command line: ``store``, ``model``, ``data``, ``dictionary``.

        A store is captured where the plugin needs one. Override it to make other inputs.
        """
        given = {"model": cls.model, "data": cls.data, "dictionary": cls.dictionary}
        found = {name: value for name, value in given.items() if value is not None}
        if cls.registered().needs.store:
            capture, folder = cls.capture, tmp_path_factory.getbasetemp() / f"acts-{identity_of(asdict(cls.capture))}"
            wb.capture(  # one that another plugin's checks captured is used again
                capture.model,
                data=capture.data,
                hooks=list(capture.hooks),
                rows=capture.rows,
                out=folder,
                device="cpu",
                **capture.options,
            )
            found["store"] = str(folder)
        return found

    @classmethod
    def run(cls, inputs: dict[str, str], out: Path, seed: int = 0, **options: Any) -> Result:
        """Run the plugin with its quick options."""
        result: Result = wb.run(cls.name(), device="cpu", seed=seed, set={**cls.options, **options}, out=out, **inputs)
        return result

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
        """Make the run that the checks look at."""
        plugin, made = cls.registered(), []
        run = plugin.run

        def keeping(self: Any, context: Any) -> Result:
            made.append(run(self, context))
            return made[-1]

        with mock.patch.object(plugin, "run", keeping), counted_steps() as steps:
            try:
                result = cls.run(inputs, tmp_path_factory.mktemp("conformance") / "run")
            except UserError as error:  # in one line, for every check that looks at the run says it
                refused = f"the run with options = {cls.options} on {inputs} was refused: {error}"
                pytest.fail(f"{refused}; give the test class other `options`, or another `capture`", pytrace=False)
        assert result.folder is not None
        return Finished(made[-1], load_run(result.folder), len(steps))

    def test_listing_it_imports_nothing_heavy(self) -> None:
        """Its module is imported whenever plugins are listed: torch and the like are imported where they are used."""
        module = self.registered().__module__
        heavy = imports_of(module)
        assert not heavy, (
            f"importing {module} imports {', '.join(heavy)}: import that in `run`, or where only `run` imports it"
        )

    def test_everything_in_the_result_is_described(self, finished: Finished) -> None:
        """There are numbers; each metric, table, array, figure and section says what it is."""
        result = finished.made
        assert result.metrics or result.tables or result.arrays, "the result has no metric, no table and no array"
        for kind in ("metrics", "tables", "arrays", "figures", "weights", "files"):
            for name, part in getattr(result, kind).items():
                assert description_of(part).strip(), f"{kind} {name} has no description"
        for name, metric in result.metrics.items():
            assert metric.unit == metric.unit.strip(), f"metric {name}: unit {metric.unit!r}"

    def test_the_result_comes_back_from_disk_as_it_was(self, finished: Finished, tmp_path: Path) -> None:
        """What was saved is loaded equal, and saved again gives the same files."""
        loaded = finished.run.result
        lost = differences(loaded, finished.made, same_types=False)
        assert not lost, f"loaded, the result is another than the one that `run` returned: {told(lost)}"
        loaded.save(tmp_path / "again")
        for path in (tmp_path / "again").rglob("*"):
            if path.is_file():
                first = finished.run.folder / path.relative_to(tmp_path / "again")
                assert path.read_bytes() == first.read_bytes(), f"{first} and what is saved from it differ"

    def test_the_same_seed_gives_the_same_numbers(
        self, inputs: dict[str, str], finished: Finished, tmp_path: Path
    ) -> None:
        """Run again elsewhere, metrics, tables, arrays, weights and figures are the same to the last bit."""
        again = self.run(inputs, tmp_path / "again")
        other = differences(again, finished.run.result, self.varies)
        assert not other, (
            "the same seed gave another result: draw from context.rng(name) and context.torch_rng(name) alone, and "
            f"name in `varies` what is measured time: {told(other)}"
        )
        assert load_run(tmp_path / "again").identity == finished.run.identity

    def test_another_seed_is_another_run(self, inputs: dict[str, str], finished: Finished, tmp_path: Path) -> None:
        """The seed is recorded, and decides the identity."""
        with mock.patch.object(self.registered(), "run", return_value=Result()):
            self.run(inputs, tmp_path / "seed", seed=1)
        other = load_run(tmp_path / "seed")
        assert (other.manifest["seed"], other.manifest["config"]) == (1, finished.run.manifest["config"])
        assert other.identity != finished.run.identity, "another seed, but the same identity"

    def test_the_report_is_whole_in_itself(self, finished: Finished) -> None:
        """One page that asks nothing of the network and shows every number, table and figure."""
        text = finished.run.report.read_text(encoding="utf-8")
        page = Page.of(text)
        assert not page.outside, f"the report needs {page.outside}"
        assert "This report knows no sections of kind" not in text, "a section is of no kind in workbench.report.KINDS"
        assert "Not of the form that kind" not in text, "a section's data are not of the form that its kind needs"
        result, shown = finished.run.result, letters(page.text)
        kinds: tuple[Mapping[str, Any], ...] = (result.metrics, result.tables, result.figures)
        for kind in kinds:
            for name, part in kind.items():
                assert letters(part.description) in shown, f"the report does not show what {name} is"

    def test_the_report_escapes_html(self, finished: Finished, tmp_path: Path) -> None:
        """Text from data, descriptions and options is shown as text, whatever it holds."""
        from workbench.report import write_report

        before = Page.of(finished.run.report.read_text(encoding="utf-8"))
        hostile(finished.run.result).save(tmp_path)
        manifest = {**finished.run.manifest, "help": HOSTILE, "config": {"option": HOSTILE}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        after = Page.of(write_report(tmp_path).read_text(encoding="utf-8"))
        assert after.scripts == before.scripts, "text of the result became a script of the page"
        assert not after.handlers, f"text of the result became attributes of the page: {after.handlers}"
        assert HOSTILE in after.text, "the text is lost"

    def test_nothing_of_this_machine_is_in_the_result(self, inputs: dict[str, str], finished: Finished) -> None:
        """Results are compared and passed on: no folder of this machine is in them, nor decides the identity."""
        places = {str(Path.home()), str(finished.run.folder), str(finished.run.folder.parent)}
        places |= {str(Path(inputs[name]).parent) for name in ("store", "dictionary") if "/" in inputs.get(name, "")}
        places -= {"/", "."}
        for where, text in texts_of(finished.run.result):
            named = [place for place in places if place in text]
            assert not named, f"{where} holds the path {named[0]}: leave folders of this machine out of the result"

    def test_nothing_is_pickled(self, finished: Finished) -> None:
        """No file of the run can run code when it is loaded."""
        found = pickles(finished.run.folder)
        assert not found, f"{found[0]} holds a pickle: add what it holds as a table, an array, weights or JSON"


def told(differences: list[str]) -> str:
    """Write the first few differences, and how many there are."""
    more = len(differences) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def letters(text: str) -> str:
    """Keep letters and digits: a page may break words and spell signs as it likes."""
    return "".join(letter for letter in text if letter.isalnum())


def texts_of(result: Result) -> Iterator[tuple[str, str]]:
    """Yield every text in a result, and where it is."""
    for kind in KINDS:
        for name, part in getattr(result, kind).items():
            yield f"the description of {kind} {name}", description_of(part)
    for name, table in result.tables.items():
        for column in table.columns:
            if table[column].dtype.kind not in "biuf":
                yield f"table {name}, column {column}", "\n".join(map(str, table[column]))
    for name, array in result.arrays.items():
        for coordinate in array.coords:
            yield f"array {name}, coordinate {coordinate}", "\n".join(map(str, array[coordinate].values.ravel()))
    for name, weights in result.weights.items():
        yield f"what is known of weights {name}", json.dumps(weights.config)
    for name, file in result.files.items():
        yield f"file {name}", file.data.decode("utf-8", "replace")
    for name, section in result.sections.items():
        yield f"section {name}", json.dumps(section.data, ensure_ascii=False)


def pickles(folder: Path) -> list[str]:
    """Return the files below a folder that hold a pickle."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and holds_pickle(path)]


def holds_pickle(path: Path) -> bool:
    """True for a pickle, a zip file with one in it (as torch writes), or a NumPy file of objects."""
    with path.open("rb") as file:
        start = file.read(256)
    if re.match(rb"\x80[\x02-\x05]", start):
        return True
    if start.startswith(b"\x93NUMPY"):
        return re.search(rb"'descr': *'\|?O'", start) is not None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = {name: archive.open(name).read(256) for name in archive.namelist()}
        return any(name.endswith(".pkl") or re.search(rb"'descr': *'\|?O'", head) for name, head in inside.items())
    return False
