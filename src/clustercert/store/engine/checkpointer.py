"""A thread that checkpoints an SQLite file: it copies the write-ahead log into the file while transactions continue.

SQLite also checkpoints during a commit when the log reaches a size limit, and then all writers wait. If large indexes
are written in random order, copying takes a long time, because thousands of pages are scattered over the disk. With
this thread, a commit has few pages left to copy.

Source: sqlite.org/wal.html, "Checkpointing" and "Avoiding Excessively Large WAL Files".
"""

import contextlib
import sqlite3
import threading
from pathlib import Path

# Number of changed rows after which a checkpoint starts. Issuing a certificate changes two rows, and
# sealing its event changes one more.
ROWS = 1500
_CLOSING_SECONDS = 5.0


class Checkpointer:
    """The checkpointing thread and its connection, created on first use. Call the methods from one thread only."""

    def __init__(self, path: str, rows: int = ROWS) -> None:
        self._path = path
        self._rows = rows
        self._begun_at = 0
        self._due = threading.Event()
        self._ends = False
        self._thread: threading.Thread | None = None

    def changed(self, rows: int) -> None:
        """Start a checkpoint if enough rows have changed since the last checkpoint.

        `rows`: how many rows the caller's connection has changed in total.
        """
        if not 0 <= rows - self._begun_at < self._rows:
            self._begun_at = rows
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqlite-checkpointer", daemon=True)
                self._thread.start()
            self._due.set()

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ends = True
            self._due.set()
            thread.join(_CLOSING_SECONDS)
            self._ends = False

    def _run(self) -> None:
        # Mode `rw` does not create a missing file.
        uri = f"{Path(self._path).absolute().as_uri()}?mode=rw"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection,
        ):
            # The changes to the file must be on disk before the log may be overwritten.
            connection.execute("PRAGMA synchronous=FULL")
            while True:
                self._due.wait()
                self._due.clear()
                if self._ends:
                    return
                # A passive checkpoint neither waits for other connections nor blocks them. Ignore an error here: the
                # next checkpoint or a commit copies the pages, and a commit also reports the error.
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
