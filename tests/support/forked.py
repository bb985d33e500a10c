"""Processes forked from one that has imported what they need: processes of their own, without seconds of importing."""

import multiprocessing

PRELOADED = [
    "torch._dynamo",  # DistributedDataParallel and the exporters import it
    "torch.distributed.fsdp",
    "hyperflux_cli.main",
    "hyperflux.runs.driver",
    "hyperflux.backends.torch.backend",
    "hyperflux.report.write",
    "hyperflux.deploy.export",
]


def context():
    """What `multiprocessing` itself would be: `Process`, `Pipe` and the like."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found
