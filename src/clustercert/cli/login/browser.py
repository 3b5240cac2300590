"""Opens addresses in the user's browser."""

import subprocess
import sys
from collections.abc import Mapping

_OFF = ("", "0", "false", "no")


def is_ci(environment: Mapping[str, str]) -> bool:
    """Whether the variable CI is set, so that no person is at the terminal."""
    return environment.get("CI", "").lower() not in _OFF


def has_browser(environment: Mapping[str, str]) -> bool:
    """Whether this machine has a browser that opens a window. Browsers in a terminal do not count."""
    has_display = sys.platform in ("darwin", "win32") or any(
        environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if not has_display:
        return False
    import webbrowser

    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def open_window(url: str) -> None:
    """Open an address, without waiting. Other users of this machine may see the address."""
    # A browser may write to standard output, which is kubectl's, or stay in the foreground.
    subprocess.Popen(  # noqa: S603 - no shell, and the address is ours
        [sys.executable, "-I", "-m", "webbrowser", url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
