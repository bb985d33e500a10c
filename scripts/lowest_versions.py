"""Run the tests with the oldest dependencies that pyproject.toml allows.

    python3.11 scripts/lowest_versions.py
    python3.11 scripts/lowest_versions.py --newest torch,torchvision -- tests/report -x

Makes an environment in .venv-lowest, installs this project with every lower bound as the exact version, and runs
pytest with the arguments after `--`. Use the oldest Python that the project supports: some of these versions have no
files for newer ones.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-lowest"
EXTRAS = ("vision", "onnx", "test")


def lower_bounds() -> dict[str, str]:
    """The oldest version of each package that the project or one of its tested extras needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)]
    found = (re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line) for lines in listed for line in lines)
    return {match[1]: match[2] for match in found if match}


def main() -> int:
    """Install and test; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description="Run the tests with the oldest dependencies.")
    parser.add_argument("--newest", default="", metavar="NAME,NAME", help="packages to install in their newest version")
    parser.add_argument("tests", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    pins = lower_bounds()
    for name in filter(None, options.newest.split(",")):
        if pins.pop(name, None) is None:
            parser.error(f"--newest: {name} is not one of {', '.join(pins)}")

    venv.create(ENVIRONMENT, with_pip=True)
    python = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    constraints = ENVIRONMENT / "lowest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
    wanted = f"{ROOT}[{','.join(EXTRAS)}]"
    subprocess.run([python, "-m", "pip", "install", "--constraint", constraints, "--editable", wanted], check=True)
    return subprocess.run([python, "-m", "pytest", *options.tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
