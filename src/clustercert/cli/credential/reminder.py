"""Reminds a user of kubectl, once for each login, that the login ends soon and can't be renewed automatically."""

import contextlib
import os
from pathlib import Path

from clustercert.cli.credential import cache
from clustercert.cli.terminal import notices


def remind_from_cache(path: str, entry: cache.CachedCredential, name: str) -> None:
    """Remind the user of the login's end, and record this in a cache file, so that later calls of the plugin are fast.

    Args:
        path: the cache file that contains `entry`.
    """
    from clustercert.cli.file_lock import LockTimeout, locked
    from clustercert.secure_file import write_private

    remind_of_login(name, entry.login)
    # If a parallel call holds the lock, the next call records the reminder.
    with contextlib.suppress(LockTimeout, OSError), locked(path, wait_seconds=0):
        current = cache.read(path)
        if current is not None and current.login == entry.login:
            current.remind = 0
            write_private(Path(path), cache.rendered(current))


def remind_of_login(name: str, state: str) -> None:
    """Print on standard error when the login of a profile ends, unless this reminder was printed before.

    Args:
        state: a string that identifies the version of the login's file, from `cache.login_state`.
    """
    if not notices.is_new(f"{name},login", state):
        return
    from clustercert.cli.login import profile
    from clustercert.cli.options import CommandError
    from clustercert.cli.terminal.output import print_note
    from clustercert.model.times import rfc3339

    with contextlib.suppress(CommandError):
        found = profile.remembered(name, os.environ)
        if found is not None and found.ends_at is not None:
            print_note(
                f"clustercert: Your login at {found.url} ends at {rfc3339(found.ends_at)}. "
                f"{profile.log_in_again(name)}"
            )
