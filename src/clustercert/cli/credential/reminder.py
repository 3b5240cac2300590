"""Reminds a user of kubectl, once for each login, that the login ends and can't renew itself."""

import contextlib
import os

from clustercert.cli import notices


def remind_of_login(name: str, state: str) -> None:
    """Say on standard error when the login of a profile ends, unless that was said before.

    Args:
        state: the state of the login's file, see `cache.login_state`.
    """
    if not notices.is_new(f"{name},login", state):
        return
    from clustercert.cli.login import profile
    from clustercert.cli.options import CommandError
    from clustercert.cli.output import print_note
    from clustercert.model.times import rfc3339

    with contextlib.suppress(CommandError):
        found = profile.remembered(name, os.environ)
        if found is not None and found.ends_at is not None:
            print_note(
                f"clustercert: Your login at {found.url} ends at {rfc3339(found.ends_at)}. "
                f"{profile.log_in_again(name)}"
            )
