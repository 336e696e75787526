"""`python -m dhan_pipeline.cli`."""

from dhan_pipeline.cli import main

main()
