"""`parspike`, `python -m parspike`, and so `torchrun -m parspike`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the script `parspike`."""
    try:
        # Importing the command line takes a third of a second, in which Ctrl-C ends it too.
        from parspike.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
