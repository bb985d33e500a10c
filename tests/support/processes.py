"""Several processes that train together, over gloo, each running the same function; forked from one that has torch."""

import functools
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from forked import context

LONGEST = 120
"""Seconds after which processes that wait for each other for ever are ended."""


def run_together(function, size, *arguments, **options):
    """What the call gives in each of `size` processes; an exception counts as what it gives."""
    call = functools.partial(function, *arguments, **options)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = context().Pipe(duplex=False)
            process = context().Process(target=_run, args=(theirs, f"{folder}/meeting", rank, size, call))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _results(pipes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _results(pipes):
    deadline, results = time.monotonic() + LONGEST, []
    for rank, pipe in enumerate(pipes):
        if not pipe.poll(deadline - time.monotonic()):
            raise TimeoutError(f"process {rank} gave nothing")
        results.append(pipe.recv())
    return results


def _run(pipe, meeting, rank, size, call):
    import torch
    from torch import distributed

    multiprocessing.set_start_method("fork", force=True)  # of workers that load data, as in any other run
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    distributed.init_process_group("gloo", init_method=Path(meeting).as_uri(), rank=rank, world_size=size)
    try:
        result = call()
    except Exception as error:
        result = error
    try:
        pipe.send(result)
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}, of {result!r}"))
    distributed.destroy_process_group()
