"""The files through which a certificate is issued are those that docs/issuing.md names."""

import re
import sys
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

import clustercert
from support.service import Service, exchange, scope_of
from support.world import World

SOURCE = Path(clustercert.__file__).parent
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "issuing.md"
# The page leaves out: model, built-in identity, the store's engine, logging, metrics, and what all routes share.
NAMED = (
    "http/cce",
    "authn",
    "clusters",
    "policy",
    "issuance",
    "pki",
    "store/cluster",
    "store/certificates/ledger.py",
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


def test_a_warm_post_runs_through_the_files_that_the_page_names(service: Service, world: World) -> None:
    # A change of the generation number empties the caches, so one of the requests may run through more files.
    touched = min((touched_by_a_warm_post(service, world) for _ in range(3)), key=len)
    named = re.findall(r"^\| `([a-z_/]+\.py)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(file for file in touched if file.startswith(NAMED)) == sorted(named)
