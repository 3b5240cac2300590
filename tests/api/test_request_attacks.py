"""Attacks by headers, addresses, encodings and look-alikes. None gives a credential, a right or a certificate."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
from collections.abc import Iterator
from urllib.parse import quote, unquote

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from clustercert.identity.tokens import ByPassword, ProjectScope
from clustercert.store.identity.entities import Reference
from clustercert.wiring import open_components
from support import world as worlds
from support.keystone import BY, PASSWORD, UNAUTHORIZED, Keystone
from support.leaf_checks import leaf_of
from support.service import Service, exchange, scope_of
from support.stores import rows
from support.world import World

BODY = {"duration": 1}
# As front ends and Keystone's middleware set them for applications behind them.
FRONT_END = {
    "X-Identity-Status": "Confirmed",
    "X-Roles": "admin,operator",
    "X-Is-Admin-Project": "True",
    "X-Forwarded-User": "admin",
    "X-Remote-User": "admin",
    "Remote-User": "admin",
    "X-Remote-Group": "system:masters",
    "Impersonate-User": "admin",
    "X-Ssl-Client-Verify": "SUCCESS",
    "X-Ssl-Client-S-Dn": "CN=admin,O=system:masters",
    "X-Forwarded-Client-Cert": 'Subject="CN=admin,O=system:masters"',
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("request-attacks"))


@pytest.fixture(scope="module")
def service(world: World) -> Iterator[Service]:
    with Service(world.settings()).running() as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> httpx2.Client:
    return service.client


def certificates(world: World) -> object:
    return rows(world.database, "SELECT count(*) FROM certificate")[0][0]


def is_401(response: httpx2.Response) -> None:
    assert (response.status_code, response.json()["errorCode"]) == (401, "CCE.01401001")
    assert response.json()["message"] == "Authorization failed."


def test_headers_that_a_front_end_would_set_prove_nothing(client: httpx2.Client, world: World) -> None:
    admin, reader, before = world.people["admin"], world.people["reader"], certificates(world)
    claimed = FRONT_END | {"X-User-Id": admin.user.id, "X-Project-Id": world.project.id}
    is_401(client.post(world.path(), json=BODY, headers=claimed))
    assert certificates(world) == before
    leaf = leaf_of(client.post(world.path(), json=BODY, headers=claimed | reader.headers).json())
    alone = leaf_of(client.post(world.path(), json=BODY, headers=reader.headers).json())
    for found in (leaf, alone):
        [name] = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        groups = [each.value for each in found.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        assert name.value == reader.user.id
        assert groups[:-1] == ["clustercert:viewers"]


@pytest.mark.parametrize("name", ["X-Auth-Token", "token", "access_token", "Authorization", "auth_token"])
def test_a_credential_in_the_address_or_a_cookie_does_not_count(
    client: httpx2.Client, world: World, name: str
) -> None:
    token, before = world.people["admin"].token, certificates(world)
    is_401(client.post(f"{world.path()}?{name}={token}", json=BODY))
    is_401(client.post(world.path(), json=BODY, headers={"Cookie": f"{name}={token}"}))
    is_401(client.post(world.path(), json=BODY | {name: token}))
    assert certificates(world) == before


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def jwt(world: World, algorithm: str, key: bytes) -> str:
    claims = {"sub": world.people["admin"].user.id, "roles": ["admin"], "exp": 4_102_444_800}
    head = encoded(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    signed = f"{head}.{encoded(json.dumps(claims).encode())}"
    signature = hmac.digest(key, signed.encode(), hashlib.sha256) if key else b""
    return f"{signed}.{encoded(signature)}"


def test_a_token_that_the_caller_made_is_unknown(client: httpx2.Client, world: World) -> None:
    admin, before = world.people["admin"], certificates(world)
    stored = hashlib.sha256(admin.token.encode()).hexdigest()
    for token in (
        jwt(world, "none", b""),
        jwt(world, "HS256", world.client_ca("plain").public_bytes(Encoding.PEM)),
        admin.user.id,
        stored,
        "ccw_" + admin.token,
        "%" + admin.token,
        quote(admin.token[:-1]) + f"%{ord(admin.token[-1]):02x}",
    ):
        for headers in ({"X-Auth-Token": token}, {"Authorization": f"Bearer {token}"}):
            is_401(client.post(world.path(), json=BODY, headers=headers))
    assert certificates(world) == before


@pytest.mark.parametrize("added", [b"\x00", b"\r\nX-Roles: admin", b"\xc2\xa0", b"\xff", b",", b";"])
def test_a_token_with_one_more_byte_is_none(service: Service, world: World, added: bytes) -> None:
    token, before = world.people["admin"].token.encode(), certificates(world)
    headers = [(b"host", b"a"), (b"content-type", b"application/json"), (b"x-auth-token", token + added)]
    is_401(service.send_raw("POST", world.path(), headers, [json.dumps(BODY).encode()]))
    assert certificates(world) == before


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_a_header_changes_neither_method_nor_path(client: httpx2.Client, world: World, name: str) -> None:
    headers, before = world.people["admin"].headers, certificates(world)
    shown = client.get(world.path(tail="") + "?_method=POST", headers=headers | {name: "POST"})
    assert (shown.status_code, shown.json()["kind"]) == (200, "Cluster")
    for rewritten in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Path"):
        response = client.get("/healthz", headers=headers | {rewritten: world.path()})
        assert (response.status_code, response.text) == (200, "ok\n")
    assert certificates(world) == before


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_not_unpacked(client: httpx2.Client, world: World, encoding: str) -> None:
    bomb = gzip.compress(json.dumps(BODY).encode().ljust(20 << 20))
    headers, before = world.people["admin"].headers, certificates(world)
    response = client.post(
        world.path(),
        content=bomb,
        headers=headers | {"Content-Type": "application/json", "Content-Encoding": encoding},
    )
    assert len(bomb) < 64 * 1024
    assert (response.status_code, response.json()["errorCode"]) == (415, "APIGW.0201")
    assert certificates(world) == before


def test_a_forwarded_host_is_in_no_answer(client: httpx2.Client, world: World) -> None:
    headers = world.people["admin"].headers | {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Server": "evil.example",
        "X-Host": "evil.example",
    }
    for path in ("/v3", "/", "/v3/auth/catalog", "/v3/projects", world.path(tail=""), world.path()):
        response = client.get(path, headers=headers)
        assert response.status_code in (200, 300), path
        assert "evil.example" not in response.text + str(response.headers)


@pytest.mark.parametrize(
    "tail",
    [
        ";/clustercert",
        "/;x=1/clustercert",
        "/./clustercert",
        "/x/../clustercert",
        "/%2e%2e/%2e%2e/clusters/clustercert",
        "/%252e%252e/clustercert",
        "\\clustercert",
        "/clustercert%00",
        "/clustercert%20",
        "/clustercert.json",
        "/clustercert%3FdryRun=All",
        "/ClusterCert",
        "/\uff43lustercert",
        "/cl\u03c5stercert",
    ],
)
def test_another_spelling_of_the_path_issues_nothing(service: Service, world: World, tail: str) -> None:
    token, before = world.people["admin"].token.encode(), certificates(world)
    raw = quote(world.path(tail=tail), safe="/%;\\.=")
    headers = [(b"host", b"a"), (b"content-type", b"application/json"), (b"x-auth-token", token)]
    scope = scope_of("POST", unquote(raw), headers)
    scope["raw_path"] = raw.encode()
    response = service.run(exchange(service.app, scope, [json.dumps(BODY).encode()]))
    assert response.status_code in (404, 405)
    assert "client-certificate-data" not in response.text
    assert certificates(world) == before


LOOK_ALIKES = {
    "Cyrillic": "\u0430dmin",
    "full width": "\uff41dmin",
    "capital": "Admin",
    "dotless i": "adm\u0131n",
    "combining": "a\u0307dmin",
    "mathematical": "\U0001d41admin",
}


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_a_role_that_looks_like_admin_has_none_of_its_rights(
    client: httpx2.Client, world: World, kind: str
) -> None:
    async def token() -> str:
        async with open_components(world.settings()) as components:
            identity = components.identity
            user = await identity.directory.create_user(
                f"look-alike {kind}", world.project.domain, password=PASSWORD, **BY
            )
            await identity.roles.create(LOOK_ALIKES[kind], **BY)
            await identity.roles.assign(LOOK_ALIKES[kind], user, world.project, **BY)
            scope = ProjectScope(Reference(id=world.project.id))
            return (await identity.tokens.issue(ByPassword(Reference(id=user.id), PASSWORD), scope)).text

    headers, before = {"X-Auth-Token": asyncio.run(token())}, certificates(world)
    response = client.post(world.path(), json=BODY, headers=headers)
    assert (response.status_code, response.json()["errorCode"]) == (403, "CCE.01403001")
    revoke = {"userId": world.people["admin"].user.id}
    assert client.post(world.path(tail="/clustercertrevoke"), json=revoke, headers=headers).status_code == 403
    assert certificates(world) == before


@pytest.mark.parametrize(
    "name", ["\u0430lice", "\uff41lice", "ALICE", "al\u0131ce", "alice\u200b", "alice\u0000", "a\u00adlice"]
)
def test_a_name_that_looks_like_a_users_does_not_log_in(keystone: Keystone, name: str) -> None:
    def login(name: str) -> httpx2.Response:
        user = {"name": name, "domain": {"id": keystone.domain.id}, "password": PASSWORD}
        identity = {"methods": ["password"], "password": {"user": user}}
        return keystone.http.post("/v3/auth/tokens", content=json.dumps({"auth": {"identity": identity}}))

    assert login("alice").status_code == 201
    refused = login(name)
    assert (refused.status_code, refused.json()) == (401, UNAUTHORIZED)
    assert "x-subject-token" not in refused.headers
