"""Kill a run with SIGKILL at random moments, resume it each time, and compare its files with an uninterrupted run's.

    python docs/figures/kills.py --kills 20 prune --dataset mnist --data-dir data --checkpoint-every 50

Every other kill comes while a checkpoint is being written. Prints a row of the table in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HYPERFLUX = [sys.executable, "-c", "from hyperflux_cli.main import main; main()"]
COMPARED = ("config.toml", "metrics.jsonl", "dense.safetensors", "model.safetensors", "telemetry.npz")
STARTING = 120.0
"""Longest wait for a process to start its work, in seconds."""


def main() -> None:
    """Run, kill, resume, compare. Exits with 1 if the files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moment", type=float, default=3.0, help="longest wait before a kill, in seconds of training")
    options, command = parser.parse_known_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        subprocess.run([*HYPERFLUX, *command, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL)
        arguments = [*command, "--out", str(cut)]
        amid, kills, size = 0, 0, 0
        while kills < options.kills:
            process = subprocess.Popen([*HYPERFLUX, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _wait_for_work(process, cut)
            if kills % 2:
                _wait_for_part(process, cut)
            else:
                time.sleep(draw.uniform(0, options.moment))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            amid += bool(list(cut.glob("checkpoint/.*.part")))
            size = max([size, *(path.stat().st_size for path in cut.glob("checkpoint/*.safetensors"))])
            arguments = [*command, "--resume", "--out", str(cut)]
        subprocess.run([*HYPERFLUX, *arguments], check=True, stdout=subprocess.DEVNULL)
        same = all((whole / name).read_bytes() == (cut / name).read_bytes() for name in COMPARED)
        same &= _report(whole) == _report(cut)
    print(f"| {kills} | {amid} | {size / 1e6:.1f} MB | {'identical' if same else 'NOT IDENTICAL'} |")
    sys.exit(not same)


def _wait_for_work(process: subprocess.Popen[bytes], cut: Path) -> None:
    """Wait until this process has written a file of the run, or has ended."""
    began, since = time.monotonic(), time.time()
    while process.poll() is None and time.monotonic() - began < STARTING:
        for path in (cut / "metrics.jsonl", *cut.glob("checkpoint/*")):
            with suppress(FileNotFoundError):  # not there yet, or an old checkpoint that was just removed
                if path.stat().st_mtime > since:
                    return
        time.sleep(0.005)


def _wait_for_part(process: subprocess.Popen[bytes], cut: Path) -> None:
    """Wait until a checkpoint is being written, or the process has ended."""
    while process.poll() is None and not list(cut.glob("checkpoint/.*.part")):
        pass


def _report(folder: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    return report


if __name__ == "__main__":
    main()
