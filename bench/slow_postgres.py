"""Measures the webhook's response times while PostgreSQL is slow and clients request certificates.

Two ways to be slow: a certificate's insert waits before its commit, as on a slow disk; or every message to and from the
server is delayed, as by a slow network or an overloaded server.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

from bench import attacked, slow_link, world
from bench.postgres import Postgres

NAME = "slow_postgres"
COMMIT_SECONDS = 2
# Each way, so that a statement takes at least twice as long.
DELAYS = (0.05, 0.3, 0.5)

_SLOW_COMMITS = f"""
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep({COMMIT_SECONDS}); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON certificate INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow();
"""
_FAST_COMMITS = "DROP TRIGGER slow ON certificate; DROP FUNCTION slow();"


def measure(folder: Path, seconds: float, server: Postgres) -> list[dict[str, object]]:
    """Return the figures for each kind of slowness."""
    folder.mkdir(parents=True, exist_ok=True)
    url = make_url(server.create(NAME))
    with slow_link.running(server.port, folder) as link:
        through_link = url.set(port=link.port).render_as_string(hide_password=False)
        store = world.prepare(folder, database_url=through_link, database=server.pid)
        with attacked.in_front(store) as front:
            prepared = attacked.prepared(store, front)
            slow: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
                "nothing": contextlib.nullcontext,
                f"commits, by {COMMIT_SECONDS} s": lambda: _slow_commits(server),
                **{f"every message, by {delay * 1000:.0f} ms": _delayed(link, delay) for delay in DELAYS},
            }
            rows = []
            for name, slowness in slow.items():
                with slowness(), attacked.issuing(prepared):
                    rows.append(attacked.figures(prepared, name, seconds))
    return rows


def _delayed(
    link: slow_link.RunningLink, seconds: float
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    return lambda: link.delaying(seconds)


@contextlib.contextmanager
def _slow_commits(server: Postgres) -> Iterator[None]:
    server.sql(NAME, _SLOW_COMMITS)
    try:
        yield
    finally:
        server.sql(NAME, _FAST_COMMITS)
