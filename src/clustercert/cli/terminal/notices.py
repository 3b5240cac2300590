"""Notices that are shown once.

Files in the cache folder record which notices were shown. Without a cache folder, no notices are shown.
"""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from clustercert import __version__
from clustercert.cli.credential import cache

_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", re.ASCII)


def recommend_version(url: str, recommended: str) -> None:
    """Print once a day, in a terminal, that a service recommends a newer version of the command line.

    Args:
        recommended: a version such as `0.2.0`, as the service sent it. A text that is not a version is
            ignored.
    """
    from clustercert.cli.terminal.output import print_note
    from clustercert.model.wheel import wheel_file

    wanted, current = _VERSION.fullmatch(recommended), _VERSION.match(__version__)
    if wanted is None or current is None or not sys.stderr.isatty():
        return
    is_newer = tuple(map(int, wanted.groups())) > tuple(map(int, current.groups()))
    # With a token in CLUSTERCERT_TOKEN, as in a CI job, the command writes no files.
    if (
        is_newer
        and not os.environ.get("CLUSTERCERT_TOKEN")
        and is_new("version", f"{datetime.now(UTC):%Y-%m-%d}")
    ):
        print_note(
            f"{url} recommends version {recommended} of clustercert; this is {__version__}. Get the wheel from the "
            "operator of the service, and install it, for example with "
            f"`pipx install --force {wheel_file(recommended)}`."
        )


def is_new(name: str, occasion: str) -> bool:
    """Record that a notice is shown. Returns False if the notice must not be shown.

    A notice must not be shown if it was already shown on this occasion, or if writing the record fails.
    """
    from clustercert.secure_file import make_private_folder, write_private

    folder = cache.folder("notices")
    if folder is None:
        return False
    path = Path(folder) / name
    try:
        if path.exists() and path.read_text(encoding="utf-8") == occasion:
            return False
        make_private_folder(path.parent)
        write_private(path, occasion)
    except (OSError, ValueError):
        return False
    return True
