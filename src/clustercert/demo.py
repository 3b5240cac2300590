"""`clustercert demo`: from nothing to a kubeconfig, with no configuration.

It makes what an operator would make by hand, keeps its secrets in a file of mode 0600 in the data folder, serves on
loopback, and then is its own first client over HTTP. Everything lies in one folder, the key-encryption key beside what
it protects: a demo's, not production's.
"""

import base64
import contextlib
import json
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import httpx
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert import server
from clustercert.app.wiring import Components, components, initialise
from clustercert.certificate import certificates, chain_pem, fingerprint, new_client_ca
from clustercert.clusters import Registration
from clustercert.custody.keks import write_new_kek_file
from clustercert.errors import ClustercertError, NotFound
from clustercert.keypair import new_key
from clustercert.model import Origin
from clustercert.private_file import make_private_folder, write_private
from clustercert.settings import DATABASE_FILE, DEMO_FILE, Settings, SettingsError, load

REGION = "eu-de"
ACTOR = "demo"
KEK_FILE = "kek"
SERVER_LOG = "server.log"
# Documentation addresses (RFC 5737) and a private one: no API server of the demo's answers anywhere.
INTERNAL_URL = "https://192.168.0.10:5443"
EXTERNAL_URL = "https://203.0.113.10:5443"

T = TypeVar("T")

# A worker that has not answered after this long will not.
START_SECONDS = 60

Say = Callable[[str], None]


class DemoError(ClustercertError):
    """The demo can't go on; the message says where it stopped."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says.

    Attributes:
        port: 0 takes any free one.
        with_eip: the cluster has an external address.
        tenants: further projects, each with a user and a cluster.
        as_json: one JSON object on standard output, everything else on standard error.
    """

    data_dir: Path
    port: int
    workers: int = 1
    with_eip: bool = False
    tenants: int = 0
    as_json: bool = False


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


def run(options: DemoOptions) -> None:
    """Set up, serve, show, until Ctrl-C. Raises ClustercertError with one sentence for what is in the way."""

    def say(line: str = "") -> None:
        print(line, file=sys.stderr if options.as_json else sys.stdout, flush=True)

    folder = _folder(options.data_dir, say)
    settings = _settings(options, folder)
    port = server.free_port(settings.server.host, options.port)
    tenants = server.run_interruptible(_prepared(settings, options, say))
    url = f"http://{settings.server.host}:{port}"
    say(f"Starting {settings.server.workers} worker(s) on {url}; their log is {folder / SERVER_LOG}")
    guide = _Guide(url, folder, tenants, as_json=options.as_json, say=say)
    server.run(settings, port, None, on_start=threading.Thread(target=guide.show, daemon=True).start)
    if guide.failure is not None:
        raise guide.failure
    say("Stopped.")


def _folder(data_dir: Path, say: Say) -> Path:
    """The data folder, made if need be. Raises SettingsError where it isn't ours to use."""
    folder = data_dir.absolute()
    fresh = not folder.exists()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / DEMO_FILE).exists():
            if any(folder.iterdir()):
                raise SettingsError(
                    f"The folder {folder} has something else in it. Choose another with --data-dir."
                )
            make_private_folder(folder)
            write_private(folder / DEMO_FILE, json.dumps({"tenants": []}))
    except OSError as error:
        raise SettingsError(
            f"The data folder {folder} can't be used: {error.strerror}. Choose another with --data-dir."
        ) from error
    say(f"{'Made' if fresh else 'Using'} the data folder {folder}")
    return folder


def _settings(options: DemoOptions, folder: Path) -> Settings:
    # What the environment says of another store, its keys and its address is not the demo's.
    address = {"host": "127.0.0.1", "port": options.port, "public_url": None}
    return load(
        None,
        data_dir=folder,
        database_url=None,
        kek=None,
        kek_file=folder / KEK_FILE,
        server=address | {"workers": options.workers, "tls_certificate": None, "tls_key": None},
        identity={"region": REGION},
        log={"file": folder / SERVER_LOG, "format": "json"},
    )


async def _prepared(settings: Settings, options: DemoOptions, say: Say) -> tuple[Tenant, ...]:
    """The store with everything in it that the demo shows; what an earlier run made is used again."""
    folder = settings.data_dir
    if not (folder / KEK_FILE).exists() and not (folder / DATABASE_FILE).exists():
        write_new_kek_file(folder / KEK_FILE)
        say(f"Made the key-encryption key {folder / KEK_FILE}")
    await initialise(settings, actor=ACTOR, origin=_here())
    say(f"The database is {settings.store_url.removeprefix('sqlite+aiosqlite:///')}")
    known = _known(folder)
    async with components(settings) as parts:
        for number in range(len(known), 1 + options.tenants):
            known.append(await _new_tenant(parts, number, say))
            # Before the next step, so that a demo that is stopped half-way goes on from there.
            write_private(
                folder / DEMO_FILE, json.dumps({"tenants": [asdict(tenant) for tenant in known]}, indent=2)
            )
        for tenant in known:
            await _with_address(parts, tenant, EXTERNAL_URL if options.with_eip else None)
            bundle = await parts.clusters.rows.bundle(tenant.cluster_id)
            write_private(folder / f"client-ca-{tenant.user_name}.pem", chain_pem(bundle).decode())
    return tuple(known[: 1 + options.tenants])


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
    directory, origin = parts.identity.directory, _here()
    say(
        f"Making {who}: a domain, the project {REGION}, a user, an access key, a cluster with its own client CA"
    )
    domain = await _found(directory.find_domain(who)) or await directory.create_domain(
        who, actor=ACTOR, origin=origin
    )
    project = await _found(directory.find_project(REGION, domain)) or await directory.create_project(
        REGION, domain, actor=ACTOR, origin=origin
    )
    user = await _found(directory.find_user(who, domain)) or await directory.create_user(
        who, domain, actor=ACTOR, origin=origin
    )
    password = secrets.token_urlsafe(18)
    await directory.set_password(user, password, actor=ACTOR, origin=origin)
    await parts.identity.roles.assign("admin", user, project, actor=ACTOR, origin=origin)
    key = await parts.identity.access_keys.create(user, description="demo", actor=ACTOR, origin=origin)
    cluster = await parts.clusters.rows.named(project.id, who) or await parts.clusters.add(
        project.id,
        Registration(name=who, internal_url=INTERNAL_URL, server_ca_pem=_server_ca_pem()),
        actor=ACTOR,
        origin=origin,
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


def _here() -> Origin:
    return Origin(address="local", request_id=os.urandom(16).hex())


async def _with_address(parts: Components, tenant: Tenant, external_url: str | None) -> None:
    cluster = await parts.clusters.rows.cluster(tenant.project_id, tenant.cluster_id)
    if cluster is not None and cluster.external_url != external_url:
        wanted = replace(Registration.of(cluster), external_url=external_url)
        await parts.clusters.update(cluster, wanted, actor=ACTOR, origin=_here())


def _server_ca_pem() -> bytes:
    """A CA that an API server's certificate could come from; its key is forgotten at once."""
    now = datetime.now(UTC).replace(microsecond=0)
    return chain_pem((new_client_ca("kubernetes (demo)", new_key("ec-p256"), now, timedelta(days=3650)),))


class _Guide:
    """The demo's first client, in a thread of the server's main process."""

    def __init__(
        self, url: str, folder: Path, tenants: tuple[Tenant, ...], *, as_json: bool, say: Say
    ) -> None:
        self._url = url
        self._folder = folder
        self._tenants = tenants
        self._as_json = as_json
        self._say = say
        self.failure: ClustercertError | None = None

    def show(self) -> None:
        """Wait for the server, get a kubeconfig for each tenant, print what there is to see."""
        try:
            with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
                self._wait(client)
                obtained = [_Obtained.over(client, tenant, self._folder) for tenant in self._tenants]
        except (httpx.HTTPError, OSError, ValueError, ClustercertError) as error:
            self.failure = DemoError(
                f"The demo could not get its kubeconfig: {error}. See {self._folder / SERVER_LOG}."
            )
            os.kill(os.getpid(), signal.SIGINT)
            return
        if self._as_json:
            first, *others = [one.summary(self._url) for one in obtained]
            print(json.dumps(first | {"tenants": others}), flush=True)  # noqa: T201 - the answer
        else:
            _tell(obtained[0], self._url, self._folder, self._say)

    def _wait(self, client: httpx.Client) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/readyz").is_success:
                    return
            time.sleep(0.05)
        raise DemoError(f"the server did not become ready within {START_SECONDS} seconds")


@dataclass(frozen=True, slots=True)
class _Obtained:
    """What a tenant got over HTTP.

    Attributes:
        files: name -> path of what was written, all of mode 0600.
    """

    tenant: Tenant
    token: str
    leaf: x509.Certificate
    issuer: x509.Certificate
    files: Mapping[str, Path]

    @classmethod
    def over(cls, client: httpx.Client, tenant: Tenant, folder: Path) -> "_Obtained":
        """Log in, ask for a kubeconfig of a day, check it against the client CA, write it down."""
        token = _token(client, tenant)
        answer = client.post(
            f"/api/v3/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/clustercert",
            headers={"X-Auth-Token": token, "Accept": "application/yaml"},
            json={"duration": 1, "reason": "clustercert demo"},
        ).raise_for_status()
        leaf_pem = base64.b64decode(
            yaml.safe_load(answer.text)["users"][0]["user"]["client-certificate-data"]
        )
        leaf = x509.load_pem_x509_certificate(leaf_pem)
        ca_path = folder / f"client-ca-{tenant.user_name}.pem"
        (issuer,) = certificates(ca_path.read_bytes())
        leaf.verify_directly_issued_by(issuer)
        files = {
            "kubeconfig": folder / f"kubeconfig-{tenant.user_name}.yaml",
            "certificate": folder / f"certificate-{tenant.user_name}.pem",
            "header": folder / f"token-{tenant.user_name}.header",
            "client_ca": ca_path,
        }
        write_private(files["kubeconfig"], answer.text)
        write_private(files["certificate"], leaf_pem.decode())
        write_private(files["header"], f"X-Auth-Token: {token}\n")
        return cls(tenant, token, leaf, issuer, files)

    def summary(self, url: str) -> dict[str, object]:
        """What scripts get."""
        return {
            "url": url,
            **asdict(self.tenant),
            "token": self.token,
            "kubeconfig": str(self.files["kubeconfig"]),
            "client_ca": str(self.files["client_ca"]),
            "pid": os.getpid(),
        }


def _token(client: httpx.Client, tenant: Tenant) -> str:
    body = {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"id": tenant.user_id, "password": tenant.password}},
            },
            "scope": {"project": {"id": tenant.project_id}},
        }
    }
    return client.post("/v3/auth/tokens", json=body).raise_for_status().headers["X-Subject-Token"]


def _tell(obtained: _Obtained, url: str, folder: Path, say: Say) -> None:
    """What was issued, and lines to copy."""
    leaf, tenant, files = obtained.leaf, obtained.tenant, obtained.files
    groups = [
        str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    ]
    path = f"{url}/api/v3/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/clustercert"
    say(
        f"""
Issued through POST clustercert:
  subject      {leaf.subject.rfc4514_string()}
  groups       {", ".join(groups)}
  valid        {leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%S} to {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC
  fingerprint  {fingerprint(leaf).hex()} (SHA-256)
  chain        verified against {obtained.issuer.subject.rfc4514_string()}
  kubeconfig   {files["kubeconfig"]}

Try it from another terminal:

  curl -sS -X POST -H @{_quote(files["header"])} -H 'Content-Type: application/json' \\
    -d '{{"duration": 1}}' {path}

  openssl x509 -in {_quote(files["certificate"])} -noout -text

  pip install huaweicloudsdkcce && python3 - <<'END'
  import json
  from huaweicloudsdkcore.auth.credentials import BasicCredentials
  from huaweicloudsdkcce.v3 import CceClient, ClusterCertDuration, CreateKubernetesClusterCertRequest
  me = json.load(open({str(folder / DEMO_FILE)!r}))["tenants"][0]
  client = (
      CceClient.new_builder()
      .with_credentials(BasicCredentials(me["access_key"], me["secret_key"], me["project_id"]))
      .with_endpoint({url!r})
      .build()
  )
  wish = CreateKubernetesClusterCertRequest(me["cluster_id"], body=ClusterCertDuration(duration=1))
  print(client.create_kubernetes_cluster_cert(wish))
  END

Ctrl-C stops the server; the next run uses the same data."""
    )


def _quote(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))
