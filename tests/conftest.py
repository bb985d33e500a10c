import importlib.util
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The networks of the tests are small: more threads only wait for each other, and tests that run side by side suffer.
torch.set_num_threads(1)

# These fork, kill, limit memory or make pipes, which Windows can't. The package itself must run there.
if importlib.util.find_spec("resource") is None:
    collect_ignore = [
        "cli/test_front_door.py",
        "cli/test_generated_input.py",
        "cli/test_output.py",
        "cli/test_signals.py",
        "io/test_mutated_files.py",
        "io/test_safe_read.py",
        "runs/test_checkpoints.py",
        "runs/test_interruptions.py",
        "runs/test_lock.py",
        "runs/test_torchrun.py",
    ]

# No deadline: these machines are noisy. Derandomised, so that a failure on one machine is a failure on every one.
settings.register_profile("hyperflux", deadline=None, derandomize=True)
# For a search in new places every night: a failure prints the decorator that repeats it, and
# --hypothesis-seed=NUMBER repeats the whole search.
settings.register_profile("nightly", deadline=None, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "hyperflux"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; tests that ask for it carry the mark `data`."""
    folder = os.environ.get("HYPERFLUX_DATA")
    if not folder:
        pytest.skip("HYPERFLUX_DATA is unset: it names the folder that holds MNIST/raw")
    return Path(folder)
