"""What an operator would make by hand: an identity, an access key and a cluster for each tenant."""

import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from clustercert.app.wiring import Components, components, initialise
from clustercert.certificate import chain_pem, new_client_ca
from clustercert.clusters import Registration
from clustercert.custody.keks import write_new_kek_file
from clustercert.errors import ClustercertError, NotFound
from clustercert.keypair import new_key
from clustercert.model import Origin, Who
from clustercert.private_file import write_private
from clustercert.settings import DATABASE_FILE, DEMO_FILE, Settings

REGION = "eu-de"
ACTOR = "demo"
KEK_FILE = "kek"
# A private address: no API server of the demo's answers anywhere.
INTERNAL_URL = "https://192.168.0.10:5443"

T = TypeVar("T")

Say = Callable[[str], None]


class DemoError(ClustercertError):
    """The demo can't go on; the message says where it stopped."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A project with a user, an access key and a cluster; what `demo.json` keeps of it.

    Attributes:
        password, secret_key: in the clear, which is why the file has mode 0600.
    """

    region: str
    project_id: str
    domain_id: str
    cluster_id: str
    user_id: str
    user_name: str
    password: str
    access_key: str
    secret_key: str


async def prepared(
    settings: Settings, tenants: int, external_url: str | None, say: Say
) -> tuple[Tenant, ...]:
    """The store with everything in it that the demo shows; what an earlier run made is used again."""
    folder = settings.data_dir
    if not (folder / KEK_FILE).exists() and not (folder / DATABASE_FILE).exists():
        write_new_kek_file(folder / KEK_FILE)
        say(f"Made the key-encryption key {folder / KEK_FILE}")
    await initialise(settings, **_who())
    say(f"The database is {settings.store_url.removeprefix('sqlite+aiosqlite:///')}")
    known = _known(folder)
    async with components(settings) as parts:
        for number in range(len(known), 1 + tenants):
            known.append(await _new_tenant(parts, number, say))
            # Before the next step, so that a demo that is stopped half-way goes on from there.
            write_private(
                folder / DEMO_FILE, json.dumps({"tenants": [asdict(tenant) for tenant in known]}, indent=2)
            )
        for tenant in known:
            await _with_address(parts, tenant, external_url)
            bundle = await parts.clusters.rows.bundle(tenant.cluster_id)
            write_private(folder / f"client-ca-{tenant.user_name}.pem", chain_pem(bundle).decode())
    return tuple(known[: 1 + tenants])


def _known(folder: Path) -> list[Tenant]:
    """What earlier runs made. Raises DemoError where somebody has changed it."""
    try:
        return [Tenant(**tenant) for tenant in json.loads((folder / DEMO_FILE).read_text())["tenants"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DemoError(
            f"The file {folder / DEMO_FILE} is damaged. Start anew in another --data-dir."
        ) from error


async def _new_tenant(parts: Components, number: int, say: Say) -> Tenant:
    """A domain, a project named like the region, a user with the role admin, an access key, a cluster."""
    who = f"tenant-{number}" if number else "demo"
    directory, by = parts.identity.directory, _who()
    say(
        f"Making {who}: a domain, the project {REGION}, a user, an access key, a cluster with its own client CA"
    )
    domain = await _found(directory.find_domain(who)) or await directory.create_domain(who, **by)
    project = await _found(directory.find_project(REGION, domain)) or await directory.create_project(
        REGION, domain, **by
    )
    user = await _found(directory.find_user(who, domain)) or await directory.create_user(who, domain, **by)
    password = secrets.token_urlsafe(18)
    await directory.set_password(user, password, **by)
    await parts.identity.roles.assign("admin", user, project, **by)
    key = await parts.identity.access_keys.create(user, description="demo", **by)
    cluster = await parts.clusters.rows.named(project.id, who) or await parts.clusters.add(
        project.id, Registration(name=who, internal_url=INTERNAL_URL, server_ca_pem=_server_ca_pem()), **by
    )
    return Tenant(
        region=REGION,
        project_id=project.id,
        domain_id=domain.id,
        cluster_id=cluster.id,
        user_id=user.id,
        user_name=user.name,
        password=password,
        access_key=key.key.id,
        secret_key=key.secret,
    )


async def _found(search: Awaitable[T]) -> T | None:
    """What is there already, from a demo that was stopped before it wrote it down."""
    with contextlib.suppress(NotFound):
        return await search
    return None


def _who() -> Who:
    return {"actor": ACTOR, "origin": Origin.local()}


async def _with_address(parts: Components, tenant: Tenant, external_url: str | None) -> None:
    cluster = await parts.clusters.rows.cluster(tenant.project_id, tenant.cluster_id)
    if cluster is not None and cluster.external_url != external_url:
        wanted = replace(Registration.of(cluster), external_url=external_url)
        await parts.clusters.update(cluster, wanted, **_who())


def _server_ca_pem() -> bytes:
    """A CA that an API server's certificate could come from; its key is forgotten at once."""
    now = datetime.now(UTC).replace(microsecond=0)
    return chain_pem((new_client_ca("kubernetes (demo)", new_key("ec-p256"), now, timedelta(days=3650)),))
