"""The devices that tests of the torch backend run on: the CPU, and a GPU where there is one."""

import pytest
import torch

_MARKS = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=_MARKS)])


def needs_cuda(test):
    """Mark a test that runs on a GPU only."""
    for mark in _MARKS:
        test = mark(test)
    return test
