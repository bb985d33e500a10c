"""The installed command, and `python -m hyperflux_cli`: Ctrl-C is caught before anything else is imported."""

from __future__ import annotations

from .signals import catch_ctrl_c


def main() -> None:
    """Run the command line and exit."""
    catch_ctrl_c()
    from .main import main as run

    run()


if __name__ == "__main__":
    main()
