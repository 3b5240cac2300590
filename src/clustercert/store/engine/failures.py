"""Translates errors of the database drivers.

An error that may be temporary becomes Unavailable. An error that lasts until the operator acts becomes StoreFault,
whose message names the remedy. The driver's error, which may contain SQL, is kept as the `__cause__`, for the log.
"""

import contextlib
import os
import re
import shlex
import sqlite3
import ssl
import stat
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from clustercert.model.errors import StoreFault, Unavailable
from clustercert.secure_file import user_name
from clustercert.store.engine.writer import NOT_NOW, NothingBegun

DISK_FULL = "The database's disk is full. Ask the operator to free space."
_DISK_FULL_RETRY_SECONDS = 60
LOCKED = (
    "Another transaction has locked a part of the database for too long, such as a backup or a long query. Try again"
    " later."
)
SHARED_SESSIONS = (
    "The connection pooler in front of the database lends a server session for one transaction only. The"
    " settings that make commits durable would then not apply to all transactions. Set the pooler to session pooling"
    " (PgBouncer: pool_mode = session), or connect to the server without the pooler."
)

# SQLSTATE classes for which a retry is useless: data, constraint, and syntax or access errors. `_rejected` compares
# SQLSTATE classes, because the driver raises the same exception for most errors.
_REJECTED = frozenset({"22", "23", "42"})
# For this error of class 42, a retry can help, because a table is also missing while the database is created or
# restored.
_NO_SUCH_TABLE = "42P01"
# Source: PostgreSQL, appendix A, error codes.
_NO_LOGIN, _NO_DATABASE, _NO_RIGHT, _SERVER_DISK_FULL, _LOCK_NOT_AVAILABLE = (
    frozenset({"28000", "28P01"}),
    "3D000",
    "42501",
    "53100",
    "55P03",
)
# Prepared statements are missing, or exist already, only if a pooler runs the driver's session in several sessions.
_PREPARED_ELSEWHERE = frozenset({"26000", "42P05"})
# The driver's text for a missing ~/.postgresql/root.crt.
_MISSING_CA = re.compile(r'root certificate file "(.+?)" does not exist')
# Source: sqlite.org/rescode.html.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_ACCESS = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
)
_MOVED = 8 | 4 << 8


class _Verification(IntEnum):
    """Results of a check of a certificate. Source: OpenSSL, x509_vfy.h."""

    NOT_YET_VALID = 9
    EXPIRED = 10
    HOSTNAME_MISMATCH = 62
    IP_ADDRESS_MISMATCH = 64


@contextlib.contextmanager
def failures_translated(url: URL, data_dir: Path | None = None) -> Iterator[None]:
    """Turn database errors in the `with` block into Unavailable or StoreFault, except errors of rejected statements.

    Args:
        data_dir: the service's data folder, whose owner runs the service.
    """
    try:
        yield
    except NothingBegun as error:
        if reason := _fault(error.__cause__, url, data_dir):
            raise StoreFault(reason) from error.__cause__
        if _is_disk_full(error):
            raise NothingBegun(DISK_FULL, retry_after=_DISK_FULL_RETRY_SECONDS) from error.__cause__
        raise
    except (DBAPIError, PoolTimeout, sqlite3.Error, TimeoutError, OSError) as error:
        if reason := _fault(error, url, data_dir):
            raise StoreFault(reason) from error
        if _rejected(error):
            raise
        if _is_disk_full(error):
            raise Unavailable(DISK_FULL, retry_after=_DISK_FULL_RETRY_SECONDS) from error
        raise Unavailable(LOCKED if _sqlstate(error) == _LOCK_NOT_AVAILABLE else NOT_NOW) from error


def is_lasting(error: BaseException) -> bool:
    """Whether an SQLite error lasts until the operator acts, so that a retry is useless."""
    code = _sqlite_code(error)
    return code is not None and code & 0xFF in _DAMAGED | _NO_ACCESS


def _fault(error: BaseException | None, url: URL, data_dir: Path | None) -> str | None:
    """Return what is wrong and the remedy, or None for an error that may be temporary."""
    if error is None:
        return None
    if url.get_backend_name() == "sqlite":
        return _sqlite_fault(error, Path(str(url.database)).absolute())
    # Errors of the server have an SQLSTATE, and their texts may contain the data of users.
    sqlstate = _sqlstate(error)
    return _tls_fault(error, url) if sqlstate is None else _postgresql_fault(sqlstate, url, data_dir)


def _sqlite_fault(error: BaseException, path: Path) -> str | None:
    code = _sqlite_code(error)
    if code is None:
        # Don't check the file after a time-out. The file may be fine, and a file system that hangs would make the check
        # slow.
        is_file_error = isinstance(error, OSError) and not isinstance(error, TimeoutError)
        return _file_problem(path) if is_file_error else None
    if code & 0xFF in _DAMAGED:
        return (
            f"The file {path} is not an SQLite database, or it is damaged. Stop the service and restore a backup, or"
            " correct data_dir or database_url."
        )
    if code == _MOVED:
        return f"The database file {path} was moved or deleted. Stop the service, put the file back, and start again."
    return _file_problem(path) if code & 0xFF in _NO_ACCESS else None


def _file_problem(path: Path) -> str | None:
    """Return why this process can't read and write an SQLite file, or None if the process can."""
    folder = path.parent
    try:
        if not folder.exists():
            return f"The folder {folder} does not exist. Create it, or correct data_dir or database_url."
        # If this process may not enter the folder, `isdir` returns False and raises no error. The access checks below
        # then find the reason.
        if os.path.isdir(path):  # noqa: PTH112 - pathlib raises the error
            return f"{path} is a folder. Name a database file in database_url."
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"The file system of {folder} is read-only. Mount it with write access."
        # Also check the folder and the files that SQLite creates beside the database.
        for each in (folder, path, *folder.glob(f"{path.name}-*")):
            if each.exists() and not _may_use(each):
                return _no_access(each)
    except OSError as error:
        # Return None for other errors, such as a stale NFS handle, because they say less than the driver's error.
        return _no_entry(Path(error.filename)) if isinstance(error, PermissionError) else None
    return None


def _no_entry(path: Path) -> str:
    """Return a message that this process can't enter a folder above a path. The path need not exist."""
    folder = next(each for each in path.parents if os.path.exists(each))  # noqa: PTH110 - `Path.exists` raises an error
    return (
        f"The user {user_name(os.geteuid())} can't enter the folder {folder}, which belongs to"
        f" {user_name(folder.stat().st_uid)}. Correct data_dir or database_url, or run this program as a user who can"
        " enter the folder."
    )


def _may_use(path: Path) -> bool:
    mode = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, mode, effective_ids=True)


def _no_access(path: Path) -> str:
    """Return a message that this process can't use a file or folder, with the owner or mode of the path."""
    user, owner = user_name(os.geteuid()), "another user"
    with contextlib.suppress(OSError):
        status = path.stat()
        owner = user_name(status.st_uid)
        mode, needed = stat.S_IMODE(status.st_mode), 0o700 if path.is_dir() else 0o600
        if status.st_uid == os.geteuid() and needed & ~mode:
            change = "u+rwx" if path.is_dir() else "u+rw"
            return (
                f"The user {user} owns {path}, but its mode {mode:04o} denies reading or writing. Run "
                f"`chmod {change} {shlex.quote(str(path))}`."
            )
    return (
        f"The user {user} has no read and write access to {path}, which belongs to {owner}. Run this program as"
        f" {owner}, or change the owner and mode of {path}."
    )


def _postgresql_fault(sqlstate: str, url: URL, data_dir: Path | None) -> str | None:
    role, name = url.username or "of this process", url.database or ""
    if sqlstate in _NO_LOGIN:
        return (
            f"The database server rejects the login of the role {role}. {_password_advice(url, data_dir)} See also the"
            " server's pg_hba.conf."
        )
    if sqlstate in _PREPARED_ELSEWHERE:
        return SHARED_SESSIONS
    if sqlstate == _NO_DATABASE:
        return f"The database server has no database {name}. Create it, or correct database_url."
    if sqlstate == _NO_RIGHT:
        return (
            f"The database role {role} lacks rights. Make it the owner of the database {name} and its tables, or grant"
            " it CREATE and USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on the tables."
        )
    return None


def _password_advice(url: URL, data_dir: Path | None) -> str:
    """Return where to correct the password of a rejected login."""
    if url.password or os.environ.get("PGPASSWORD"):
        return f"Check the role and its password in {'database_url' if url.password else 'PGPASSWORD'}."
    file = Path(os.environ.get("PGPASSFILE") or os.path.expanduser("~/.pgpass"))  # noqa: PTH111
    problem = _password_file_problem(file)
    if problem is None:
        advice = f"Check the role and its password in {file}."
    else:
        advice = f"database_url and PGPASSWORD have no password, and {problem}."
    with contextlib.suppress(OSError):
        if data_dir is not None and (owner := data_dir.stat().st_uid) != os.geteuid():
            advice += f" Run this program as {user_name(owner)}, which owns {data_dir}."
    return advice


def _password_file_problem(file: Path) -> str | None:
    """Return why the driver ignores a password file, or None if the driver reads it. The driver reports nothing."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{file} is not a file"
        if (mode := stat.S_IMODE(status.st_mode)) & (stat.S_IRWXG | stat.S_IRWXO):
            return (
                f"{file} is ignored because of its mode {mode:04o}. Run `chmod 0600 {shlex.quote(str(file))}`"
            )
    except FileNotFoundError:
        return f"{file} does not exist"
    except OSError:
        pass
    else:
        if os.access(file, os.R_OK, effective_ids=True):
            return None
    return f"the user {user_name(os.geteuid())} can't read {file}"


def _tls_fault(error: BaseException, url: URL) -> str | None:
    """Return why no TLS connection to PostgreSQL is possible. The driver's errors differ only in their texts."""
    for each in _chain(error):
        if "rejected SSL upgrade" in str(each):
            mode = url.query.get("ssl")
            setting = (
                f"database_url has ssl={mode}" if mode else f"PGSSLMODE is {os.environ.get('PGSSLMODE')}"
            )
            return (
                f"The database server offers no TLS, but {setting}. Enable TLS in the server, or remove this setting "
                "if the network is protected."
            )
        if missing := _MISSING_CA.search(str(each)):
            return (
                f"The file {missing[1]} is missing. Put the CA of the database there, or set PGSSLROOTCERT."
            )
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"The database server's certificate is refused: {each.verify_message.rstrip('.')}. {_remedy(each)}"
        # These errors of the driver have no file name. The errors for a socket can be of the same types.
        if isinstance(each, (FileNotFoundError, PermissionError, ssl.SSLError)) and (
            problem := _ca_problem()
        ):
            return problem
    return None


def _ca_file() -> str:
    return os.environ.get("PGSSLROOTCERT") or os.path.expanduser("~/.postgresql/root.crt")  # noqa: PTH111


def _ca_problem() -> str | None:
    """Return why the file with the CA of the database can't be used, or None if it can, or if no file is needed."""
    file = _ca_file()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except FileNotFoundError:
        if file != os.environ.get("PGSSLROOTCERT"):
            return None
        return f"The file {file} is missing. Put the CA of the database there, or correct PGSSLROOTCERT."
    except PermissionError:
        return (
            f"The user {user_name(os.geteuid())} can't read {file}, the CA of the database. Change the owner or mode"
            " of the file, or set PGSSLROOTCERT to another file."
        )
    except ssl.SSLError:
        return (
            f"The file {file} has no certificate in PEM. Put the CA of the database there, or set PGSSLROOTCERT to"
            " another file."
        )
    return None


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case _Verification.HOSTNAME_MISMATCH | _Verification.IP_ADDRESS_MISMATCH:
            return "Correct the host in database_url, or give the server a certificate for this host."
        case _Verification.NOT_YET_VALID | _Verification.EXPIRED:
            return "Renew the server's certificate, or correct this machine's clock."
        case _:
            return f"Put the CA of the database into {_ca_file()}, or set PGSSLROOTCERT to the file with this CA."


def _rejected(error: Exception) -> bool:
    """Whether the database rejected a statement, so that a retry would not help."""
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
    if sqlstate is None:
        return isinstance(error, (IntegrityError, ProgrammingError, DataError, NotSupportedError))
    return sqlstate[:2] in _REJECTED and sqlstate != _NO_SUCH_TABLE


def _is_disk_full(error: BaseException) -> bool:
    code = _sqlite_code(error)
    return _sqlstate(error) == _SERVER_DISK_FULL or (code is not None and code & 0xFF == sqlite3.SQLITE_FULL)


def _sqlstate(error: BaseException) -> str | None:
    return next((state for each in _chain(error) if (state := getattr(each, "sqlstate", None))), None)


def _sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's extended error code, or None."""
    return next((code for each in _chain(error) if (code := getattr(each, "sqlite_errorcode", None))), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it wraps."""
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__
