"""How much code a reader must read to understand how a certificate is issued."""

import sys
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

import clustercert
from support.service import Service, exchange, scope_of
from support.world import World

MAX_FILES, MAX_LINES = 9, 1200

SOURCE = Path(clustercert.__file__).parent
# Not counted: model, built-in identity, the store's engine, logging, metrics, and what all routes share.
COUNTED = (
    "http/cce",
    "authn",
    "clusters",
    "policy",
    "issuance",
    "pki",
    "store/cluster",
    "store/ledger.py",
)

# Set for the request and the tasks that it starts, but not for background jobs in the same event loop.
_TRACED: ContextVar[bool] = ContextVar("traced", default=False)


def touched_by_a_warm_post(service: Service, world: World) -> set[str]:
    """Return the files, relative to the package, whose functions run for one POST with a token."""
    files: set[str] = set()

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        if _TRACED.get():
            files.add(frame.f_code.co_filename)

    headers = [
        (b"content-type", b"application/json"),
        (b"x-auth-token", world.people["admin"].token.encode()),
    ]

    async def post() -> int:
        scope = scope_of("POST", world.path(), headers)
        return (await exchange(service.app, scope, [b'{"duration": 1}'])).status_code

    async def traced() -> int:
        before = sys.gettrace()
        _TRACED.set(True)
        sys.settrace(note)
        try:
            return await post()
        finally:
            sys.settrace(before)

    for _ in range(2):
        assert service.run(post()) == 200
    assert service.run(traced()) == 200
    paths = (Path(file) for file in files)
    return {path.relative_to(SOURCE).as_posix() for path in paths if path.is_relative_to(SOURCE)}


def test_a_warm_post_runs_through_few_files(service: Service, world: World) -> None:
    # A change of the generation number empties the caches, so one of the requests may be slower.
    touched = min((touched_by_a_warm_post(service, world) for _ in range(3)), key=len)
    counted = sorted(file for file in touched if file.startswith(COUNTED))
    lines = {file: len((SOURCE / file).read_text().splitlines()) for file in counted}
    assert len(lines) <= MAX_FILES, lines
    assert sum(lines.values()) <= MAX_LINES, lines
