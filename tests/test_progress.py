"""Progress tells the rate of this process, not of the one that was interrupted."""

import logging

import pytest

from workbench.progress import Ticker, progress


def test_a_line_tells_rate_and_time_left_of_what_was_done_now():
    ticker = Ticker(1000, "rows", "train", logging.getLogger("test"), done=500)
    ticker.advance(100)
    ticker.update(loss=0.25)
    assert ticker.line(seconds=10) == "train: 600 rows, 10.0/s, 60 % done, 40 s left  loss 0.25"


def test_without_a_total_there_is_no_time_left():
    ticker = Ticker(None, "steps", "search", logging.getLogger("test"), done=0)
    ticker.advance(7)
    assert ticker.line(seconds=2) == "search: 7 steps, 3.5/s"


def test_without_a_terminal_lines_go_to_the_log(monkeypatch, caplog):
    monkeypatch.setattr("workbench.progress.SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "workbench"), progress(3, "rows", "work") as ticker:
        for _ in range(3):
            ticker.advance()
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "work: 1 rows",
        "work: 2 rows",
        "work: 3 rows",
    ]


def test_an_error_inside_the_loop_passes_through():
    with pytest.raises(ZeroDivisionError), progress(3) as ticker:
        ticker.advance(1 // 0)


def test_in_a_notebook_one_output_is_replaced_again_and_again(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    class Notebook:
        is_jupyter, is_terminal = True, False

        def __init__(self, file):
            pass

    monkeypatch.setattr("workbench.progress.Console", Notebook)
    monkeypatch.setattr("workbench.progress.SECONDS_BETWEEN_DRAWINGS", 0.0)
    monkeypatch.setattr(display, "display", lambda *data, **options: Handle())
    with progress(4, "rows", "a < b") as ticker:
        ticker.advance(2)
        ticker.advance(2)
    assert '<progress value="2" max="4">' in shown[1]["text/html"]
    assert "a &lt; b: 4 rows" in shown[-1]["text/html"]
    assert "100 % done" in shown[-1]["text/plain"]
