"""The installed command, and `python -m hyperflux_cli`: Ctrl-C is caught before anything else is imported."""

from __future__ import annotations

import sys

from .signals import catch_ctrl_c


def main() -> None:
    """Run the command line and exit."""
    catch_ctrl_c()
    try:
        from .main import main as run
    except Exception as error:  # a library that is missing or broken
        from .unexpected import UNEXPECTED, unexpected_line

        print(unexpected_line(error), file=sys.stderr)
        sys.exit(UNEXPECTED)
    run()


if __name__ == "__main__":
    main()
