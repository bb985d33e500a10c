"""The live progress, on a terminal that records what it is sent."""

import io

from hyperflux_cli.display import plain_console, print_table, progress
from rich.console import Console

from hyperflux.runs.schema import EpochRow

ROW = EpochRow(7, "pruning", 0.25, 0.2, 1.5, 1e-3, 1e-3, 0.5, 0.6, 0.97, 12, 3)


def test_a_terminal_sees_epoch_stage_density_pressure_and_accuracy():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with progress(20, console, quiet=False) as observe:
        observe(ROW)
    shown = console.file.getvalue()
    for figure in ("pruning", "7/20", "density 0.2500 (target 0.2000)", "pressure 1.5", "accuracy 0.9700"):
        assert figure in shown


def test_a_pipe_gets_a_plain_line_an_epoch_and_nothing_when_quiet(capsys):
    for quiet, expected in (
        (False, "epoch  7/20  pruning   density 0.2500 (target 0.2000)  pressure 1.5  accuracy 0.9700\n"),
        (True, ""),
    ):
        with progress(20, Console(file=io.StringIO()), quiet) as observe:
            observe(ROW)
        assert capsys.readouterr().out == expected


def printed(*arguments, **settings):
    console = Console(file=io.StringIO(), width=30, markup=False)
    print_table(console, *arguments, **settings)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_table_has_words_to_the_left_and_numbers_to_the_right():
    rows = [("fc1", "10", "a"), ("[b]long", "2,000", "bc")]
    assert printed(("layer", "weights", "note"), rows) == [
        "layer    weights  note",
        "fc1           10     a",
        "[b]long    2,000    bc",
    ]
    assert printed(("weights", "layer"), [("7", "fc1")], words=("layer",)) == ["weights  layer", "      7  fc1"]
    assert printed((), [("seconds", "1.5"), ("left", "24 of 480")]) == ["seconds  1.5", "left     24 of 480"]


def test_a_table_that_does_not_wrap_has_one_line_per_row():
    rows = [("fc1", "a note that is wider than the console")]
    assert len(printed(("layer", "note"), rows)) > 2
    _, line = printed(("layer", "note"), rows, wrap=False)
    assert line.endswith("…")


def test_a_pipe_cuts_no_table_and_columns_says_how_wide_it_is(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = tuple(f"a column of {number}" for number in range(9))
    print_table(plain_console(), wide, [wide])
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[:9] == line.split("  ")[:9] == list(wide)
    monkeypatch.setenv("COLUMNS", "40")
    print_table(plain_console(), wide, [wide])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40
