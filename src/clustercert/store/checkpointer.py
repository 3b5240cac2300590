"""The thread that writes an SQLite file's log back into the file, beside the transactions.

SQLite does that within a commit by itself, every so many pages, and all who want to write wait for it: where indexes
are large and in random order, for as long as thousands of pages take to get to places all over the disk. It still
does, but finds little left to do.

Source: sqlite.org/wal.html, "Checkpointing" and "Avoiding Excessively Large WAL Files".
"""

import contextlib
import sqlite3
import threading
from pathlib import Path

# Of all tables together; a certificate with its event is two, and one more when it is sealed.
ROWS = 1500
_CLOSING_SECONDS = 5.0


class Checkpointer:
    """One thread and one connection, made when they are needed first. To be used by one thread."""

    def __init__(self, path: str, rows: int = ROWS) -> None:
        self._path = path
        self._rows = rows
        self._begun_at = 0
        self._due = threading.Event()
        self._ends = False
        self._thread: threading.Thread | None = None

    def changed(self, rows: int) -> None:
        """Begin, if there is enough to do; `rows` were changed by the caller's connection in all its life."""
        if not 0 <= rows - self._begun_at < self._rows:
            self._begun_at = rows
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqlite-checkpointer", daemon=True)
                self._thread.start()
            self._due.set()

    def close(self) -> None:
        """End the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ends = True
            self._due.set()
            thread.join(_CLOSING_SECONDS)
            self._ends = False

    def _run(self) -> None:
        # A file that isn't there is not made.
        uri = f"{Path(self._path).absolute().as_uri()}?mode=rw"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection,
        ):
            # What is in the file is on the disk before the log may be overwritten.
            connection.execute("PRAGMA synchronous=FULL")
            while True:
                self._due.wait()
                self._due.clear()
                if self._ends:
                    return
                # It waits for nobody and nobody waits for it. What can't be done now, is done the next time, or by a
                # commit, which says what is wrong.
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
