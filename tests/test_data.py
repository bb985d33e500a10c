"""Data sets: splits, standardisation, idx files good and damaged."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from idx_files import idx_bytes, write_mnist

from hyperflux import InputError, RunConfig, data
from hyperflux.backends import build_backend
from hyperflux.data import DATASETS, load_dataset, require_spread
from hyperflux.io.idx import read_idx
from hyperflux.runs.driver import execute
from hyperflux.seeding import generator


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_embedded_data_sets_are_deterministic_and_standardised_by_the_training_part(name):
    data, again = load_dataset(name), load_dataset(name)
    assert data.train_inputs.tobytes() == again.train_inputs.tobytes()
    assert data.train_inputs.dtype == data.test_inputs.dtype == np.float32
    assert data.train_inputs.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert data.train_inputs.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert abs(data.test_inputs.mean()) > 1e-6  # not standardised by itself
    assert set(data.train_labels) == set(data.test_labels) == set(range(data.classes))


def test_digits_are_split_without_loss_or_overlap():
    from sklearn.datasets import load_digits

    data, source = load_dataset("digits"), load_digits()
    assert (len(data.train_labels), len(data.test_labels), data.features) == (1437, 360, 64)
    scale, shift = _affine(source.images, np.concatenate([data.train_inputs, data.test_inputs]))
    rebuilt = np.concatenate([data.train_inputs, data.test_inputs]) * scale + shift
    rows = sorted(np.rint(rebuilt).astype(int).reshape(1797, 64).tolist())
    assert rows == sorted(source.images.astype(int).reshape(1797, 64).tolist())


@pytest.mark.parametrize("length", [1, 17, 4096, 4097, 123_456])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_data_are_standardised_in_pieces_to_the_bit_as_in_one(monkeypatch, length, dtype):
    monkeypatch.setattr(data, "VALUES_AT_ONCE", 4096)
    monkeypatch.setattr(data, "SAMPLES_AT_ONCE", 1000)
    train, test = (generator(seed, "pieces").integers(256, size=(length, 3)).astype(dtype) for seed in (0, 1))
    labels = np.zeros(length, np.int64)
    found = data._standardised(train, labels, test, labels, 1, slice(None))
    for whole, scaled in ((train, found.train_inputs), (test, found.test_inputs)):
        expected = ((whole - train.mean(dtype=np.float64)) / train.std(dtype=np.float64)).astype(np.float32)
        assert np.array_equal(scaled, expected)


def _affine(images, scaled):
    """The scale and shift between two sets of the same images, from their extremes."""
    scale = (images.max() - images.min()) / (scaled.max() - scaled.min())
    return scale, images.min() - scaled.min() * scale


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_layout_is_read_plain_and_gzipped(tmp_path, zipped):
    write_mnist(tmp_path, zipped=zipped)
    data = load_dataset("mnist", str(tmp_path))
    assert data.train_inputs.shape == (64, 28, 28)
    assert data.test_labels.tolist() == [i % 10 for i in range(16)]


def test_the_environment_names_the_data_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("HYPERFLUX_DATA", str(tmp_path))
    assert len(load_dataset("mnist").train_labels) == 64


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, zipped):
    path = tmp_path_factory.mktemp("idx") / "file"
    if zipped:
        path.with_name("file.gz").write_bytes(gzip.compress(idx_bytes(array)))
    else:
        path.write_bytes(idx_bytes(array))
    read = read_idx(path, array.ndim)
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


GOOD = idx_bytes(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_a_truncated_idx_file_is_refused_wherever_it_ends(tmp_path, cut):
    (tmp_path / "file").write_bytes(GOOD[:cut])
    with pytest.raises(InputError, match=r"not an idx file|announces"):
        read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize("cut", range(0, len(gzip.compress(GOOD)), 3))
def test_a_truncated_gzip_file_is_refused_wherever_it_ends(tmp_path, cut):
    (tmp_path / "file.gz").write_bytes(gzip.compress(GOOD)[:cut])
    with pytest.raises(InputError, match=r"get the file again|not an idx file"):
        read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize(
    "content",
    [GOOD + b"x", b"\0\0\x0d" + GOOD[3:], GOOD[:3] + b"\x02" + GOOD[4:], b"<html>not found</html>" * 3],
)
def test_other_content_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError):
        read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_that_lies_costs_no_memory(tmp_path, zipped):
    """64 GB announced, 1 MB there."""
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4096, 4096, 4096) + bytes(1_000_000)
    path = tmp_path / "file"
    path.with_name("file.gz" if zipped else "file").write_bytes(gzip.compress(content) if zipped else content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="announces 68,719,476,736 bytes"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_a_small_header_does_not_unpack_a_large_gzip(tmp_path):
    """24 bytes announced, 100 MB packed."""
    (tmp_path / "file.gz").write_bytes(gzip.compress(GOOD + bytes(100_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="more than that"):
            read_idx(tmp_path / "file", 3)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_mnist(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=f"{name} .*is missing.*--data-dir"):
        load_dataset("mnist", str(tmp_path))


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(63)))
    with pytest.raises(InputError, match="are not MNIST's"):
        load_dataset("mnist", str(tmp_path))


SAME = "all 64 training samples are the same; give other data"


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(("name", "array", "settings", "message"), [
    ("images-idx3-ubyte", np.zeros((64, 28, 28)), {}, SAME),
    ("images-idx3-ubyte", np.full((64, 28, 28), 255), {}, SAME),
    ("images-idx3-ubyte", np.tile(np.arange(784).reshape(28, 28) % 256, (64, 1, 1)), {}, SAME),
    ("labels-idx1-ubyte", np.full(64, 7), {}, "all 64 training samples are of class 7; training needs two"),
    (None, None, {"train_samples": 1}, "the only training sample is of class 0; .*a larger --train-samples"),
])  # fmt: skip
def test_data_without_spread_are_refused_before_anything_is_written(tmp_path, backend, name, array, settings, message):
    raw = write_mnist(tmp_path / "data")
    if name is not None:
        (raw / f"train-{name}").write_bytes(idx_bytes(array))
    config = {
        "backend": backend,
        "dataset": "mnist",
        "data_dir": str(tmp_path / "data"),
        "model": "lenet300",
        **settings,
    }
    with pytest.raises(InputError, match=f"data set mnist: {message}"):
        execute(RunConfig.from_dict(config), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_first_samples_alone_may_lack_spread(tmp_path, backend):
    raw = write_mnist(tmp_path / "data")
    labels = np.arange(64) % 10
    labels[:5] = 3
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    config = {"backend": backend, "dataset": "mnist", "data_dir": str(tmp_path / "data"), "model": "lenet300"}
    with pytest.raises(InputError, match="all 5 training samples are of class 3"):
        build_backend(RunConfig.from_dict({**config, "train_samples": 5}))
    assert build_backend(RunConfig.from_dict({**config, "train_samples": 6})).samples == 6


@given(arrays(np.uint8, st.tuples(st.integers(0, 6), st.just(2))), st.data())
def test_spread_is_two_classes_and_two_samples_that_differ(inputs, data):
    labels = data.draw(arrays(np.int64, len(inputs), elements=st.integers(0, 2)))
    enough = len({*labels.tolist()}) > 1 and len({*map(bytes, inputs)}) > 1
    if enough:
        require_spread("mine", labels, inputs)
    else:
        with pytest.raises(InputError, match=r"^data set mine: "):
            require_spread("mine", labels, inputs)


def test_an_unknown_data_set_offers_the_nearest():
    with pytest.raises(InputError, match="'digit' is not known; did you mean digits"):
        load_dataset("digit")
    assert DATASETS == ("digits", "mnist", "synthetic")


@pytest.mark.data
def test_real_mnist_is_complete(real_data):
    data = load_dataset("mnist", str(real_data))
    assert data.train_inputs.shape == (60_000, 28, 28)
    assert data.test_inputs.shape == (10_000, 28, 28)
    assert np.bincount(data.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
