"""What a person reads instead of a traceback."""

import errno
import os

from dhan_pipeline.errors import PipelineError

#: What a machine refuses for reasons that a person can mend.
_MACHINE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO,
}  # fmt: skip


def explain(error: Exception) -> str | None:
    """The sentence for a person; None where only a traceback helps, because the program is wrong."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MACHINE and error.filename is not None:
        return f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"A file could not be written: {error.strerror}."
    match type(error).__name__:  # psycopg2's: not every command has to import it
        case "UndefinedTable" | "UndefinedColumn":
            return "The database lacks our tables, or has old ones; run: dhan-pipeline migrate."
        case "InsufficientPrivilege":
            return f"The database's user may not do that: {str(error).partition(chr(10))[0]}."
        case "OperationalError" | "InterfaceError" | "AdminShutdown" | "ReadOnlySqlTransaction":
            return f"The database broke off: {str(error).partition(chr(10))[0].rstrip('.')}. Try again when it is back."
    return None
