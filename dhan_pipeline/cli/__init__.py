"""The person's door: `dhan-pipeline`. Parses arguments, calls the rooms, says errors in one sentence.

Exit codes: 0 success, 1 a failure that is explained in one sentence, 2 wrong usage, 130 interrupted before the work was
done. With `--json` a command prints one JSON object (or JSON lines) on standard output and everything else on standard
error. Modules are imported inside the commands, so that `decode` does not wait for a database driver nor `ingest` for
Dagster.
"""

import sys


def main() -> None:
    """Run the command line, and exit with its code."""
    try:
        from dhan_pipeline.cli.app import run, set_up_logging  # takes a moment, in which Ctrl-C may come

        set_up_logging()
        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
