"""Two workers and npm's oidc-provider: keys that it rotates under load, and a settings file that removes it."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support import world as worlds
from support.issuer_login import Login
from support.real_issuers import OidcProvider, oidc_provider
from support.serve_process import Serving, serving
from support.wait import SECONDS, eventually
from support.world import World

pytestmark = pytest.mark.slow

PEOPLE = ("alice", "bob", "carol", "dave")
LOG_INS, ROTATED_AT = 12, 4


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path, {name: ["team-blue"] for name in PEOPLE}) as running:
        yield running


def log_in(running: Serving, token: str) -> int:
    """The status of a login on a connection of its own, so that both workers get some."""
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{running.url}/v3/auth/projects"
    return httpx2.get(url, headers=headers, trust_env=False, timeout=SECONDS).status_code


def test_a_rotation_under_load_costs_no_failed_log_in(tmp_path: Path, issuer: OidcProvider) -> None:
    """Each login has a new token. The issuer signs with the new key as soon as it is public."""
    world = worlds.make(tmp_path)
    configured = json.dumps([issuer.settings(projects=[world.project.id])])
    rotation = threading.Lock()
    rotated: set[str] = set()
    with serving(world, "--workers", "2", IDENTITY__ISSUERS=configured) as running:

        def work(account: str) -> list[int]:
            login = Login(issuer)
            tokens, statuses = login.by_code(account), []
            for number in range(LOG_INS):
                if number == ROTATED_AT:
                    with rotation:
                        if not rotated:
                            issuer.rotate()
                        rotated.add(account)
                tokens = login.tokens(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
                statuses.append(log_in(running, tokens["id_token"]))
            return statuses

        with ThreadPoolExecutor(len(PEOPLE)) as pool:
            done = [*pool.map(work, PEOPLE)]
    assert {status for statuses in done for status in statuses} == {200}
    assert [len(statuses) for statuses in done] == [LOG_INS] * len(PEOPLE)


def log_lines(world: World, event: str) -> list[dict[str, Any]]:
    # The last line may be incomplete.
    written = (world.folder / "log").read_text().rpartition("\n")[0]
    lines = (json.loads(line) for line in written.splitlines())
    return [line for line in lines if line["event"] == event]


def reloaded(world: World, count: int) -> bool:
    return len(log_lines(world, "settings reloaded")) >= count


def write(path: Path, *issuers: dict[str, Any]) -> None:
    """Replace the settings file by one with these issuers."""
    tables = ['[[policy.rules]]\ngrant.groups = ["{group.id}"]\n']
    for issuer in issuers:
        fields = "".join(f"{name} = {json.dumps(value)}\n" for name, value in issuer.items())
        tables.append(f"[[identity.issuers]]\n{fields}")
    new = path.with_suffix(".new")
    new.write_text("\n".join(tables))
    new.rename(path)


def test_both_workers_follow_the_settings_file(tmp_path: Path, issuer: OidcProvider) -> None:
    world, file = worlds.make(tmp_path), tmp_path / "clustercert.toml"
    write(file)
    # Each worker gets a part of the 80 refused logins, however the kernel distributes them.
    with serving(world, "--workers", "2", CONFIG=file, LIMITS__FAILURES_PER_MINUTE="0") as running:
        token = Login(issuer).by_code("alice")["id_token"]

        def statuses() -> set[int]:
            return {log_in(running, token) for _ in range(20)}

        assert statuses() == {401}
        for settings, status, count in (
            ([issuer.settings(projects=[world.project.id])], 200, 2),
            ([issuer.settings(projects=[world.project.id], audiences=["another"])], 401, 4),
            ([issuer.settings(projects=[world.project.id])], 200, 6),
            ([], 401, 8),
        ):
            write(file, *settings)
            eventually(partial(reloaded, world, count))
            assert statuses() == {status}
        file.with_suffix(".new").write_text("[[identity.issuers]]\nname = ")
        file.with_suffix(".new").rename(file)
        eventually(lambda: len(log_lines(world, "settings not reloaded")) >= 2)
        assert statuses() == {401}
