"""The command line in a process of its own, forked from one that has imported torch: as a person meets it, but fast."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from forked import context


def run(here, *arguments, timeout=120):
    """`hyperflux` with these arguments in a folder, where $HYPERFLUX_DATA is not set: a `CompletedProcess`."""
    environment = {key: value for key, value in os.environ.items() if key != "HYPERFLUX_DATA"}
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = context().Process(target=_main, args=(here, list(map(str, arguments)), environment, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"hyperflux {arguments}: {err.read_text()}")
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _main(here, arguments, environment, out, err):
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, stream.fileno())
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(here)
    sys.argv = ["hyperflux", *arguments]

    from hyperflux_cli.main import main

    main()
