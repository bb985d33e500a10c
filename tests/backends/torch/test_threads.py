"""Small networks train on one thread, whatever torch was told, and leave that as it was."""

import pytest
import torch

from hyperflux import RunConfig
from hyperflux.backends.torch.backend import TorchBackend
from hyperflux.backends.torch.threads import SMALL_STEP, threads_for, torch_threads
from hyperflux.runs.data_order import epoch_batches

CPU = torch.device("cpu")


def test_the_step_decides_and_gpus_are_left_alone():
    with torch_threads(2):
        assert threads_for(SMALL_STEP // 32, 32, CPU) == 1
        assert threads_for(SMALL_STEP // 32 + 1, 32, CPU) == 2
        assert threads_for(10, 1, torch.device("cuda")) == 2


def fail(before):
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError


def test_threads_are_put_back_also_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        fail(before)
    assert torch.get_num_threads() == before


def test_training_and_evaluation_use_them():
    seen = []
    with torch_threads(2):
        config = RunConfig.from_dict({"dataset": "synthetic", "model": "mlp:16-8-4", "device": "cpu"})
        backend = TorchBackend(config)
        backend._model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        backend.train_dense(
            epoch_batches(0, 1, backend.samples, config.batch_size), learning_rate=1e-3, label_smoothing=0.0
        )
        backend.evaluate()
        assert torch.get_num_threads() == 2
        assert backend.place() == "cpu with 1 thread"
    assert set(seen) == {1}
