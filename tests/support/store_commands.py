"""Which commands work on the store only if they are told to. Needs no module of the service."""

from collections.abc import Iterable

# Commands that call a service unless they are told to work on the store.
_OVER_API = {"access-key", "certificate", "cluster", "domain", "group", "project", "role", "user"}
_OVER_API_PAIRS = {
    ("audit", "show"),
    ("audit", "tail"),
    ("identity", "explain"),
    ("kubernetes", "token"),
    ("policy", "explain"),
    ("policy", "replay"),
}


def on_store(arguments: Iterable[str]) -> list[str]:
    """Return the arguments of a command, with `--local` if it would use a login."""
    first, *rest = arguments
    over_api = first in _OVER_API or (first, *rest[:1]) in _OVER_API_PAIRS
    is_local = over_api and "--profile" not in rest
    return [first, *rest, "--local"] if is_local else [first, *rest]
