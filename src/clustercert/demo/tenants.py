"""Sets up the demo's tenants, each with a user, an access key and a cluster."""

import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from clustercert.custody.keks import write_new_kek_file
from clustercert.model import Actor, Origin
from clustercert.model.clusters import Registration
from clustercert.model.errors import ClustercertError, NotFound
from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.secure_file import write_private
from clustercert.settings import DATABASE_FILE, DEMO_FILE, Settings
from clustercert.wiring import Components, initialise, open_components

REGION = "eu-de"
ACTOR = Actor("demo", Origin.local())
KEK_FILE = "kek"
# A private address. No API server runs at this address.
INTERNAL_URL = "https://192.168.0.10:5443"

T = TypeVar("T")

Say = Callable[[str], None]


class DemoError(ClustercertError):
    """The demo can't continue. The exception's message gives the reason."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A project with a user, an access key and a cluster, as stored in `demo.json` (mode 0600)."""

    region: str
    project_id: str
    domain_id: str
    cluster_id: str
    user_id: str
    user_name: str
    password: str
    access_key: str
    secret_key: str


async def set_up_tenants(
    settings: Settings, tenants: int, external_url: str | None, say: Say
) -> tuple[Tenant, ...]:
    """Create the database, and the tenants that earlier runs did not create.

    Returns the demo's first tenant, followed by `tenants` additional tenants.
    """
    folder = settings.data_dir
    if not (folder / KEK_FILE).exists() and not (folder / DATABASE_FILE).exists():
        write_new_kek_file(folder / KEK_FILE)
        say(f"Created the key-encryption key {folder / KEK_FILE}")
    await initialise(settings, actor=ACTOR)
    say(f"The database is {settings.store_url.removeprefix('sqlite+aiosqlite:///')}")
    known = _known_tenants(folder)
    async with open_components(settings) as components:
        for number in range(len(known), 1 + tenants):
            known.append(await _new_tenant(components, number, say))
            # Write the file after each tenant, so that the next run can continue after an interruption.
            write_private(
                folder / DEMO_FILE, json.dumps({"tenants": [asdict(tenant) for tenant in known]}, indent=2)
            )
        for tenant in known:
            await _set_external_url(components, tenant, external_url)
            bundle = await components.clusters.queries.bundle(tenant.cluster_id)
            write_private(folder / f"client-ca-{tenant.user_name}.pem", chain_pem(bundle).decode())
    return tuple(known[: 1 + tenants])


def _known_tenants(folder: Path) -> list[Tenant]:
    """Read the tenants that earlier runs created. Raises DemoError if `demo.json` is malformed."""
    try:
        return [Tenant(**tenant) for tenant in json.loads((folder / DEMO_FILE).read_text())["tenants"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DemoError(
            f"The file {folder / DEMO_FILE} is damaged. Use another folder with --data-dir."
        ) from error


async def _new_tenant(components: Components, number: int, say: Say) -> Tenant:
    """Create a domain, a project, a user with the role admin, an access key and a cluster."""
    who = f"tenant-{number}" if number else "demo"
    directory = components.identity.directory
    say(
        f"Creating {who}: a domain, the project {REGION}, a user, an access key, a cluster with its own client CA"
    )
    domain = await _found(directory.find_domain(who)) or await directory.create_domain(who, actor=ACTOR)
    project = await _found(directory.find_project(REGION, domain)) or await directory.create_project(
        REGION, domain, actor=ACTOR
    )
    user = await _found(directory.find_user(who, domain)) or await directory.create_user(
        who, domain, actor=ACTOR
    )
    password = secrets.token_urlsafe(18)
    await directory.set_password(user, password, actor=ACTOR)
    await components.identity.roles.assign("admin", user, project, actor=ACTOR)
    key = await components.identity.access_keys.create(user, description="demo", actor=ACTOR)
    cluster = await components.clusters.queries.find_by_name(
        project.id, who
    ) or await components.clusters.add(
        project.id,
        Registration(name=who, internal_url=INTERNAL_URL, server_ca_pem=_server_ca_pem()),
        actor=ACTOR,
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
    """Return the object that an interrupted run created, or `None` if `search` finds no object."""
    with contextlib.suppress(NotFound):
        return await search
    return None


async def _set_external_url(components: Components, tenant: Tenant, external_url: str | None) -> None:
    """Set or remove the external address of the tenant's cluster."""
    cluster = await components.clusters.queries.cluster(tenant.project_id, tenant.cluster_id)
    if cluster is not None and cluster.external_url != external_url:
        changed = replace(cluster, external_url=external_url)
        await components.clusters.update(cluster, changed, actor=ACTOR)


def _server_ca_pem() -> bytes:
    """Create the CA of the cluster's API server. The demo has no API server, so the CA's key is discarded."""
    now = datetime.now(UTC).replace(microsecond=0)
    return chain_pem((new_client_ca("kubernetes (demo)", new_key("ec-p256"), now, timedelta(days=3650)),))
