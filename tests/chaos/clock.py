"""A wall clock that can be set, for the server and the workers, with libfaketime."""

from __future__ import annotations

from pathlib import Path

from broker.embedded.binary import bundled_binary

PLACES = (
    *("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime"),
    *("/usr/lib/faketime", "/usr/local/lib/faketime"),
)
LIBRARY = "libfaketimeMT.so.1"
NO_LIBRARY = "libfaketime is not installed (on Debian: apt-get install libfaketime)"
NOT_BUNDLED = "libfaketime works with the bundled Valkey, and not with servers that use jemalloc"


class Clock:
    """The wall clock of the processes of this run.

    Args:
        folder: of this run.
        binary: of the server, if it is not the bundled one.

    Attributes:
        obstacle: why the clock cannot be set; None if it can.
    """

    def __init__(self, folder: Path, binary: str | None) -> None:
        found = [Path(place) / LIBRARY for place in PLACES if (Path(place) / LIBRARY).exists()]
        self.obstacle: str | None = None
        if binary is not None or bundled_binary() is None:
            self.obstacle = NOT_BUNDLED
        elif not found:
            self.obstacle = NO_LIBRARY
        self._file = folder / "clock"
        self.environment: dict[str, str] = {}
        if self.obstacle is None:
            self.step(0)
            self.environment = {
                "LD_PRELOAD": str(found[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self._file),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }

    def step(self, seconds: float) -> None:
        """Set the clock to this offset from the true time; effective within a second."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(f"{seconds:+.3f}\n")
        draft.replace(self._file)
