"""What the command line tells a person in one sentence instead of a traceback, and what it keeps to itself."""

import re

#: What a secret looks like wherever it turns up: a JSON web token, Kite's header, a parameter, a password in a URL.
_SECRETS = (
    (re.compile(r"\beyJ[\w-]*\.[\w-]+\.[\w-]*"), "***"),
    (re.compile(r"(?i)\b(token \w{6,}:)\w{6,}"), r"\1***"),
    (
        re.compile(
            r"(?i)(?<!instrument_)((?:token|pin|totp|secret|password|checksum)(?:=|%3D|[\"']: ?)[\"']?)[^\s&\"',;}]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(://[^\s/:@]*:)(?!password@)\S*@"), r"\1***@"),
)


#: The sentence for a database that is not, or not wholly, migrated.
LACKS_TABLES = "The database lacks our tables, or has old ones; run: dhan-pipeline migrate."


class PipelineError(Exception):
    """An error that a person can cause and can mend. Its message is one clear sentence that says how."""


def redacted(text: str) -> str:
    """The text without what looks like a token, a PIN or a password.

    A net, not the rule: messages of ours never hold one, but those of a library may.
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
