"""Makes work of services short, where tests would only wait for it."""

import contextlib
from collections.abc import Iterator

import pytest

from clustercert.identity.passwords import Passwords
from clustercert.jobs import sealing
from clustercert.kubernetes.webhook import credential_usage
from clustercert.store.engine.generation import Generation
from support.accounts import CHEAP


@contextlib.contextmanager
def quick_propagation() -> Iterator[None]:
    """Stale caches end, and logouts wait for them, after 0.15 seconds instead of 1.25."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "INTERVAL", 0.05)
        patch.setattr(Generation, "STALE_AFTER", 0.1)
        patch.setattr(Generation, "PROPAGATION", 0.15)
        yield


@contextlib.contextmanager
def quick_audit() -> Iterator[None]:
    """Events are sealed, and reported credentials are stored, after 0.1 seconds instead of one and three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "SEAL_SECONDS", 0.1)
        patch.setattr(credential_usage, "FLUSH_SECONDS", 0.1)
        yield


@contextlib.contextmanager
def quick_passwords() -> Iterator[None]:
    """Services that are started in this block hash passwords with little work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passwords.__init__, "__defaults__", (CHEAP,))
        yield
