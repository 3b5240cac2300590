"""Prepares a store with one of everything, and serves it with `serve`, as an operator would."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from bench import processes, tls
from bench.peers import Peer
from bench.traffic import Who
from clustercert.custody.keks import write_new_kek_file
from clustercert.model import Actor, KeyType, Origin
from clustercert.model.clusters import Registration
from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.settings import Settings, load
from clustercert.wiring import Components, initialise, open_components

ACTOR = "bench"
INTERNAL_URL = "https://192.168.0.10:5443"


@dataclass(frozen=True, slots=True)
class World:
    """A prepared store.

    Attributes:
        config: the TOML file to serve it with.
        database: process id of the database server, or None for SQLite.
    """

    folder: Path
    config: Path
    settings: Settings
    project_id: str
    cluster_id: str
    user_id: str
    password: str
    access_key: str
    secret_key: str
    database: int | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """The running service.

    Attributes:
        roots: the processes whose processor time counts: the service's and its database's.
        start_seconds: from the start of the process to the first status 200 from /readyz.
    """

    url: str
    who: Who
    pid: int
    roots: tuple[int, ...]
    start_seconds: float

    def taking(self, requests: Sequence[bytes]) -> Peer:
        """Return this service as a server for the load generator."""
        return Peer(self.url, requests, self.roots)


def origin() -> Origin:
    """Return the origin of changes that the benchmark makes."""
    return Origin(address="local", request_id=os.urandom(16).hex())


def prepare(
    folder: Path,
    *,
    database_url: str | None = None,
    database: int | None = None,
    key_type: KeyType = "ec-p256",
) -> World:
    """Create a new store in a folder, whose previous content is deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_new_kek_file(folder / "kek")
    config = folder / "clustercert.toml"
    config.write_text(_toml(folder, database_url, key_type))
    settings = load(config)
    return asyncio.run(_filled(settings, folder, config, database))


def _toml(folder: Path, database_url: str | None, key_type: KeyType) -> str:
    # JSON strings are valid TOML strings.
    lines = [
        f"data_dir = {json.dumps(str(folder / 'data'))}",
        f"kek_file = {json.dumps(str(folder / 'kek'))}",
        *([f"database_url = {json.dumps(database_url)}"] if database_url else []),
        "[issuing]",
        f"key_type = {json.dumps(key_type)}",
        "[log]",
        f"file = {json.dumps(str(folder / 'service.log'))}",
        'format = "json"',
    ]
    return "\n".join([*lines, ""])


async def _filled(settings: Settings, folder: Path, config: Path, database: int | None) -> World:
    await initialise(settings, actor=Actor(ACTOR, origin()))
    async with open_components(settings) as components:
        directory = components.identity.directory
        domain = await directory.create_domain("bench", actor=Actor(ACTOR, origin()))
        project = await directory.create_project("eu-de", domain, actor=Actor(ACTOR, origin()))
        user = await directory.create_user("bench", domain, actor=Actor(ACTOR, origin()))
        password = secrets.token_urlsafe(18)
        await directory.set_password(user, password, actor=Actor(ACTOR, origin()))
        await components.identity.roles.assign("admin", user, project, actor=Actor(ACTOR, origin()))
        key = await components.identity.access_keys.create(user, actor=Actor(ACTOR, origin()))
        return World(
            folder=folder,
            config=config,
            settings=settings,
            project_id=project.id,
            cluster_id=await _new_cluster(components, project.id),
            user_id=user.id,
            password=password,
            access_key=key.key.id,
            secret_key=key.secret,
            database=database,
        )


async def _new_cluster(components: Components, project_id: str) -> str:
    now = datetime.now(UTC).replace(microsecond=0)
    ca = new_client_ca("kubernetes", new_key("ec-p256"), now, timedelta(days=3650))
    registration = Registration(name="bench", internal_url=INTERNAL_URL, server_ca_pem=chain_pem((ca,)))
    return (await components.clusters.add(project_id, registration, actor=Actor(ACTOR, origin()))).id


@contextlib.contextmanager
def served(
    world: World,
    workers: int = 2,
    *,
    files: tls.Files | None = None,
    port: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Serve a store during the block, with TLS if there are files for it, on a free port unless one is given.

    `variables` are further settings of the service, as environment variables.
    """
    with contextlib.ExitStack() as stack:
        port = port or stack.enter_context(processes.reserved_port())
        yield stack.enter_context(_served(world, workers, files, port, variables or {}))


@contextlib.contextmanager
def _served(
    world: World, workers: int, files: tls.Files | None, port: int, variables: Mapping[str, str]
) -> Iterator[Served]:
    host = f"127.0.0.1:{port}"
    url = f"{'https' if files else 'http'}://{host}"
    env = {"CLUSTERCERT_METRICS__LOOPBACK": "true", **variables}
    if files:
        env |= {
            "CLUSTERCERT_SERVER__TLS_CERTIFICATE": str(files.certificate),
            "CLUSTERCERT_SERVER__TLS_KEY": str(files.key),
        }
    verify = files.context() if files else True
    command = [sys.executable, "-m", "clustercert", "--config", str(world.config)]
    command += ["serve", "--port", str(port), "--workers", str(workers)]
    started = time.monotonic()
    with (
        httpx2.Client(base_url=url, timeout=60, trust_env=False, verify=verify) as client,
        processes.running(command, world.folder / "serve.log", lambda: _ready(client), env=env) as pid,
    ):
        start_seconds = time.monotonic() - started
        yield Served(
            url=url,
            who=Who(
                host=host,
                project_id=world.project_id,
                cluster_id=world.cluster_id,
                token=token(client, world),
                access_key=world.access_key,
                secret_key=world.secret_key,
            ),
            pid=pid,
            roots=(pid,) if world.database is None else (pid, world.database),
            start_seconds=start_seconds,
        )


def _ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx2.TransportError:
        return False


def token(client: httpx2.Client, world: World) -> str:
    """Log in, and return the token."""
    password = {"user": {"id": world.user_id, "password": world.password}}
    identity = {"methods": ["password"], "password": password}
    body = {"auth": {"identity": identity, "scope": {"project": {"id": world.project_id}}}}
    return client.post("/v3/auth/tokens", json=body).raise_for_status().headers["X-Subject-Token"]
