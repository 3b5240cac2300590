"""The number of files that this process may open."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_many_as_possible() -> Iterator[int]:
    """Raise the bound as far as it goes, and yield it. The former bound holds afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard if hard != resource.RLIM_INFINITY else 1 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
