"""The person's door: `dhan-pipeline`. Parses arguments, calls the rooms, says errors in one sentence.

Exit codes: 0 success, 1 a failure that is explained in one sentence, 2 wrong usage, 130 interrupted before the work was
done. With `--json` a command prints one JSON object (or JSON lines) on standard output and everything else on standard
error. Modules are imported inside the commands, so that `decode` does not wait for a database driver nor `ingest` for
Dagster.
"""

import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line, and exit with its code."""
    _fill_standard_streams()
    try:
        from dhan_pipeline.cli.app import run, set_up_logging  # takes a moment, in which Ctrl-C may come

        set_up_logging()
        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _fill_standard_streams() -> None:
    # Where one of them is closed (`>&-`), the next file that is opened takes its number, and what a library says on
    # standard error would end up in the journal.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
