"""The command `scripts/bench`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from scripts.benchmarks import docs_folder
from scripts.benchmarks.measure import blank, measure
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.options import parse
from scripts.benchmarks.table import print_report

EXIT_FAULTS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(argv)
    if sys.platform != "linux":
        print("scripts/bench: reads CPU times as Linux gives them; run it there", file=sys.stderr)
        return EXIT_USAGE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    progress = Console(stderr=True)
    try:
        if options.redraw:
            files = docs_folder.redraw(options.docs)
        else:
            report = blank(options)
            if options.docs is not None:
                # Whether the new numbers can join the earlier ones, before measuring for minutes.
                docs_folder.with_earlier_numbers(report, options, options.docs)
            report = measure(options, report, progress)
            if options.json:
                print(docs_folder.as_text(report), end="")
            else:
                print_report(report, Console())
            files = []
            if options.docs is not None:
                whole = docs_folder.with_earlier_numbers(report, options, options.docs)
                files = docs_folder.write(whole, options.docs)
    except BenchmarkError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    for file in files:
        progress.print(f"wrote {file}", markup=False, highlight=False, soft_wrap=True)
    return 0 if options.redraw or report.is_valid else EXIT_FAULTS


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(EXIT_INTERRUPTED)
