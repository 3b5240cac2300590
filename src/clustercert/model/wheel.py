"""The wheel that the operator builds with `make wheel` and hands out, since no package index has the project yet.

Messages and pages name this file, never the name `clustercert`: at an index, the name may be somebody else's.
"""

from clustercert import __version__


def wheel_file(version: str = __version__, extra: str = "") -> str:
    """Return the path of the wheel in the current folder, with an extra, as an argument for pip and pipx."""
    path = f"./clustercert-{version}-py3-none-any.whl"
    return f"'{path}[{extra}]'" if extra else path
