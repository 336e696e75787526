"""What a person is told in one sentence instead of a traceback, and what is kept to ourselves."""

import errno
import os
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


#: What a disk or a machine refuses without naming a file.
_NAMELESS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}

#: psycopg2's errors that the server or its machine is the cause of; not every program has to import it.
_SERVER = {
    "OperationalError",
    "InterfaceError",
    "ReadOnlySqlTransaction",
    "IdleInTransactionSessionTimeout",
    "TransactionTimeout",
    "DataCorrupted",
    "IndexCorrupted",
}


def explain(error: BaseException) -> str | None:
    """The sentence for a person; None where only a traceback helps, because the program is wrong."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error.filename, str | bytes):
            return f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}."
        return f"A file cannot be used: {error.strerror}." if error.errno in _NAMELESS else None
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = _first_line(error).rstrip(".")
    if names & {"UndefinedTable", "UndefinedColumn"}:
        return LACKS_TABLES
    if "InsufficientPrivilege" in names:
        return f"The database's user may not do that: {reason}."
    # A bare DatabaseError is what a connection that breaks sometimes raises.
    if names & _SERVER or type(error).__name__ == "DatabaseError":
        return f"The database broke off: {reason}. Try again when that is mended."
    return None


def in_words(error: BaseException) -> str:
    """Any error as a sentence for a person, without secrets."""
    said = explain(error)
    if said is None:
        name, words = type(error).__name__, _first_line(error)
        said = words if words == name else f"{name}: {words}"
    return redacted(said if said.endswith((".", "?")) else f"{said}.")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().partition("\n")[0].split()) or type(error).__name__


def redacted(text: str) -> str:
    """The text without what looks like a token, a PIN or a password.

    A net, not the rule: messages of ours never hold one, but those of a library may.
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
