"""A running service with the console, and with the data of two companies that use it."""

import asyncio
import contextlib
import json
import os
import re
import secrets
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2

from clustercert.custody.keks import write_new_kek_file
from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.model import Actor, Origin, Project
from clustercert.settings import Settings, load
from clustercert.store.identity.entities import Reference
from clustercert.wiring import initialise, open_components
from support import serve_process
from support.apiserver import ApiServer
from support.ca_rotation import set_draining
from support.kubernetes_messages import credential_id, review
from support.samples import server_ca_pem
from support.service import Service
from support.stores import execute, rows
from support.wait import SECONDS, eventually
from support.world import Person

T = TypeVar("T")

ACTOR = Actor("cli:test", Origin.local())
V1 = "/clustercert/v1"
MANY = 3_000
# Enough for a second page of a list, where no browser shows the pages.
SOME = 300
RULES = """
[[policy.rules]]
name = "admins"
when.roles = ["admin"]
grant.groups = ["shop:admins"]

[[policy.rules]]
name = "developers"
when.roles = ["member"]
grant.groups = ["shop:developers"]
grant.max_lifetime = "8h"

[[policy.rules]]
name = "repair"
when.roles = ["member"]
offer.groups = ["shop:operators", "shop:debuggers"]
offer.max_lifetime = "4h"
offer.min_reason_length = 10
offer.approvals = [{ role = "admin" }]

[[policy.rules]]
name = "break-glass"
when.roles = ["member"]
offer.groups = ["shop:break-glass"]
offer.max_lifetime = "1h"
offer.min_reason_length = 10
offer.approvals = [{ role = "admin" }]
offer.before_approval = true
offer.approve_within = "2h"

[[policy.rules]]
name = "maintenance"
when.roles = ["admin"]
offer.groups = ["shop:maintainers"]
offer.max_lifetime = "2h"
offer.approvals = []
"""
# 64 characters without a place to break the line.
LONG_NAME = "wolfeschlegelsteinhausenbergerdorffwolfeschlegelsteinhausenberge"
# Role in the service, or role in each project of the person's domain. Nina has no role.
PEOPLE: Mapping[str, tuple[str, str | None]] = {
    "olga": ("shop", "operator"),
    "aude": ("shop", "auditor"),
    "alice": ("shop", "admin"),
    "mo": ("shop", "member"),
    "priya": ("shop", "member"),
    "sam": ("shop", "member"),
    "tomas": ("shop", "member"),
    "nina": ("shop", None),
    LONG_NAME: ("shop", "member"),
    "luis": ("lab", "admin"),
}
SERVICE_ROLES = ("operator", "auditor")
PROJECTS: Mapping[str, Sequence[str]] = {"shop": ("storefront", "payments"), "lab": ("research",)}
# Cluster: project, Kubernetes version.
CLUSTERS: Mapping[str, tuple[str, str]] = {
    "prod-eu": ("storefront", "v1.34"),
    "staging": ("storefront", "v1.35"),
    "payments": ("payments", "v1.33"),
    "notebooks": ("research", "v1.32"),
}
ROTATED = "prod-us"
FAMILY_NAMES = (
    "Arroyo",
    "Bauer",
    "Chen",
    "Diallo",
    "Eriksson",
    "Fontaine",
    "Garcia",
    "Haddad",
    "Ito",
    "Jansen",
)
# What names and texts of a company contain in `running_here`.
MARKS: Mapping[str, str] = {"shop": "-zqshop", "lab": "-zqlab"}
GIVEN_NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Finn", "Grace", "Hugo", "Ines", "Jun", "Kofi", "Lena")


class Mark(Protocol):
    """Returns a name or text as it is in the data of a company, by default of the first one."""

    def __call__(self, text: str, domain: str = "shop", /) -> str: ...


def _unmarked(text: str, domain: str = "shop") -> str:
    return text


def _marked(text: str, domain: str = "shop") -> str:
    return f"{text}{MARKS[domain]}"


_Accounts = tuple[dict[str, Person], dict[tuple[str, str], str], dict[str, str]]


@dataclass(frozen=True)
class ConsoleSite:
    """The running service.

    Attributes:
        client: of the service.
        mark: see `Mark`.
        people: by name; `nina` has no role, and `luis` administers the project of the other domain.
        tokens: by person and id of the project that is the token's scope.
        projects: ids by name.
        clusters: ids by name. `prod-eu` has 3,000 certificates, or 300 in `running_here`; `staging` has three; and the
            client CA of `prod-us` is being rotated.
        requests: ids of access requests by their state.
    """

    folder: Path
    client: httpx2.Client
    mark: Mark
    people: Mapping[str, Person]
    tokens: Mapping[tuple[str, str], str]
    projects: Mapping[str, str]
    clusters: dict[str, str] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def database(self) -> Path:
        return self.folder / "data" / "clustercert.db"

    def project_of(self, cluster: str) -> str:
        """The id of the cluster's project."""
        name = "storefront" if cluster == ROTATED else CLUSTERS[cluster][0]
        return self.projects[name]

    def cluster_path(self, cluster: str, tail: str = "") -> str:
        """The address of a cluster in the API."""
        return f"{V1}/projects/{self.project_of(cluster)}/clusters/{self.clusters[cluster]}{tail}"

    def send(
        self, who: str, method: str, path: str, body: object = None, token: str | None = None, **query: str
    ) -> httpx2.Response:
        """Send a request to the API, with the person's token unless there is another one."""
        headers = {"X-Auth-Token": token or self.people[who].token}
        return self.client.request(method, path, json=body, params=query, headers=headers)

    def done(
        self, who: str, method: str, path: str, body: object = None, token: str | None = None, **query: str
    ) -> Any:
        """The answer to a request that succeeds."""
        answer = self.send(who, method, path, body, token, **query)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def issue(self, who: str, cluster: str, **body: object) -> str:
        """Issue a certificate. Returns its fingerprint."""
        project = self.project_of(cluster)
        path = f"/api/v3/projects/{project}/clusters/{self.clusters[cluster]}/clustercert"
        answer = self.send(who, "POST", path, {"duration": -1} | body, self.tokens[who, project])
        assert answer.is_success, answer.text
        return answer.headers["X-Clustercert-Fingerprint"]

    def request(self, who: str, cluster: str, group: str, reason: str, ticket: str | None = None) -> str:
        """Create an access request. Returns its id."""
        asked = {"groups": [self.mark(f"shop:{group}")], "duration": 3600, "reason": self.mark(reason)}
        more = {"cluster_id": self.clusters[cluster]} | ({} if ticket is None else {"ticket": ticket})
        token = self.tokens[who, self.project_of(cluster)]
        return str(self.done(who, "POST", f"{V1}/access-requests", asked | more, token)["id"])

    def step(self, who: str, request_id: str, step: str, reason: str = "agreed") -> None:
        """Approve, deny or end a request for a cluster of the storefront."""
        token = self.tokens[who, self.projects["storefront"]]
        self.done(
            who, "POST", f"{V1}/access-requests/{request_id}/{step}", {"reason": self.mark(reason)}, token
        )


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own, since Playwright runs an event loop in the thread of the test."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ConsoleSite]:
    """Run the service as a process in a folder."""
    config, accounts = _prepare(folder, _unmarked)
    variables = {"CLUSTERCERT_CONFIG": str(config), "CLUSTERCERT_LOG__FILE": str(folder / "log")}
    with serve_process.listening((), os.environ | variables) as serving:
        client = httpx2.Client(base_url=serving.url, timeout=SECONDS, trust_env=False)
        with client, _filled(ConsoleSite(folder, client, _unmarked, *accounts), MANY) as site:
            yield site


@contextlib.contextmanager
def running_here(folder: Path) -> Iterator[ConsoleSite]:
    """Run the service in this process. All names and texts in its data contain their company's mark."""
    config, accounts = _prepare(folder, _marked)
    with (
        Service(load(config)).running() as service,
        _filled(ConsoleSite(folder, service.client, _marked, *accounts), SOME) as site,
    ):
        yield site


def _prepare(folder: Path, mark: Mark) -> tuple[Path, _Accounts]:
    """Create the settings and the accounts."""
    config = folder / "clustercert.toml"
    rules = re.sub(r'"(shop:.*?)"', lambda match: f'"{mark(match[1])}"', RULES)
    rules = re.sub(r'name = "(.*)"', lambda match: f'name = "{mark(match[1])}"', rules)
    config.write_text(
        f"data_dir = '{folder / 'data'}'\nkek_file = '{folder / 'kek'}'\n"
        "[limits]\nfailures_per_minute = 0\n[audit]\nrefusals_per_minute = 1_000_000\n"
        f"[console]\nenabled = true\n[log]\nformat = 'json'\n{rules}",
        encoding="utf-8",
    )
    write_new_kek_file(folder / "kek")
    return config, run_in_thread(_add_accounts(load(config), mark))


@contextlib.contextmanager
def _filled(site: ConsoleSite, certificates: int) -> Iterator[ConsoleSite]:
    """Add clusters, certificates and requests to a running service."""
    (site.folder / "apiserver").mkdir()
    with ApiServer(site.folder / "apiserver") as double:
        _add_clusters(site, double)
        _add_certificates(site, certificates)
        _add_requests(site)
        _start_rotation(site, double)
        yield site


async def _add_accounts(settings: Settings, mark: Mark) -> _Accounts:
    """The people, their tokens for single projects, and the ids of projects."""
    await initialise(settings, actor=ACTOR)
    people, tokens, projects = dict[str, Person](), dict[tuple[str, str], str](), dict[str, Project]()
    async with open_components(settings) as components:
        identity = components.identity
        directory, roles = identity.directory, identity.roles
        domains = {name: await directory.create_domain(mark(name, name), actor=ACTOR) for name in PROJECTS}
        for domain, names in PROJECTS.items():
            for name in names:
                projects[name] = await directory.create_project(
                    mark(name, domain), domains[domain], actor=ACTOR
                )
        for name, (domain, role) in PEOPLE.items():
            password = secrets.token_urlsafe(12)
            user = await directory.create_user(
                mark(name, domain), domains[domain], password=password, actor=ACTOR
            )
            proof = ByPassword(Reference(id=user.id), password)
            if role in SERVICE_ROLES:
                await roles.assign(role, user, None, actor=ACTOR)
            elif role is not None:
                for project in (projects[each] for each in PROJECTS[domain]):
                    await roles.assign(role, user, project, actor=ACTOR)
                    scope = ProjectScope(Reference(id=project.id))
                    tokens[name, project.id] = (await identity.tokens.issue(proof, scope)).text
            if name == "mo":
                await identity.access_keys.create(user, description=mark("pipeline", domain), actor=ACTOR)
            people[name] = Person(user, password, (await identity.tokens.issue(proof, None)).text)
    return people, tokens, {name: project.id for name, project in projects.items()}


def _add_clusters(site: ConsoleSite, double: ApiServer) -> None:
    """Register the clusters. The API server of `prod-us` is a double, which trusts the cluster's client CA."""
    server_ca = server_ca_pem().decode()
    for number, (name, (project, version)) in enumerate(CLUSTERS.items()):
        body = {
            "internal_url": f"https://10.0.{number}.5:6443",
            "external_url": f"https://203.0.113.{number + 10}:6443",
            "server_ca": server_ca,
            "version": version,
        }
        domain = next(each for each, projects in PROJECTS.items() if project in projects)
        path = f"{V1}/projects/{site.projects[project]}/clusters/{site.mark(name, domain)}"
        site.clusters[name] = site.done("olga", "PUT", path, body)["id"]
    body = {"internal_url": double.url, "server_ca": double.server_ca.read_text(), "version": "v1.34"}
    path = f"{V1}/projects/{site.projects['storefront']}/clusters/{site.mark(ROTATED)}"
    site.clusters[ROTATED] = site.done("olga", "PUT", path, body)["id"]
    _trust(site, double)


def _trust(site: ConsoleSite, double: ApiServer) -> None:
    double.trust(site.send("olga", "GET", site.cluster_path(ROTATED, "/client-cas/bundle")).content)


def _add_certificates(site: ConsoleSite, copies: int) -> None:
    """Issue certificates: some revoked, one used after that, and one whose issuer is unknown."""
    for who, cluster in (("mo", "staging"), ("alice", "staging"), (LONG_NAME, "staging")):
        site.issue(who, cluster)
    site.issue("alice", "payments", reason=site.mark("quarterly audit of the ledger"))
    site.issue("luis", "notebooks")
    site.issue("mo", ROTATED)
    template = site.issue("mo", "prod-eu", reason=site.mark("deploy of the checkout"))
    revoked, used = site.issue("priya", "prod-eu"), site.issue("sam", "prod-eu")
    for fingerprint, reason in ((revoked, "keyCompromise"), (used, "superseded")):
        path = f"{V1}/certificates/{fingerprint}/revoke"
        token = site.tokens["alice", site.projects["storefront"]]
        site.done("alice", "POST", path, {"reason": reason}, token)
    now = "strftime('%Y-%m-%d %H:%M:%S.000000', 'now')"
    execute(
        site.database,
        f"UPDATE certificate SET last_seen_at = {now}, first_seen_at = {now}, revoked_used_at = {now},"
        " revoked_at = strftime('%Y-%m-%d %H:%M:%S.000000', 'now', '-9 minutes') WHERE fingerprint = ?",
        bytes.fromhex(used),
    )
    _copy_certificate(site, bytes.fromhex(template), copies)
    token = site.done("olga", "POST", site.cluster_path("prod-eu", "/webhook-tokens"))["token"]
    for number, (user, group) in enumerate((("kubernetes-admin", "system:masters"), ("jenkins", "ci"))):
        answer = site.client.post(
            f"{V1}/kubernetes/clusters/{site.clusters['prod-eu']}/authorize",
            content=review(
                credential_id(bytes([number]) * 32),
                user=site.mark(user),
                groups=(group, site.mark("tooling")),
            ),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        assert answer.status_code == 200, answer.text


def _copy_certificate(site: ConsoleSite, fingerprint: bytes, copies: int) -> None:
    """Copy a certificate for other people, who have up to eight certificates each, and end at different times."""
    names = [site.mark(f"{given}.{family}".lower()) for given in GIVEN_NAMES for family in FAMILY_NAMES]
    columns = [str(row[1]) for row in rows(site.database, "PRAGMA table_info(certificate)") if row[1] != "id"]
    own = {
        "fingerprint": "randomblob(32)",
        "serial": "lower(hex(randomblob(20)))",
        "credential_number": "lower(hex(randomblob(20)))",
        "user_id": "printf('%032x', n % 421)",
        "user_name": f"json_extract('{json.dumps(names)}', '$[' || (n % 421 % {len(names)}) || ']')"
        " || CASE WHEN n % 421 >= 120 THEN n % 421 ELSE '' END",
        "not_after": "strftime('%Y-%m-%d %H:%M:%S.000000', 'now', (n * 37 % 480 + 1) || ' minutes')",
        "last_seen_at": "CASE WHEN n % 3 > 0 THEN"
        " strftime('%Y-%m-%d %H:%M:%S.000000', 'now', '-' || (n * 7 % 90) || ' minutes') END",
    }
    values = ", ".join(own.get(name, f'"{name}"') for name in columns)
    execute(
        site.database,
        f"INSERT INTO certificate ({', '.join(f'{chr(34)}{name}{chr(34)}' for name in columns)})"
        f" SELECT {values} FROM (SELECT * FROM certificate WHERE fingerprint = ?), (WITH RECURSIVE numbers(n) AS"
        " (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?) SELECT n FROM numbers)",
        fingerprint,
        copies,
    )


def _add_requests(site: ConsoleSite) -> None:
    """Leave one access request in each state."""
    reason, group = "INC-42: checkout answers with errors", "operators"
    found = site.requests
    found["pending"] = site.request("mo", "prod-eu", group, reason, "INC-42")
    found["approved"] = site.request("priya", "prod-eu", "debuggers", "look at the heap of the cart")
    site.step("alice", found["approved"], "approve")
    found["active"] = site.request("sam", "prod-eu", group, reason)
    site.step("alice", found["active"], "approve")
    site.issue("sam", "prod-eu", access_request=found["active"])
    found["denied"] = site.request("tomas", "prod-eu", group, "I would like to look around")
    site.step("alice", found["denied"], "deny", "use staging for this")
    found["ended"] = site.request("alice", "staging", "maintainers", "replace the ingress controller")
    site.step("alice", found["ended"], "end", "done")
    found["expired"] = site.request("mo", "staging", group, "restart the queue workers")
    found["finished"] = site.request("alice", "payments", "maintainers", "rotate the card keys")
    site.issue("alice", "payments", access_request=found["finished"])
    past = "2026-01-01 00:00:00.000000"
    for state, column in (("expired", "approve_by"), ("finished", "ends_at")):
        execute(
            site.database,
            f"UPDATE access_request SET {column} = ?, due_at = ? WHERE id = ?",
            past,
            past,
            found[state],
        )
    for state, request_id in found.items():
        eventually(lambda state=state, request_id=request_id: _state(site, request_id) == state)  # type: ignore[misc] # the lambda has no types


def _state(site: ConsoleSite, request_id: str) -> str:
    return str(site.done("olga", "GET", f"{V1}/access-requests/{request_id}")["state"])


def _start_rotation(site: ConsoleSite, double: ApiServer) -> None:
    """Replace the client CA of `prod-us` until certificates of the old one are left to end."""
    path = site.cluster_path(ROTATED, "/client-ca-rotation")
    site.done("olga", "POST", path, {})
    _trust(site, double)
    eventually(lambda: site.done("olga", "GET", path)["state"] in ("issuing", "draining"))
    # The service waits until no worker can issue from the old CA any more.
    set_draining(site.database, site.clusters[ROTATED])
