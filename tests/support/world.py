"""Test data for the API: two projects, people with each role, clusters of each kind."""

import asyncio
import functools
import os
import secrets
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from clustercert.custody.keks import write_new_kek_file
from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.model import Actor, Cluster, Domain, Origin, Project, User
from clustercert.model.clusters import Registration
from clustercert.settings import Settings, load
from clustercert.store.identity.entities import Reference
from clustercert.wiring import Components, initialise, open_components
from support.samples import server_ca_pem

REGION = "eu-de"
ACTOR = "cli:test"
EXTERNAL_URL = "https://203.0.113.54:5443"
SAN_URLS = ("https://api.example.com:5443", "https://10.0.0.9:5443")

# Who has which role in the first project. A stranger has one in the other project alone.
ROLES = {"admin": "admin", "member": "member", "reader": "reader", "inspector": "inspector"}


@dataclass(frozen=True)
class Person:
    """A user and their token, whose scope is the one project where they have a role."""

    user: User
    password: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Auth-Token": self.token}


@dataclass(frozen=True)
class World:
    """Projects, people and clusters in a new store.

    Attributes:
        people: by their role in the first project, a `stranger` of the other one, and an `operator` and an `auditor`
            of the service, who have no role in any project.
        clusters: `plain`, `eip` and `sans` in the first project, `foreign` in the other.
        access_key: the admin's AK and SK.
    """

    folder: Path
    project: Project
    other_project: Project
    people: dict[str, Person]
    clusters: dict[str, Cluster]
    access_key: tuple[str, str]
    database_url: str | None = None

    @property
    def database(self) -> Path:
        return self.folder / "data" / "clustercert.db"

    def settings(self, **changed: object) -> Settings:
        return settings(self.folder, **({"database_url": self.database_url} | changed))

    def client_ca(self, cluster: str) -> x509.Certificate:
        return self.clusters[cluster].client_ca.ca_certificate

    def path(self, cluster: str = "plain", tail: str = "/clustercert") -> str:
        """The address of a cluster, in the project it belongs to."""
        known = self.clusters[cluster]
        return f"/api/v3/projects/{known.project_id}/clusters/{known.id}{tail}"


async def webhook_token(world: World) -> str:
    """A new token for the API server of the cluster `plain`."""
    async with open_components(world.settings()) as components:
        actor = Actor(ACTOR, Origin(address="local", request_id=os.urandom(16).hex()))
        return (await components.webhook.tokens.create(world.clusters["plain"], actor=actor)).text


def settings(folder: Path, **changed: object) -> Settings:
    values: dict[str, object] = {
        "data_dir": folder / "data",
        "kek_file": folder / "kek",
        "identity": {"region": REGION},
        "metrics": {"loopback": True},
        "log": {"format": "json"},
        # Tests fail more often than the defaults allow, and look for the event of each refusal.
        "limits": {"failures_per_minute": 0},
        "audit": {"refusals_per_minute": 1_000_000},
    }
    return load(None, **(values | changed))


def make(folder: Path, database_url: str | None = None) -> World:
    """Create the data in a new folder. Those on SQLite are made once in each process, and copied."""
    if database_url is not None:
        return _new(folder, database_url)
    world, files = _template()
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(content)
    return replace(world, folder=folder, people=dict(world.people), clusters=dict(world.clusters))


@functools.cache
def _template() -> tuple[World, dict[str, bytes]]:
    """A world on SQLite and its files, by their names in its folder, which is gone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = _new(folder, None)
        return world, {file: (folder / file).read_bytes() for file in ("kek", "data/clustercert.db")}


def _new(folder: Path, database_url: str | None) -> World:
    write_new_kek_file(folder / "kek")
    return asyncio.run(_made(folder, database_url))


async def _made(folder: Path, database_url: str | None) -> World:
    origin = Origin(address="local", request_id=os.urandom(16).hex())
    with_database = settings(folder, database_url=database_url)
    await initialise(with_database, actor=Actor(ACTOR, origin))
    async with open_components(with_database) as components:
        directory = components.identity.directory
        domain = await directory.create_domain("tests", actor=Actor(ACTOR, origin))
        project, other = [
            await directory.create_project(name, domain, actor=Actor(ACTOR, origin))
            for name in (REGION, "eu-nl")
        ]
        await components.identity.roles.create("inspector", actor=Actor(ACTOR, origin))
        people = {
            name: await _person(components, name, role, project, origin) for name, role in ROLES.items()
        } | {
            "stranger": await _person(components, "stranger", "admin", other, origin),
            **{
                name: await _service_user(components, name, project.domain, origin)
                for name in ("operator", "auditor")
            },
        }
        clusters = {
            "plain": await _cluster(components, "plain", project, origin),
            "eip": await _cluster(components, "eip", project, origin, external_url=EXTERNAL_URL),
            "sans": await _cluster(
                components, "sans", project, origin, external_url=EXTERNAL_URL, san_urls=SAN_URLS
            ),
            "foreign": await _cluster(components, "foreign", other, origin),
        }
        key = await components.identity.access_keys.create(people["admin"].user, actor=Actor(ACTOR, origin))
    return World(folder, project, other, people, clusters, (key.key.id, key.secret), database_url)


async def _person(components: Components, name: str, role: str, project: Project, origin: Origin) -> Person:
    identity, password = components.identity, secrets.token_urlsafe(12)
    user = await identity.directory.create_user(
        name, project.domain, password=password, actor=Actor(ACTOR, origin)
    )
    await identity.roles.assign(role, user, project, actor=Actor(ACTOR, origin))
    proof = ByPassword(Reference(id=user.id), password)
    issued = await identity.tokens.issue(proof, ProjectScope(Reference(id=project.id)))
    return Person(user, password, issued.text)


async def _service_user(components: Components, role: str, domain: Domain, origin: Origin) -> Person:
    """A user with a role in the whole service, and with its name."""
    identity, password = components.identity, secrets.token_urlsafe(12)
    user = await identity.directory.create_user(role, domain, password=password, actor=Actor(ACTOR, origin))
    await identity.roles.assign(role, user, None, actor=Actor(ACTOR, origin))
    issued = await identity.tokens.issue(ByPassword(Reference(id=user.id), password), None)
    return Person(user, password, issued.text)


async def _cluster(
    components: Components,
    name: str,
    project: Project,
    origin: Origin,
    external_url: str | None = None,
    san_urls: tuple[str, ...] = (),
) -> Cluster:
    wanted = Registration(
        name=name,
        internal_url="https://192.168.1.7:5443",
        server_ca_pem=server_ca_pem(),
        external_url=external_url,
        san_urls=san_urls,
        labels={"team": "tests"},
        version="v1.32",
    )
    return await components.clusters.add(project.id, wanted, actor=Actor(ACTOR, origin))
