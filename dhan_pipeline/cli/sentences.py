"""What a person reads instead of a traceback."""

import errno
import os

from dhan_pipeline.errors import LACKS_TABLES, PipelineError

#: What a disk or a machine refuses without naming a file.
_NAMELESS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}

#: psycopg2's errors that the server or its machine is the cause of; not every command has to import it.
_SERVER = {
    "OperationalError",
    "InterfaceError",
    "ReadOnlySqlTransaction",
    "IdleInTransactionSessionTimeout",
    "TransactionTimeout",
    "DataCorrupted",
    "IndexCorrupted",
}


def explain(error: Exception) -> str | None:
    """The sentence for a person; None where only a traceback helps, because the program is wrong."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error.filename, str | bytes):
            return f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}."
        return f"A file cannot be used: {error.strerror}." if error.errno in _NAMELESS else None
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = str(error).partition("\n")[0].rstrip(".")
    if names & {"UndefinedTable", "UndefinedColumn"}:
        return LACKS_TABLES
    if "InsufficientPrivilege" in names:
        return f"The database's user may not do that: {reason}."
    # A bare DatabaseError is what a connection that breaks sometimes raises.
    if names & _SERVER or type(error).__name__ == "DatabaseError":
        return f"The database broke off: {reason}. Try again when that is mended."
    return None
