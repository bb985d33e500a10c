"""Data of the torch backend: augmentation sample by sample, and every layout by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from hyperflux import InputError
from hyperflux.backends.torch.batches import CROP_PADDING, DeviceData, StreamedData, crop_and_flip, crops_and_flips
from hyperflux.backends.torch.data import NORMALISATION, load_data
from hyperflux.config import RunConfig
from tests.support.idx_files import write_mnist
from tests.support.image_files import write_cifar10, write_folder, write_image

CPU = torch.device("cpu")


def load(name, folder, **settings):
    return load_data(RunConfig(dataset=name, data_dir=str(folder), **settings), CPU)


def drain(data, order, epoch=1):
    return [
        (inputs.clone(), labels) for inputs, labels in data.train_batches([np.array(part) for part in order], epoch)
    ]


def crops(image):
    """Every crop of the padded image at its own size, and its mirror image."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * CROP_PADDING, width + 2 * CROP_PADDING, dtype=image.dtype)
    padded[:, CROP_PADDING:-CROP_PADDING, CROP_PADDING:-CROP_PADDING] = image
    places = range(2 * CROP_PADDING + 1)
    cut = [padded[:, y : y + height, x : x + width] for y in places for x in places]
    return {tuple(crop.flatten().tolist()) for crop in cut + [crop.flip(2) for crop in cut]}


class TestAugmentation:
    def test_each_sample_has_a_crop_and_a_flip_of_its_own(self):
        images = torch.arange(1, 1 + 3 * 6 * 5, dtype=torch.uint8).reshape(1, 3, 6, 5)
        drawn = crop_and_flip(images.expand(3000, -1, -1, -1), *crops_and_flips(3000, np.random.default_rng(0)))
        seen = {tuple(sample.flatten().tolist()) for sample in drawn}
        # Of 9 · 9 · 2 crops each is missed by 3,000 draws with probability 1e-8.
        assert seen == crops(images[0])
        assert drawn.dtype == torch.uint8
        assert drawn.is_contiguous()

    def test_samples_are_not_mixed(self):
        images = torch.randint(1, 255, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for before, after in zip(
            images, crop_and_flip(images, *crops_and_flips(20, np.random.default_rng(1))), strict=True
        ):
            assert tuple(after.flatten().tolist()) in crops(before)

    def test_drawn_by_seed_and_epoch(self, tmp_path):
        write_folder(tmp_path)
        order = [[0, 1, 2], [3, 4, 5]]
        first, again, later, other = (
            drain(load("imagefolder", tmp_path, seed=seed), order, epoch)
            for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
        )
        assert all(torch.equal(one[0], two[0]) for one, two in zip(first, again, strict=True))
        assert not torch.equal(first[0][0], later[0][0])
        assert not torch.equal(first[0][0], other[0][0])


class TestImageFolder:
    def test_small_images_live_in_memory_standardised_by_the_training_part(self, tmp_path):
        data = load("imagefolder", write_folder(tmp_path), augment=False)
        assert isinstance(data, DeviceData)
        assert (data.shape, data.classes, data.samples) == ((3, 8, 8), 2, 6)
        ((inputs, labels),) = drain(data, [range(6)])
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert inputs.dtype == torch.float32
        torch.testing.assert_close(inputs.double().mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(inputs.double().std((0, 2, 3)), torch.ones(3).double(), atol=1e-6, rtol=0)
        ((test, labels),) = data.test_batches()
        assert (tuple(test.shape), labels.tolist()) == ((4, 3, 8, 8), [0, 0, 1, 1])

    def test_large_images_are_streamed(self, tmp_path):
        write_folder(tmp_path, size=(70, 90))
        data = load("imagefolder", tmp_path, workers=0)
        assert isinstance(data, StreamedData)
        assert (data.shape, data.classes, data.samples) == ((3, 224, 224), 2, 6)
        first, again, later = (drain(data, [[0, 5], [3]], epoch) for epoch in (1, 1, 2))
        assert [tuple(inputs.shape) for inputs, _ in first] == [(2, 3, 224, 224), (1, 3, 224, 224)]
        assert [labels.tolist() for _, labels in first] == [[0, 1], [1]]
        assert torch.equal(first[0][0], again[0][0])
        assert not torch.equal(first[0][0], later[0][0])
        ((test, labels),) = data.test_batches()
        assert (tuple(test.shape), labels.tolist()) == ((4, 3, 224, 224), [0, 0, 1, 1])

    def test_workers_give_what_the_process_itself_would(self, tmp_path):
        write_folder(tmp_path, size=(70, 70))
        alone, helped = (drain(load("imagefolder", tmp_path, workers=number), [[4, 1], [2]]) for number in (0, 2))
        for one, two in zip(alone, helped, strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])

    @pytest.mark.parametrize("size", [(8, 8), (70, 70)])
    def test_train_samples_draws_a_subset(self, tmp_path, size):
        write_folder(tmp_path, size=size)
        whole = load("imagefolder", tmp_path, augment=False, workers=0)
        part = load("imagefolder", tmp_path, augment=False, workers=0, train_samples=4)
        assert part.samples == 4
        ((_, labels),) = drain(part, [range(4)])
        assert set(labels.tolist()) <= {0, 1}
        assert whole.samples == 6

    def test_val_serves_as_the_test_part(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "test").rename(tmp_path / "val")
        assert load("imagefolder", tmp_path).samples == 6

    def test_a_channel_of_one_value_is_not_divided_by_its_deviation(self, tmp_path):
        write_folder(tmp_path)
        for number, path in enumerate(sorted((tmp_path / "train").rglob("*.png"))):
            pixels = np.full((8, 8, 3), 10 * number)
            pixels[..., 2] = 50
            write_image(path, pixels)
        ((inputs, _),) = drain(load("imagefolder", tmp_path, augment=False), [range(6)])
        assert inputs[:, 2].abs().max() <= 1e-6
        assert inputs[:, :2].std() == pytest.approx(1, rel=1e-2)
        ((test, _),) = load("imagefolder", tmp_path, augment=False).test_batches()
        assert test[:, 2].abs().max() <= 1

    @pytest.mark.parametrize(("size", "message"), [
        ((8, 8), "all 6 training samples are the same"),
        ((70, 70), "the 6 training images that were compared are all the same"),
    ])  # fmt: skip
    def test_images_that_are_all_the_same(self, tmp_path, size, message):
        write_folder(tmp_path, size=size)
        for path in (tmp_path / "train").rglob("*.png"):
            write_image(path, np.full((*size, 3), 90))
        with pytest.raises(InputError, match=f"data set imagefolder: {message}; give other data"):
            load("imagefolder", tmp_path)

    @pytest.mark.parametrize("size", [(8, 8), (70, 70)])
    def test_a_subset_of_one_class(self, tmp_path, size):
        write_folder(tmp_path, size=size)
        with pytest.raises(InputError, match=r"the only training sample is of class [01]; training needs two classes"):
            load("imagefolder", tmp_path, train_samples=1)

    @pytest.mark.parametrize("size", [(6, 8), (70, 90)])
    def test_images_are_read_upright(self, tmp_path, size):
        write_folder(tmp_path, size=size)
        upright = load("imagefolder", tmp_path, augment=False, workers=0)
        path, exif = tmp_path / "train" / "ant" / "2.png", Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        turned = load("imagefolder", tmp_path, augment=False, workers=0)
        for one, two in zip(drain(upright, [range(6)]), drain(turned, [range(6)]), strict=True):
            assert torch.equal(one[0], two[0])

    def test_folders_that_are_missing(self, tmp_path):
        with pytest.raises(InputError, match="needs the folders train/ and test/ or val/"):
            load("imagefolder", tmp_path)

    def test_a_class_without_images(self, tmp_path):
        write_folder(tmp_path)
        for part in ("train", "test"):
            (tmp_path / part / "cow").mkdir()
        with pytest.raises(InputError, match="cow") as caught:
            load("imagefolder", tmp_path)
        assert "\n" not in str(caught.value)

    def test_classes_that_differ(self, tmp_path):
        write_folder(tmp_path)
        write_image(tmp_path / "test" / "cow" / "0.png", np.zeros((8, 8, 3)))
        with pytest.raises(InputError, match="different classes, such as cow"):
            load("imagefolder", tmp_path)

    def test_sizes_that_differ(self, tmp_path):
        write_folder(tmp_path)
        write_image(tmp_path / "train" / "bee" / "x.png", np.zeros((8, 9, 3)))
        with pytest.raises(InputError, match=r"x.png: is 9x8, the others are 8x8"):
            load("imagefolder", tmp_path)

    def test_parts_of_two_sizes(self, tmp_path):
        write_folder(tmp_path, test=0)
        write_folder(tmp_path, train=0, size=(9, 9))
        with pytest.raises(InputError, match="training and test images are not of one size"):
            load("imagefolder", tmp_path)

    @pytest.mark.parametrize("name", ["0.png", "4.png"])
    def test_a_damaged_small_image(self, tmp_path, name):
        write_folder(tmp_path)
        (tmp_path / "train" / "ant" / name).write_bytes(b"not an image")
        with pytest.raises(InputError, match=f"ant/{name}: can't be read"):
            load("imagefolder", tmp_path)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_large_image_is_named_in_one_line(self, tmp_path, workers):
        write_folder(tmp_path, size=(70, 70))
        path = tmp_path / "train" / "bee" / "3.png"
        path.write_bytes(path.read_bytes()[:200])
        data = load("imagefolder", tmp_path, workers=workers)
        with pytest.raises(InputError, match=r"^image .*bee/3.png: can't be read") as caught:
            drain(data, [[0, 4]])
        assert "\n" not in str(caught.value)

    def test_imagenet_is_a_thousand_folders(self, tmp_path):
        with pytest.raises(InputError, match="2 classes, not 1000; use imagefolder"):
            load("imagenet", write_folder(tmp_path))


class TestCifar:
    def test_torchvisions_layout_with_the_usual_constants(self, tmp_path, monkeypatch):
        images = write_cifar10(tmp_path, monkeypatch)
        data = load("cifar10", tmp_path, augment=False)
        assert (data.shape, data.classes, data.samples) == ((3, 32, 32), 10, 7)
        ((inputs, labels),) = drain(data, [range(7)])
        assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
        mean, deviation = (np.array(values)[:, None, None] for values in NORMALISATION["cifar10"])
        np.testing.assert_allclose(inputs.numpy(), (images / 255 - mean) / deviation, atol=1e-5)
        ((_, labels),) = data.test_batches()
        assert labels.tolist() == [0, 1, 2, 3, 4]

    def test_a_file_of_another_checksum_is_not_unpickled(self, tmp_path, monkeypatch):
        write_cifar10(tmp_path, monkeypatch)
        with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("ab") as file:
            file.write(b"more")
        monkeypatch.setattr("pickle.load", None)
        with pytest.raises(InputError, match="cifar-10-batches-py/ is missing or damaged"):
            load("cifar10", tmp_path)

    def test_files_that_are_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"cifar-100-python/ is missing or damaged.*imagefolder"):
            load("cifar100", tmp_path)


def test_mnist_gets_a_channel(tmp_path):
    write_mnist(tmp_path)
    data = load("mnist", tmp_path, dtype="float64", train_samples=20)
    assert (data.shape, data.classes, data.samples) == ((1, 28, 28), 10, 20)
    ((inputs, labels),) = drain(data, [range(20)])
    assert inputs.dtype == torch.float64
    assert labels.tolist() == [n % 10 for n in range(20)]


def test_arrays_keep_their_shape(tmp_path):
    data = load("synthetic", tmp_path)
    assert (data.shape, data.classes, data.samples) == ((16,), 4, 1024)
