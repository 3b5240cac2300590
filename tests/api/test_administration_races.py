"""The administration API where requests meet: equal ones, lost races, and fields that changed in between."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from clustercert.model import Actor, ClientCA, Origin, SigningRequest
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import Registration
from clustercert.pki.crl import CrlContent
from clustercert.pki.signer import CaRequest, KeyCustody, Signer, SignerAccess
from clustercert.store import tables
from support.administration import CLUSTER, Administration, unique


@dataclass
class InterruptedSigner:
    """A signer that lets something happen while it creates the first client CA."""

    inner: Signer
    meanwhile: Any
    takes_serial: bool = True
    profile: LeafProfile = "own"
    created: list[str] = field(default_factory=list)

    async def create_ca(self, request: CaRequest) -> ClientCA:
        self.created.append(request.cluster_id)
        if len(self.created) == 1:
            await self.meanwhile()
        return await self.inner.create_ca(request)

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        return await self.inner.sign(request)

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        return await self.inner.sign_crl(ca, content)

    async def custody(self, ca: ClientCA) -> KeyCustody:
        return await self.inner.custody(ca)

    async def accept_secret(self, ca: ClientCA, registration: Registration, secret: bytes) -> bytes:
        return await self.inner.accept_secret(ca, registration, secret)

    async def maintain(self, ca: ClientCA) -> SignerAccess | None:
        return await self.inner.maintain(ca)

    async def delete_key(self, ca: ClientCA) -> str:
        return await self.inner.delete_key(ca)

    async def close(self) -> None:
        await self.inner.close()


def services_state(administration: Administration) -> Any:
    """The state of the application inside the middleware, which has the services."""
    return cast("Any", administration.service.app).app.default.state


def actor(administration: Administration) -> Actor:
    return Actor(
        administration.world.people["operator"].user.id, Origin(address="192.0.2.7", request_id="5" * 32)
    )


@contextmanager
def interrupted(administration: Administration, meanwhile: Any) -> Iterator[InterruptedSigner]:
    state = services_state(administration)
    before = state.services
    signer = InterruptedSigner(before.clusters.signers["local"], meanwhile)
    clusters = replace(before.clusters, signers={"local": signer})
    state.services = replace(before, clusters=clusters)
    try:
        yield signer
    finally:
        state.services = before


@pytest.mark.parametrize("kind", ["members", "in the project", "in the service"])
def test_of_ten_equal_requests_one_creates(administration: Administration, kind: str) -> None:
    user = administration.put(f"/users/{unique()}").json()["id"]
    path = {
        "members": f"/groups/{administration.put(f'/groups/{unique()}').json()['id']}/members/{user}",
        "in the project": f"/projects/{administration.world.project.id}/assignments/reader/users/{user}",
        "in the service": f"/assignments/reader/users/{user}",
    }[kind]
    statuses = [each.status_code for each in administration.put_at_once(path, {})]
    assert sorted(statuses) == [200] * 9 + [201]


def test_a_time_that_was_read_before_another_change_is_ignored(administration: Administration) -> None:
    path = f"/projects/{administration.world.project.id}/clusters/{unique()}"
    read = administration.put(path, CLUSTER).json()
    old = read | {"created_at": "2020-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z"}
    changed = administration.put(path, old | {"version": "v1.33"})
    assert (changed.status_code, changed.json()["version"]) == (200, "v1.33")
    assert changed.json()["created_at"] == read["created_at"]
    for name in ("id", "project_id", "client_ca", "client_ca_id"):
        refused = administration.put(path, old | {name: "other"})
        assert (refused.status_code, refused.json()["message"].partition(":")[0]) == (400, name)


def test_a_project_that_is_deleted_meanwhile_leaves_one_ca_at_the_signer(
    administration: Administration,
) -> None:
    project = administration.put(f"/projects/{unique()}").json()["id"]
    directory = services_state(administration).services.identity.directory

    async def delete_project() -> None:
        found = await directory.find_project(project)
        await directory.remove_project(found, actor=actor(administration))

    with interrupted(administration, delete_project) as signer:
        answer = administration.put(f"/projects/{project}/clusters/prod", CLUSTER)
    assert answer.status_code == 404
    assert len(signer.created) == 1


def test_a_lost_race_changes_the_cluster_that_won(administration: Administration) -> None:
    project, name = administration.world.project.id, unique()
    services = services_state(administration).services
    before = services.clusters

    async def register() -> None:
        (other, *_) = await before.queries.page(project, after="", limit=1)
        wanted = replace(other, name=name, labels={})
        await before.add(project, wanted, actor=actor(administration))

    with interrupted(administration, register) as signer:
        answer = administration.put(f"/projects/{project}/clusters/{name}", CLUSTER)
    assert answer.status_code == 200, answer.text
    assert len(signer.created) == 1
    (row,) = administration.rows(tables.cluster, name=name)
    assert row.id == answer.json()["id"] != signer.created[0]
