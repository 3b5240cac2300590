"""POST /clustercert/v1/caller/logout: a user whose machine was lost ends all logins, and revokes all certificates."""

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx2
import pytest

from clustercert.authn.oidc.issuers import derived_id
from clustercert.model import Actor, FederatedDomain, IssueRequest, Origin, User
from clustercert.model.errors import TooManyRequests
from clustercert.store.engine.generation import Generation
from clustercert.store.identity import logins
from clustercert.wiring import Components, open_components
from support import world as worlds
from support.keystone import Keystone, in_project
from support.oidc import IssuerServer
from support.service import Service
from support.stores import Store
from support.wait import eventually
from support.world import World

pytestmark = pytest.mark.usefixtures("quick_propagation")

PATH = "/clustercert/v1/caller/logout"
CALLER = "/clustercert/v1/caller"
ACTOR = Actor("cli:test", Origin("local", "0" * 32))
CLOCK_DIFFERENCE = 1


@dataclass
class Site:
    """A service with an issuer, and an operator's access to its store."""

    world: World
    issuer: IssuerServer
    service: Service
    operator: Components

    @property
    def client(self) -> httpx2.Client:
        return self.service.client

    def new_user(self, name: str) -> "BuiltInUser":
        made = self.client.put(
            f"/clustercert/v1/users/{name}",
            json={"password": "correct horse"},
            headers=self.world.people["operator"].headers,
        ).json()
        for project in (self.world.project, self.world.other_project):
            self.client.put(
                f"/clustercert/v1/projects/{project.id}/assignments/admin/users/{name}",
                params={"domain": project.domain.name},
                headers=self.world.people["operator"].headers,
            ).raise_for_status()
        return BuiltInUser(self, str(made["id"]))

    def states(self, user_id: str) -> list[str]:
        headers = self.world.people["operator"].headers
        query = {"user": user_id}
        found = self.client.get("/clustercert/v1/certificates", params=query, headers=headers).json()
        return [each["state"] for each in found["certificates"]]

    def kinds(self, user_id: str) -> list[str]:
        """The kinds of the events by a user."""
        query = "SELECT kind FROM audit_event WHERE actor = ? ORDER BY id"
        return [str(kind) for (kind,) in Store(self.world.settings().store_url).rows(query, user_id)]


@dataclass
class BuiltInUser:
    site: Site
    id: str

    def login(self, project_id: str | None = None) -> dict[str, str]:
        user = {"id": self.id, "password": "correct horse"}
        auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
        if project_id is not None:
            auth["scope"] = {"project": {"id": project_id}}
        made = self.site.client.post("/v3/auth/tokens", json={"auth": auth})
        return {"X-Auth-Token": made.headers["x-subject-token"]}

    def issue(self, cluster: str, headers: dict[str, str]) -> None:
        path = self.site.world.path(cluster)
        self.site.client.post(path, json={"duration": 1}, headers=headers).raise_for_status()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = worlds.make(tmp_path_factory.mktemp("logout"))
    with IssuerServer(world.folder).running() as issuer:
        roles = [{"role": "admin"}]
        settings_of_issuer = issuer.settings(
            projects=[world.project.id], roles=roles, leeway=f"{CLOCK_DIFFERENCE}s"
        )
        settings = world.settings(identity={"region": worlds.REGION, "issuers": [settings_of_issuer]})
        with Service(settings).running() as service:
            opened = open_components(settings)
            yield Site(world, issuer, service, service.run(opened.__aenter__()))
            service.run(opened.__aexit__(None, None, None))


def is_accepted(site: Site, headers: dict[str, str]) -> bool:
    status = site.client.get(CALLER, headers=headers).status_code
    assert status in (200, 401)
    return status == 200


def is_refused(site: Site, headers: dict[str, str]) -> bool:
    return not is_accepted(site, headers)


def test_all_certificates_and_logins_of_the_caller_end(site: Site) -> None:
    world, user = site.world, site.new_user("lost")
    here, laptop, unscoped = (
        user.login(world.project.id),
        user.login(world.other_project.id),
        user.login(),
    )
    for cluster, headers in (("plain", here), ("eip", here), ("foreign", laptop)):
        user.issue(cluster, headers)
    others = world.people["member"]
    asked = {"auth": {"identity": {"methods": ["token"], "token": {}}}}
    site.client.post("/v3.0/OS-CREDENTIAL/securitytokens", json=asked, headers=laptop).raise_for_status()

    preview = site.client.post(f"{PATH}?dryRun=All", headers=unscoped).json()
    assert (preview["certificates"], preview["tokens"], preview["temporary_keys"]) == (3, 3, 1)
    assert site.states(user.id) == ["live"] * 3
    done = site.client.post(PATH, headers=here)
    assert done.status_code == 200, done.text
    said = done.json()
    assert {name: said[name] for name in preview if name != "clusters"} == {
        name: value for name, value in preview.items() if name != "clusters"
    }
    assert sorted(each["name"] for each in said["clusters"]) == ["eip", "foreign", "plain"]
    assert {tuple(each["enforced_by"]) for each in said["clusters"]} == {()}
    assert site.states(user.id) == ["revoked"] * 3
    for headers in (here, laptop, unscoped):
        assert not is_accepted(site, headers)
    assert is_accepted(site, others.headers)
    assert site.kinds(user.id)[-2:] == ["user.revoked", "user.logged_out"]
    # Nobody can undo it, and a new login works.
    listed = site.client.get(
        f"/clustercert/v1/users/{user.id}/revocations", headers=world.people["operator"].headers
    ).json()["revocations"]
    assert [(each["reason"], each["can_be_undone"]) for each in listed] == [("keyCompromise", False)]
    again = user.login(world.project.id)
    user.issue("plain", again)
    assert site.states(user.id)[0] == "live"


def new_key(site: Site, user: BuiltInUser, description: str) -> tuple[str, str]:
    made = site.client.post(
        f"/clustercert/v1/users/{user.id}/access-keys",
        json={"description": description},
        headers=site.world.people["operator"].headers,
    ).json()
    return made["access_key"], made["secret_key"]


def test_access_keys_are_listed_and_end_only_if_asked(site: Site) -> None:
    user = site.new_user("with-keys")
    key, _ = new_key(site, user, "pipeline")
    listed = [{"access_key": key, "description": "pipeline", "enabled": True}]
    kept = site.client.post(PATH, json={"keys": False}, headers=user.login()).json()
    assert (kept["deleted_keys"], kept["kept_keys"]) == ([], listed)
    body = {"keys": True}
    preview = site.client.post(f"{PATH}?dryRun=All", json=body, headers=user.login()).json()
    assert (preview["deleted_keys"], preview["kept_keys"]) == (listed, [])
    ended = site.client.post(PATH, json=body, headers=user.login()).json()
    assert (ended["deleted_keys"], ended["kept_keys"]) == (listed, [])
    found = site.client.get(
        f"/clustercert/v1/access-keys/{key}", headers=site.world.people["operator"].headers
    )
    assert found.status_code == 404
    assert site.kinds(user.id)[-1] == "access_key.removed"


def test_a_repetition_with_an_access_key_changes_nothing(keystone: Keystone) -> None:
    """Otherwise, a caller could make all workers drop their caches again and again."""
    key = keystone.new_key(keystone.alice)
    generation = keystone.operator.database.read_generation
    assert keystone.signed("POST", PATH, key).status_code == 200
    before = keystone.do(generation())
    for _ in range(2):
        assert keystone.signed("POST", PATH, key).status_code == 200
    assert keystone.do(generation()) == before
    token = keystone.login(scope=in_project(keystone.project))
    assert keystone.signed("POST", PATH, key).json()["tokens"] == 1
    keystone.eventually_refused(token)


def test_a_certificate_from_a_stale_cache_is_revoked_too(site: Site) -> None:
    """Another worker may have the token in its cache for a second."""
    user = site.new_user("raced")
    headers = user.login(site.world.project.id)
    token = headers["X-Auth-Token"]
    origin = Origin("192.0.2.7", "a" * 32)
    components = site.operator

    async def race() -> None:
        caller = await components.identity.tokens.caller_of_token(token, origin)

        async def thief(seconds: float) -> None:
            assert seconds == Generation.PROPAGATION
            # As a worker that still has the caller in its cache.
            cluster = site.world.clusters["plain"]
            await components.issuance.issue(caller, cluster.project_id, cluster.id, IssueRequest(duration=1))

        logout = replace(components.revocation.logout, pause=thief)
        await logout.end_all_logins(caller, with_keys=False)

    site.service.run(race())
    assert site.states(user.id) == ["revoked"]


def test_a_user_ends_all_logins_only_once_at_a_time(site: Site) -> None:
    """Each waits for more than a second. Together they could use up the worker's limit of requests."""
    user = site.new_user("impatient")
    headers, origin = user.login(), Origin("192.0.2.7", "a" * 32)
    components = site.operator

    async def race() -> None:
        caller = await components.identity.tokens.caller_of_token(headers["X-Auth-Token"], origin)

        async def again(_seconds: float) -> None:
            with pytest.raises(TooManyRequests):
                await logout.end_all_logins(caller, with_keys=False)

        logout = replace(components.revocation.logout, pause=again)
        await logout.end_all_logins(caller, with_keys=False)
        await logout.end_all_logins(caller, with_keys=False)

    site.service.run(race())


def test_many_tokens_end_in_batches(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "BATCH", 2)
    user = site.new_user("many")
    tokens = [user.login() for _ in range(5)]
    assert site.client.post(PATH, headers=tokens[0]).json()["tokens"] == 5
    assert not any(is_accepted(site, headers) for headers in tokens)


def test_an_end_in_another_worker_counts_within_a_second(site: Site) -> None:
    user, logins = site.new_user("elsewhere"), site.operator.identity.logins
    headers = user.login()
    assert is_accepted(site, headers)
    origin = Origin("192.0.2.7", "a" * 32)
    caller = site.service.run(site.operator.identity.tokens.caller_of_token(headers["X-Auth-Token"], origin))
    site.service.run(logins.end_all(caller, with_keys=False))
    eventually(lambda: not is_accepted(site, headers))

    anna = bearer(site, "anna-elsewhere", auth_time=now() - 60)
    assert is_accepted(site, anna)
    user_id = derived_id("user", site.issuer.url, "anna-elsewhere")
    known = User(user_id, "sso/anna-elsewhere", FederatedDomain("d" * 32, "sso"))
    caller = replace(caller, user=known, issuer=site.issuer.url, method="oidc")
    site.service.run(logins.end_all(caller, with_keys=False))
    eventually(lambda: not is_accepted(site, anna))


# Users of issuers


def bearer(site: Site, subject: str, *, auth_time: object, iat: int | None = None) -> dict[str, str]:
    claims = {"sub": subject, "auth_time": auth_time, "preferred_username": subject}
    if iat is not None:
        claims["iat"] = iat
    return {"Authorization": f"Bearer {site.issuer.token(**claims)}"}


def now() -> int:
    return int(time.time())


def wait_for_next_second() -> None:
    """Times in tokens are whole seconds."""
    begun = now()
    eventually(lambda: now() > begun)


def test_a_login_at_an_issuer_stays_refused_until_the_user_logs_in_anew(site: Site) -> None:
    logged_in_at = now() - 600
    laptop, here = (bearer(site, "anna", auth_time=logged_in_at, iat=now() - n) for n in (1, 2))
    path = site.world.path("plain")
    site.client.post(path, json={"duration": 1}, headers=laptop).raise_for_status()
    assert is_accepted(site, here)
    other = bearer(site, "bert", auth_time=logged_in_at)
    assert is_accepted(site, other)
    before = now()
    said = site.client.post(PATH, headers=here).json()
    assert (said["name"], said["issuer"], said["renewals_end"]) == ("sso/anna", site.issuer.url, True)
    user_id = derived_id("user", site.issuer.url, "anna")
    assert site.states(user_id) == ["revoked"]
    # Neither the tokens of these logins, cached ones included, nor what the refresh token gives.
    for headers in (laptop, here, bearer(site, "anna", auth_time=logged_in_at, iat=now() + CLOCK_DIFFERENCE)):
        assert not is_accepted(site, headers)
    assert is_accepted(site, other)
    # The issuer's clock may be ahead by the leeway, so a time in between proves nothing.
    assert not is_accepted(site, bearer(site, "anna", auth_time=before + CLOCK_DIFFERENCE))
    wait_for_next_second()
    assert is_accepted(
        site, bearer(site, "anna", auth_time=now() + CLOCK_DIFFERENCE, iat=now() + CLOCK_DIFFERENCE)
    )
    eventually(lambda: is_accepted(site, bearer(site, "anna", auth_time=now())))
    assert site.kinds(user_id)[-2:] == ["user.revoked", "user.logged_out"]


def test_an_auth_time_after_the_token_is_not_believed(site: Site) -> None:
    headers = bearer(site, "futura", auth_time=now() + 10_000)
    assert is_accepted(site, headers)
    before = now()
    assert site.client.post(PATH, headers=headers).status_code == 200
    assert not is_accepted(site, headers)
    assert not is_accepted(site, bearer(site, "futura", auth_time=now() + 10_000, iat=before))


def test_without_an_auth_time_a_refreshed_login_still_works_and_the_answer_says_so(site: Site) -> None:
    auth_times: list[object] = [None, "2026-11-29T02:00:00Z", True, -1]
    for auth_time in auth_times:
        old = bearer(site, f"cleo-{auth_time}", auth_time=auth_time, iat=now() - 60)
        assert is_accepted(site, old)
        said = site.client.post(PATH, headers=old).json()
        assert said["renewals_end"] is False
        assert not is_accepted(site, old)
    wait_for_next_second()
    for auth_time in auth_times:
        subject = f"cleo-{auth_time}"
        later = now() + CLOCK_DIFFERENCE
        assert is_accepted(site, bearer(site, subject, auth_time=auth_time, iat=later))
        user_id = derived_id("user", site.issuer.url, subject)
        site.service.run(site.operator.identity.block(user_id, actor=ACTOR))
        refreshed = bearer(site, subject, auth_time=auth_time, iat=now())
        eventually(functools.partial(is_refused, site, refreshed))


def test_an_explanation_says_that_the_user_ended_the_login(site: Site) -> None:
    headers = bearer(site, "dora", auth_time=now() - 5)
    token = headers["Authorization"].removeprefix("Bearer ")
    assert site.client.post(PATH, headers=headers).status_code == 200
    operator = site.world.people["operator"].headers
    said = site.client.post("/clustercert/v1/identity/explain", json={"token": token}, headers=operator)
    body = cast("dict[str, Any]", said.json())
    assert (body["accepted"], body["failed"]) == (False, "user")
    assert "ended all logins at" in json.dumps(body["checks"])


@pytest.mark.parametrize("query", ["?dryRun=all", "?dryrun=All"])
def test_a_misspelled_dry_run_ends_nothing(site: Site, query: str) -> None:
    user = site.new_user(f"careful-{len(query)}{query[6]}".lower().replace("=", ""))
    headers = user.login()
    assert site.client.post(PATH + query, headers=headers).status_code == 400
    assert site.client.post(PATH, json={"keys": "yes"}, headers=headers).status_code == 400
    assert is_accepted(site, headers)
