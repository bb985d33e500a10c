"""The report's page: whole, drawn, safe against what files say, and the same for the same run."""

import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import opened
from crafted import deep, of_channels, subject, tables

from hyperflux import InputError, RunConfig
from hyperflux.report import tables as text_tables
from hyperflux.report.axes import log_ticks, tick_label
from hyperflux.report.formatting import percent
from hyperflux.report.law import Study
from hyperflux.report.markdown import markdown_report
from hyperflux.report.narrative import narrative
from hyperflux.report.page import draw_plots, html_page
from hyperflux.report.run import MAX_POINTS, reported_runs, thinned
from hyperflux.report.timeline import budget_timelines
from hyperflux.runs.driver import execute
from hyperflux.telemetry.columns import SCHEMA

SVG = "{http://www.w3.org/2000/svg}"
EVERY_PLOT = [
    "density",
    "pressure",
    "accuracy",
    "losses",
    "changes",
    "flux",
    "flips",
    "settling",
    "layers",
    "weight-histories",
]
BASE = {
    "dataset": "synthetic",
    "model": "mlp:16-24-4",
    "sparsity": 0.8,
    "dense": {"epochs": 2},
    "pruning": {"epochs": 10, "presence_learning_rate": 1e-2},
    "regrowth": {"epochs": 3},
}
CHANNELS = {"sparsity": None, "gates": "channels", "model": "mlp:16-24-12-4"}
VARIANTS = {
    "default": {},
    "full": {"telemetry": "full"},
    "off": {"telemetry": "off"},
    "magnitude": {"method": "magnitude"},
    "published": {"controller": "published"},
    "from scratch": {"dense": {"epochs": 0}},
    "one layer": {"model": "mlp:16-4"},
    "few steps": {"batch_size": 2000, "pruning": {"epochs": 1}, "regrowth": {"epochs": 0}},
    "channels": {**CHANNELS, "parameters": 0.4},
    "taylor": {**CHANNELS, "flops": 0.4, "gate_inputs": True, "method": "taylor", "telemetry": "off"},
    "N:M": {"sparsity": None, "gates": "2:4"},
}
LEFT_OUT = {
    "off": {"flux", "flips", "settling", "layers", "weight-histories", "changes"},
    "magnitude": {"pressure", "flux", "weight-histories"},
    "taylor": {"pressure", "flux", "flips", "settling", "layers", "weight-histories", "changes"},
    "few steps": None,
}
HOSTILE = '</style><script>alert("$x^2$ _ & |`*")</script>'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of every variant, by its name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in VARIANTS.items():
        execute(RunConfig.from_dict({**BASE, "backend": "numpy", **settings}), folder / name)
    return {name: reported_runs([folder / name])[0] for name in VARIANTS}


class Reader(HTMLParser):
    """Checks that elements nest, and collects figures' SVG, ids, addresses and scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags = [], [], [], set()
        self.feed(text)
        assert self.open == []
        self.svg = {
            figure: ElementTree.fromstring(drawing)
            for figure, drawing in re.findall(r'<figure id="([\w-]+)">.*?(<svg.*?</svg>)', text, re.DOTALL)
        }

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def drawn_inside(svg):
    """How many marks of data have a point within the axes."""

    def places(element):
        for part in element.iter():
            numbers = [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", part.get("d", ""))]
            yield from zip(numbers[::2], numbers[1::2], strict=False)
            if part.tag == f"{SVG}use":
                yield float(part.get("x", 0)), float(part.get("y", 0))
            if part.tag == f"{SVG}image":
                assert float(part.get("width")) > 0
                yield from [(None, None)] * 2

    frames = [list(places(part)) for part in svg.iter() if part.get("class") == "frame"]
    boxes = [(min(x), min(y), max(x), max(y)) for x, y in (zip(*frame, strict=True) for frame in frames)]
    marks = [list(places(part)) for part in svg.iter() if part.get("class") == "data"]
    return sum(
        any(x is None or (a - 1 <= x <= c + 1 and b - 1 <= y <= d + 1) for x, y in mark for a, b, c, d in boxes)
        for mark in marks
        if len(mark) > 1
    )


def checked(text):
    """Read a page and hold it to what every page must be."""
    reader = Reader(text)
    assert "script" not in reader.tags
    assert [address for address in reader.addresses if not address.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert len(set(reader.ids)) == len(reader.ids)
    words = re.sub(r"<[^>]*>", " ", text) + " ".join(re.findall(r' (?:d|x|y|transform)="([^"]*)"', text))
    assert re.findall(r"\b(?:nan|inf)\b|\bNone\b(?! of)", words) == []
    for figure, svg in reader.svg.items():
        assert drawn_inside(svg) >= 1, figure
        labels = [part.text for part in svg.iter(f"{SVG}text")]
        assert len(labels) > 4, (figure, labels)
        assert svg.get("role") == "img"
        assert svg.get("aria-label")
    return reader


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_has_a_page_of_drawn_plots(runs, name):
    reader = checked(html_page([runs[name]]))
    if LEFT_OUT.get(name, set()) is not None:
        own = {"channels"} if runs[name].outcome.channels else set()
        assert set(reader.svg) == (set(EVERY_PLOT) | own) - LEFT_OUT.get(name, set())
    else:
        assert {"density", "accuracy"} <= set(reader.svg)


def test_plots_come_in_the_order_of_the_story(runs):
    assert list(checked(html_page([runs["default"]])).svg) == EVERY_PLOT


def test_what_is_left_out_is_named_with_the_way_to_get_it(runs):
    assert "run with --telemetry light" in html_page([runs["off"]])
    assert "run with --telemetry light" not in html_page([runs["default"]])


def test_runs_stand_side_by_side(runs):
    chosen = [replace(runs[name], label=name) for name in ("default", "published", "magnitude", "off", "one layer")]
    reader = checked(html_page(chosen))
    assert {"density", "pressure", "accuracy", "changes", "final-density"} == set(reader.svg)  # one has no telemetry
    watched = checked(html_page([chosen[0], *chosen[1:3]]))
    assert {*reader.svg, "settling"} == set(watched.svg)
    dots = [part for part in watched.svg["final-density"].iter() if part.get("class") == "data"]
    assert len(dots) == 3


def test_a_page_about_channels_tells_of_channels_and_what_they_cost(runs):
    run = runs["channels"]
    outcome, left = run.outcome, sum(layer.surviving for layer in run.outcome.channels)
    text = markdown_report([run])
    assert "channels to 40 % of the parameters by Hyperflux, seed 0." in text
    assert f"| parameters left | {percent(outcome.parameters_ratio)} | budget 40 % |" in text
    assert f"| FLOPs left | {percent(outcome.flops_ratio)} | of the dense network's |" in text
    assert f"| channels left | {left} | of 36 |" in text
    assert f"{left} of 36 channels are left, and {percent(outcome.parameters_ratio)} of the dense network's" in text
    assert f"the network has {outcome.compact_parameters:,} parameters, " in text
    for layer in outcome.channels:
        assert (
            f"| {layer.name} | {layer.total} | {layer.surviving} | {percent(layer.surviving / layer.total)} |" in text
        )
    assert "| fc1.weight | 384 |" in text
    page = html_page([run])
    assert re.findall(r"weights (?:left|pruned|flipped)|(?:prun|flipp)ed weight|per weight|single weight", page) == []
    bars = [part for part in Reader(page).svg["channels"].iter() if part.get("class") == "data"]
    assert len(bars) == 2


def test_shares_of_a_course_are_those_of_what_the_budget_counts(runs):
    unit, (line,) = budget_timelines([runs["channels"]])
    assert unit == "epoch of pruning"
    assert line.density.tolist() == [row.density for row in runs["channels"].pruning_epochs]
    assert line.density[-1] == pytest.approx(runs["channels"].outcome.parameters_ratio)
    assert (line.pruned <= 36).all()
    counts = runs["channels"].telemetry["network"]
    assert line.pruned.sum() == pytest.approx(counts["pruned"].sum() / 36)


def test_runs_of_other_gates_stand_side_by_side(runs):
    chosen = [runs[name] for name in ("channels", "taylor", "default", "N:M")]
    text = markdown_report(chosen)
    heading = next(line for line in text.splitlines() if line.startswith("| run |"))
    assert "| asked for | left | FLOPs | parameters | weights left |" in heading
    wanted = {"channels": "40 % of the parameters", "taylor": "40 % of the FLOPs", "default": "20 % of the weights"}
    for run, asked in zip(chosen, [*wanted.values(), "50 % of the weights"], strict=True):
        assert sum(f"| {asked} | {percent(run.reached)} |" in line for line in text.splitlines()) == 1
    assert "| fc1.weight |" in text
    checked(html_page([replace(run, label=str(number)) for number, run in enumerate(chosen)]))
    alone = markdown_report(chosen[:2])
    assert "## Channels left by layer" in alone
    assert "| fc1.weight |" not in alone
    checked(html_page([replace(run, label=str(number)) for number, run in enumerate(chosen[:2])]))
    labels = [run.label for run in reported_runs([run.folder for run in chosen])]
    assert [label.split(", ", 1)[1] for label in labels[:2]] == [
        "Hyperflux, channels to 40 % of the parameters",
        "Taylor pruning, channels to 40 % of the FLOPs",
    ]
    assert labels[3].endswith("2:4 sparsity")


def test_a_pattern_is_measured_against_its_own_target(runs):
    assert "240 of 480 weights are left, a density of 50 %: exactly the target." in markdown_report([runs["N:M"]])


def test_labels_say_what_differs(runs):
    folders = [runs[name].folder for name in ("default", "published", "magnitude")]
    assert [run.label for run in reported_runs(folders)] == [
        "Hyperflux",
        "Hyperflux, published controller",
        "magnitude pruning",
    ]
    folders = [runs[name].folder for name in ("default", "full", "magnitude")]
    assert [run.label for run in reported_runs(folders[:2])] == ["default", "full"]
    assert [run.label for run in reported_runs(folders)][1:] == ["Hyperflux (full)", "magnitude pruning (magnitude)"]
    with pytest.raises(InputError, match="default: given twice"):
        reported_runs([folders[0], folders[0] / ".." / "default"])


def test_the_same_run_gives_the_same_bytes(runs):
    run = runs["default"]
    assert html_page([run]) == html_page(reported_runs([run.folder]))
    assert markdown_report([run]) == markdown_report(reported_runs([run.folder]))


def test_a_deep_network_stays_small_and_is_drawn_as_one_image():
    text = html_page([deep()])
    assert len(text) < 400_000
    layers = checked(text).svg["layers"]
    assert [part.get("class") for part in layers.iter(f"{SVG}image")].count("data") == 1
    assert len(list(layers.iter(f"{SVG}path"))) < 60
    assert len(html_page([deep(), replace(deep(), label="b")])) < 400_000


def test_many_runs_can_be_told_apart():
    many = [replace(subject(telemetry=tables({"fc1.weight": [500 - 10 * i] * 20})), label=f"run {i}") for i in range(9)]
    text = html_page(many)
    checked(text)
    keys = re.findall(r'<li><i class="(\w+)" style="--c: var\((--series-\d)\)"></i>run', text[: text.index("Pressure")])
    assert len(set(keys)) == len(keys) == 9


def hostile():
    """A run whose files try to break out of the page."""
    course = {HOSTILE: [900] * 5 + [400] * 15, "_hidden\x07": [800] * 20}
    sizes = dict.fromkeys(course, 1000)
    return subject(
        {name: left[-1] for name, left in course.items()},
        tables(course, sizes=sizes),
        sizes=sizes,
        label=HOSTILE,
        folder=f"runs/{HOSTILE.replace('/', '')}",
        model=HOSTILE,
        dataset=HOSTILE,
        backend=HOSTILE,
        config={"data_dir": HOSTILE, "checkpoint": HOSTILE},
    )


@pytest.mark.parametrize("count", [1, 2])
def test_what_files_say_is_text_and_nothing_else(count):
    named = [hostile(), replace(hostile(), label="b")][:count]
    text = html_page(named)
    checked(text.replace("\x07", ""))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    outside_code = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", markdown_report(named), flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside_code
    assert re.search(r"[^\\]\|`", outside_code) is None
    many = {f"{HOSTILE}{number}": [500] * 20 for number in range(12)}
    sizes = dict.fromkeys(many, 1000)
    channels = of_channels(dict.fromkeys(many, 500), sizes, tables(many, sizes=sizes))
    checked(html_page([channels]))
    assert "<script" not in html_page([channels])
    checked(html_page([subject(dict.fromkeys(many, 500), tables(many, sizes=sizes), sizes=sizes)]))


@pytest.mark.parametrize("name", ["$x^{$", "a$b$c", r"\frac{1}{0}", "_hidden", "größe 雪"])
def test_a_name_in_a_plot_is_neither_mathematics_nor_code(name):
    layers = {f"{name}{number}": [500] * 20 for number in range(9)}
    sizes = dict.fromkeys(layers, 1000)
    drawn = draw_plots([subject(dict.fromkeys(layers, 500), tables(layers, sizes=sizes), sizes=sizes)])
    svg = next(plot.svg for plots in drawn.values() for plot in plots if plot.name == "layers")
    shown = "".join(letter if letter.isascii() else "?" for letter in name)
    assert svg.count(f">{shown}") == 9
    law = Study.of([1, 2, 4, 8], [0.4, 0.2, 0.11, 0.05], [0.9])
    assert law.plot(name).startswith(b"\x89PNG")


@pytest.mark.parametrize("pressure", [5e-324, 1e-308, 1e308])
def test_every_finite_number_is_drawn(pressure):
    table = tables({"fc1.weight": [500] * 20, "fc2.weight": [500] * 20})
    table["network"]["pressure"] = pressure
    run = subject(telemetry=table)
    assert narrative(run)
    assert "pressure" in {plot.name for plots in draw_plots([run]).values() for plot in plots}
    law = Study.of([pressure, 1, 2, 4, 8], [0.5, 0.4, 0.2, 0.11, 0.05], [0.9])
    assert law.plot("own", [(pressure, 0.3), (1.0, 0.0)]).startswith(b"\x89PNG")


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("table", SCHEMA)
def test_tables_of_one_row_and_two_are_told_and_drawn(table, rows):
    whole = tables({"fc1.weight": [400, 100], "fc2.weight": [400, 0]})
    run = subject(telemetry={**whole, table: whole[table][:rows]})
    assert narrative(run)
    assert draw_plots([run])
    last = subject(telemetry={name: part[-1:] for name, part in whole.items()})
    assert narrative(last)
    assert draw_plots([last])


def test_markdown_has_the_figures_the_narrative_and_the_settings(runs):
    run = runs["default"]
    text = markdown_report([run])
    assert text.startswith("# mlp:16-24-4 on synthetic\n")
    assert f"| weights left | {run.outcome.surviving_weights} | of 480 |" in text
    assert "- **The mask.** The mask settled" in text
    assert "| fc1.weight | 384 |" in text
    settings = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    assert RunConfig.from_dict(tomllib.loads(settings)) == run.config
    several = markdown_report([run, runs["magnitude"]])
    assert several.count("| magnitude |") or several.count("magnitude pruning") >= 1


def test_a_run_from_a_checkpoint_says_what_it_needs():
    run = subject(config={"checkpoint": "runs/dense-0/dense.safetensors"})
    for text in (html_page([run]), markdown_report([run])):
        assert "It starts from the weights in runs/dense-0/dense.safetensors" in text
    assert "It starts from" not in html_page([subject()])


def test_the_command_is_quoted_for_a_shell():
    assert text_tables.repeat_command(subject(folder="my runs/a")) == (
        "hyperflux prune --recipe 'my runs/a/config.toml' --out 'my runs/a-again'"
    )
    assert text_tables.repeat_command(subject(folder=".")) == "hyperflux prune --recipe config.toml --out again"


def test_thinning_keeps_every_event_and_the_last_row():
    rows = tables({"fc1.weight": list(range(1000, 0, -1))}, pruning=6000)["network"]
    few = thinned(rows, MAX_POINTS)
    assert len(few) == MAX_POINTS
    assert few["step"][-1] == rows["step"][-1]
    for name in ("pruned", "regrown"):
        assert few[name].sum() == rows[name].sum()
    assert thinned(few, MAX_POINTS) is few


@pytest.mark.parametrize(("low", "high"), [(1.7, 104), (0.9, 2.6), (3e-9, 2e-4), (1e-12, 1e9), (30, 90), (13, 39)])
def test_logarithmic_axes_have_a_few_round_numbers(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low <= tick <= high and re.fullmatch(r"\d\.[05]00e[+-]\d+", f"{tick:.3e}") for tick in ticks)


def test_numbers_on_axes():
    assert [tick_label(x) for x in (0.05, 2000, 3e-6, 1.5e-7, 1e-7, 1e5)] == [
        "0.05",
        "2,000",
        "3·10⁻⁶",
        "1.5·10⁻⁷",
        "10⁻⁷",
        "10⁵",
    ]


@pytest.fixture(scope="module")
def shown(runs):
    return {
        "one": html_page([runs["default"]]),
        "deep": html_page([deep()]),
        "channels": html_page([runs["channels"]]),
        "several": html_page([replace(runs[name], label=name) for name in ("default", "published", "magnitude")]),
    }


@pytest.mark.parametrize(
    ("name", "width", "flags"),
    [
        ("one", 1300, ()),
        ("one", 390, ("--blink-settings=preferredColorScheme=0",)),
        ("deep", 390, ()),
        ("channels", 390, ()),
        ("several", 390, ()),
    ],
)
def test_a_browser_draws_every_plot_within_the_window(shown, tmp_path, name, width, flags):
    measured, console = opened(shown[name], tmp_path, width, *flags)
    assert console == []
    assert measured["width"] == width
    assert measured["content"] <= width
    assert measured["requests"] == 0
    assert measured["plots"].keys() == Reader(shown[name]).svg.keys()
    assert 0 not in measured["plots"].values()
    assert measured["page"] == ("rgb(21, 23, 26)" if flags else "rgb(255, 255, 255)")


def test_the_browser_would_see_an_error_an_empty_plot_and_a_page_too_wide(shown, tmp_path):
    broken = re.sub(r'(<figure id="pressure">.*?)<g class="data">.*?</g>', r"\1", shown["one"], flags=re.DOTALL)
    broken = broken.replace("</h1>", '</h1><script>nowhere()</script><div style="width: 2000px">wide</div>', 1)
    measured, console = opened(broken, tmp_path, 390)
    assert any("nowhere is not defined" in line for line in console)
    assert {name for name, marks in measured["plots"].items() if not marks} == {"pressure"}
    assert measured["content"] > 390


def test_nothing_is_drawn_from_tables_without_rows():
    empty = {name: np.zeros(0, table.dtype) for name, table in tables({"fc1.weight": [5] * 20}).items()}
    assert set(checked(html_page([subject(telemetry=empty)])).svg) == {
        "density",
        "pressure",
        "accuracy",
        "losses",
        "changes",
    }
