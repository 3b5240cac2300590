"""Refresh tokens in the system's keyring, with the optional package `keyring`.

A keyring may ask its user to unlock it, or hang on a machine without a desktop. So each call has a time limit.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from clustercert.cli.options import CommandError

T = TypeVar("T")

_SERVICE = "clustercert"
_SECONDS = 30.0


def check() -> None:
    """Raise CommandError if there is no keyring, or if it does not answer."""
    get("check")


def put(account: str, secret: str) -> None:
    """Save a secret. Raises CommandError if there is no keyring, or if it does not answer."""
    _within_time(lambda: _keyring().set_password(_SERVICE, account, secret))


def get(account: str) -> str | None:
    """Return a secret, or `None` if there is none. Raises CommandError."""
    return _within_time(lambda: _keyring().get_password(_SERVICE, account))


def delete(account: str) -> None:
    """Delete a secret if there is one. Raises CommandError."""
    if get(account) is not None:
        _within_time(lambda: _keyring().delete_password(_SERVICE, account))


class _Keyring:
    """The functions of the package that are used."""

    set_password: Callable[[str, str, str], None]
    get_password: Callable[[str, str], str | None]
    delete_password: Callable[[str, str], None]


def _keyring() -> _Keyring:
    import keyring

    found: _Keyring = keyring
    return found


def _within_time(work: Callable[[], T]) -> T:
    """Run a call in a thread that does not keep the process alive."""
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - backends raise errors of their own
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if results:
        return results[0]
    if failures and isinstance(failures[0], ModuleNotFoundError):
        raise CommandError(
            "The package keyring is not installed. Run `pip install 'clustercert[keyring]'`, or omit --keyring."
        )
    reason = type(failures[0]).__name__ if failures else f"no answer within {_SECONDS:.0f} seconds"
    raise CommandError(f"The keyring can't be used ({reason}). Log in again without --keyring.")
