"""The command `statebroker`, also `python -m workers`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without its dependencies, name the extra to install."""
    try:
        from workers.cli import statebroker

        # It imports its commands when they are used.
        statebroker()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (
            "click",
            "rich",
            "apscheduler",
        ):
            raise
        print(
            f"statebroker: the command needs {error.name}; run: pip install 'statebroker[server]'",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
