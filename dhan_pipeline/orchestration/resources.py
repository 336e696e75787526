"""What assets, checks, ops and sensors are handed at run time, and how a person's mistake becomes a failed step.

Belongs here: the resource dictionary and its types. Does not: connections. A step opens the one it needs and closes it,
so that definitions load while the database is down.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg
from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.orchestration.run_tags import tag_run
from dhan_pipeline.settings import Settings

#: Starts the capture that the ingest run supervises: the same program that a person can start.
CAPTURE_COMMAND = (sys.executable, "-m", "dhan_pipeline.cli", "ingest", "--supervised")


def build_resources(settings: Settings, clock: Clock, capture_command: Sequence[str]) -> dict[str, object]:
    """The resources by name, as `Definitions` takes them. Everything that runs asks for the settings, and is tagged."""

    @dg.resource(config_schema={}, description="The settings of the environment and of `.env`.")
    def tagging_settings(context: dg.InitResourceContext) -> Settings:
        tag_run(context)
        return settings

    return {"settings": tagging_settings, "clock": clock, "capture_command": list(capture_command)}


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, so that a child process has the same whatever its own `.env` says."""
    values = {name.upper(): getattr(settings, name) for name in type(settings).model_fields}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
        if value is not None
    }


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error that a person can mend into a failed step that says it in one sentence."""
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
