"""Files that were whole once, with bytes flipped, cut, left out, doubled and spliced: read, or refused in one line."""

import gzip
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from front_door_case import Material
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from idx_files import idx_bytes
from mutations import mutated, reworded
from PIL import Image
from safetensors.torch import save

from hyperflux import InputError, RunConfig
from hyperflux.backends.torch.image_files import FORMATS, open_image
from hyperflux.backends.torch.weights_file import load_from
from hyperflux.io.idx import read_idx
from hyperflux.io.weights_file import read_weights as read_weights_numpy
from hyperflux.law.csv_columns import read_columns
from hyperflux.recipes import load, names, text
from hyperflux.report.law import Study
from hyperflux.report.narrative import narrative
from hyperflux.report.page import html_page
from hyperflux.report.run import reported_runs
from hyperflux.runs.folder import read_run
from hyperflux.runs.schema import RecordedRun
from hyperflux.telemetry.columns import SCHEMA
from hyperflux.telemetry.file import file_content, read_tables

MANY = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    return Material.make(tmp_path_factory.mktemp("mutated")).run


def one_line_or(read):
    """What `read()` gives, or None where it refuses in one line that can be shown."""
    try:
        return read()
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    assert 0 < len(message) <= 1000
    return None


def drawn_run(run, name, content):
    """What becomes of the run whose file `name` has another content; the file is put back."""
    whole = (run / name).read_bytes()
    (run / name).write_bytes(content)
    try:
        return one_line_or(lambda: read_run(run))
    finally:
        (run / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["report.json", "metrics.jsonl", "config.toml", "telemetry.npz"])
@MANY
@given(data=st.data())
def test_a_runs_file_with_mishaps_is_read_or_refused(run, name, data):
    found = drawn_run(run, name, data.draw(mutated((run / name).read_bytes())))
    assert found is None or isinstance(found, RecordedRun)


@pytest.mark.parametrize("name", ["report.json", "metrics.jsonl", "config.toml"])
@MANY
@given(data=st.data())
def test_a_runs_file_of_other_words_is_read_or_refused(run, name, data):
    found = drawn_run(run, name, data.draw(reworded((run / name).read_text(encoding="utf-8"))).encode())
    assert found is None or 0 < sum(layer.total for layer in found.outcome.layers) == found.outcome.total_weights


@pytest.mark.parametrize("name", names())
@settings(max_examples=20)
@given(data=st.data())
def test_a_recipe_of_other_words_is_taken_or_refused(tmp_path_factory, name, data):
    file = tmp_path_factory.mktemp("recipe") / "own.toml"
    file.write_text(data.draw(reworded(text(name))), encoding="utf-8")
    config = one_line_or(lambda: RunConfig.from_dict(load(str(file))))
    assert config is None or RunConfig.from_dict(config.to_dict()) == config


WEIGHTS = {"fc1.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "fc1.bias": torch.ones(3, dtype=torch.float64)}


def saved(**how):
    whole = io.BytesIO()
    torch.save(WEIGHTS, whole, **how)
    return whole.getvalue()


WEIGHTS_FILES = {
    "a.safetensors": save(WEIGHTS),
    "a.pth": saved(),
    "old.pth": saved(_use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", WEIGHTS_FILES)
@MANY
@given(data=st.data())
def test_a_weights_file_with_mishaps_is_read_or_refused(tmp_path, name, data):
    file = tmp_path / name
    file.write_bytes(data.draw(mutated(WEIGHTS_FILES[name])))
    layer = torch.nn.Linear(4, 3)
    place = one_line_or(lambda: load_from(torch.nn.ModuleDict({"fc1": layer}), str(file), "mine"))
    assert place is None or torch.isfinite(layer.weight).all()
    if name.endswith(".safetensors"):
        found = one_line_or(lambda: read_weights_numpy(str(file)))
        assert found is None or sum(tensor.nbytes for tensor in found.values()) <= file.stat().st_size
    assert os.listdir(tmp_path) == [name]


IMAGES = idx_bytes(np.arange(96).reshape(6, 4, 4))


@pytest.mark.parametrize("zipped", [False, True])
@MANY
@given(data=st.data())
def test_an_idx_file_with_mishaps_is_read_or_refused(tmp_path, zipped, data):
    file = tmp_path / ("images.gz" if zipped else "images")
    file.write_bytes(data.draw(mutated(gzip.compress(IMAGES, mtime=0) if zipped else IMAGES)))
    found = one_line_or(lambda: read_idx(tmp_path / "images", 3))
    assert found is None or found.ndim == 3


@pytest.mark.parametrize("kind", FORMATS)
@MANY
@given(data=st.data())
def test_an_image_with_mishaps_is_read_or_refused(tmp_path, kind, data):
    whole = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(whole, kind)
    file = tmp_path / "image.png"
    file.write_bytes(data.draw(mutated(whole.getvalue())))
    image = one_line_or(lambda: open_image(str(file)))
    assert image is None or image.mode == "RGB"


TABLE = "pressure,density,note\n0.125,0.105,a\n0.5,0.0533,b\n2,0.0216,c\n8,0.0079,d\n32,0.0029,e\n"


@MANY
@given(mutated(TABLE.encode()) | reworded(TABLE).map(str.encode))
def test_a_table_with_mishaps_is_fitted_or_refused(tmp_path, content):
    (tmp_path / "own.csv").write_bytes(content)
    study = one_line_or(lambda: Study.of(*read_columns(tmp_path / "own.csv", "pressure", "density"), [0.9]))
    assert study is None or isinstance(json.dumps(study.to_dict()), str)


EXTREMES = [0.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 1 << 40, (1 << 63) - 1]


COLUMNS = [(table, column) for table, dtype in SCHEMA.items() for column in dtype.names if dtype[column].kind in "if"]
ROWS = st.sampled_from([slice(None), slice(1), slice(-1, None), slice(1, 2)])
CHANGES = st.lists(st.tuples(st.sampled_from(COLUMNS), ROWS, st.sampled_from(EXTREMES)), min_size=1, max_size=3)


def changed(tables, changes):
    """Tables of telemetry in which a few numbers are others."""
    for (table, column), rows, value in changes:
        kind = tables[table].dtype[column]
        if kind.kind == "f":
            with np.errstate(over="ignore"):
                tables[table][column][rows] = value
        elif np.isfinite(value):
            tables[table][column][rows] = int(min(max(value, -1), np.iinfo(kind).max))
    return tables


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_a_report_of_unlikely_telemetry_is_drawn_or_refused(run, changes):
    whole = (run / "telemetry.npz").read_bytes()
    (run / "telemetry.npz").write_bytes(file_content(changed(read_tables(run / "telemetry.npz"), changes)))
    try:
        found = one_line_or(lambda: reported_runs([run]))
        assert found is None or (html_page(found).startswith("<!DOCTYPE html>") and narrative(found[0]))
    finally:
        (run / "telemetry.npz").write_bytes(whole)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_report_of_few_or_no_epochs_is_drawn(run, tmp_path, length):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:length]))
    assert html_page(reported_runs([copied])).startswith("<!DOCTYPE html>")


def test_tables_that_are_empty_leave_a_report_without_them(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    tables = read_tables(copied / "telemetry.npz")
    (copied / "telemetry.npz").write_bytes(file_content({name: table[:0] for name, table in tables.items()}))
    assert "More plots need telemetry" in html_page(reported_runs([copied]))
    with zipfile.ZipFile(copied / "telemetry.npz") as archive:
        assert len(archive.namelist()) == len(tables)
