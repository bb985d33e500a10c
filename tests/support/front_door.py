"""Runs bad input through the command line, many cases in one process of little memory.

As a program it takes the names of groups of `front_door_cases.GROUPS`, a folder to work in and a file for the outcomes,
one JSON object for each case. `bad_input` is its other side, for tests.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from front_door_case import Material

GIGABYTE = 1 << 30
ROOM = 700 << 20
"""Bytes that cases may take beyond what the libraries take."""
LONGEST = 10.0
"""Seconds of the processor that a case may take; six times as many on the clock are a hang."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case; `code` is None where it hung or left by an exception, which `err` then tells.

    `peak_bytes` is the most memory of the process meanwhile, `taken_bytes` how much more that is than before.
    """

    name: str
    code: int | None
    out: str
    err: str
    seconds: float
    left_behind: list[str]
    peak_bytes: int
    taken_bytes: int


def bad_input(groups, folder):
    """The outcomes of all cases of these groups, run in a process of its own."""
    report = folder / "outcomes.jsonl"
    (folder / "work").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "HYPERFLUX_DATA"}
    paths = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, ",".join(groups), str(folder / "work"), str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return [Outcome(**json.loads(line)) for line in report.read_text(encoding="utf-8").splitlines()]


def files_in(folder):
    return sorted(ascii(str(path.relative_to(folder))) for path in folder.rglob("*"))


def run_case(case, folder, material):
    """Run one case in a new folder that holds what it needs."""
    from hyperflux_cli.main import main

    folder.mkdir()
    os.chdir(folder)
    case.prepare(folder, material)
    _forget_peak()
    had = _peak_bytes()
    before, started, code = files_in(folder), time.process_time(), None
    with open(folder.parent / "out", "w+b") as out, open(folder.parent / "err", "w+b") as err:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        signal.setitimer(signal.ITIMER_REAL, 6 * LONGEST)
        try:
            main.main([*case.arguments], prog_name="hyperflux")
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "backslashreplace"))
    left = [name for name in files_in(folder) if name not in before]
    return Outcome(case.name, code, *texts, time.process_time() - started, left, (peak := _peak_bytes()), peak - had)


def _forget_peak():
    """Count the most memory from here on, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes():
    """The most memory that this process has had; what getrusage says may be its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text()).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _give_up(*_):
    raise TimeoutError("this case hangs")


def _limit_memory():
    """As much address space as is taken now, and `ROOM`; where the system does not say, the peak has to do."""
    taken = Path("/proc/self/statm")
    if taken.exists():
        limit = int(taken.read_text().split()[0]) * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def cases(group):
    """The cases of a group, bad or generated."""
    import front_door_cases
    import generated

    return {**front_door_cases.GROUPS, **generated.GROUPS}[group]


def _main(groups, work, report):
    import torch
    import torchvision  # noqa: F401  its libraries are not what a case takes

    torch.set_num_threads(1)
    material = Material.make(work / "material")
    signal.signal(signal.SIGALRM, _give_up)
    _limit_memory()
    with report.open("w", encoding="utf-8") as file:
        for group in groups:
            for number, case in enumerate(cases(group)):
                outcome = run_case(case, work / f"{group}-{number}", material)
                file.write(json.dumps(asdict(outcome)) + "\n")
                os.chdir(work)
                shutil.rmtree(work / f"{group}-{number}")


if __name__ == "__main__":
    _main(sys.argv[1].split(","), Path(sys.argv[2]), Path(sys.argv[3]))
