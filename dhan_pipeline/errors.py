"""What the command line tells a person in one sentence instead of a traceback."""


class PipelineError(Exception):
    """An error that a person can cause and can mend. Its message is one clear sentence that says how."""
