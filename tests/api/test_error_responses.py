"""Error responses: their bodies, and the order of checks."""

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from support.leaf_checks import leaf_of
from support.real_keystone.answers import recorded
from support.service import Service
from support.world import World

JSON = {"Content-Type": "application/json"}
FIELDS = ["errorCode", "errorMessage", "error_code", "error_msg", "message", "request_id"]
UNAUTHORIZED = {
    "error": {
        "code": 401,
        "message": "The request you have made requires authentication.",
        "title": "Unauthorized",
    },
    "error_code": "CCE.01401001",
    "error_msg": "The request you have made requires authentication.",
}
TOO_LARGE = b'{"duration": 30}'.ljust(64 * 1024 + 1)


def is_error(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that the response is an error in the common format, and return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert list(body) == FIELDS
    assert body["errorCode"] == body["error_code"] == code
    assert body["errorMessage"] == body["error_msg"] == body["message"]
    assert body["message"].endswith((".", "…"))
    assert body["request_id"] == response.headers["X-Request-Id"]
    assert len(body["request_id"]) == 32
    return body


@pytest.mark.parametrize("tail", ["", "/nothing"])
def test_huawei_clouds_sdks_get_each_text_once(client: httpx2.Client, world: World, tail: str) -> None:
    """Their Java SDK shows `error_msg` and `message` together, even if they are equal."""
    headers = world.people["admin"].headers | {"User-Agent": "huaweicloud-usdk-java/3.0; 17.0.18"}
    response = client.get(f"{clusters_of_nothing(world)}{tail}", headers=headers)
    assert response.status_code == 404
    body = response.json()
    assert list(body) == [each for each in FIELDS if each != "message"]
    assert body["errorMessage"] == body["error_msg"]


def clusters_of_nothing(world: World) -> str:
    return f"/api/v3/projects/{world.project.id}/clusters/{uuid.UUID(int=0)}"


def every_call(client: httpx2.Client, base: str, headers: dict[str, str]) -> dict[str, httpx2.Response]:
    """Send each kind of request for one cluster."""
    body = {"duration": 1}
    return {
        "POST": client.post(f"{base}/clustercert", json=body, headers=headers),
        "dry run": client.post(f"{base}/clustercert?dryRun=All", json=body, headers=headers),
        "GET": client.get(f"{base}/clustercert", headers=headers),
        "Autopilot": client.post(
            base.replace("/api/v3/", "/autopilot/v3/") + "/clustercert", json=body, headers=headers
        ),
        "show": client.get(base, headers=headers),
        "openapi": client.get(f"{base}/openapi", headers=headers),
    }


# 401


def nobody(world: World) -> dict[str, dict[str, str]]:
    token = world.people["admin"].token
    return {
        "nothing": {},
        "an empty token": {"X-Auth-Token": ""},
        "an unknown token": {"X-Auth-Token": "A" * 43},
        "a token in another case": {"X-Auth-Token": token.swapcase()},
        "a token cut short": {"X-Auth-Token": token[:-1]},
        "a token and more": {"X-Auth-Token": token + "A"},
        "a very long token": {"X-Auth-Token": "A" * 5000},
        "an unknown scheme": {"Authorization": f"Basic {token}"},
        "a token without its scheme": {"Authorization": token},
        "a signature that isn't one": {"Authorization": "SDK-HMAC-SHA256 nonsense"},
        "two tokens that differ": {"X-Auth-Token": token, "Authorization": f"Bearer {'A' * 43}"},
        "a cookie": {"Cookie": f"X-Auth-Token={token}"},
    }


def test_every_failure_to_authenticate_reads_the_same(client: httpx2.Client, world: World) -> None:
    said = set()
    for headers in nobody(world).values():
        for response in every_call(client, world.path(tail=""), headers).values():
            body = is_error(response, 401, "CCE.01401001")
            body.pop("request_id")
            said.add(json.dumps(body))
            assert world.people["admin"].token not in response.text
    assert len(said) == 1


def test_a_401_names_a_scheme_that_lets_no_browser_ask_for_a_password(
    client: httpx2.Client, world: World
) -> None:
    for response in every_call(client, world.path(tail=""), {}).values():
        assert response.status_code == 401
        assert response.headers.get_list("WWW-Authenticate") == ['Bearer realm="clustercert"']


def test_a_401_of_the_identity_names_its_address_as_keystone_does(
    client: httpx2.Client, service_with: Callable[..., Service]
) -> None:
    challenge = recorded("token_bad_service")["headers"]["www-authenticate"]
    public = service_with(server={"public_url": "https://keystone.example:5000"}).client
    login = {"auth": {"identity": {"methods": ["token"], "token": {"id": "A" * 43}}}}
    for response in (public.get("/v3/projects"), public.post("/v3/auth/tokens", json=login)):
        assert response.status_code == 401
        assert response.headers.get_list("WWW-Authenticate") == [challenge]
    by_request = client.get("/v3/projects").headers["WWW-Authenticate"]
    assert by_request == f'Keystone uri="{str(client.base_url).rstrip("/")}/v3"'


def test_a_host_that_is_none_does_not_get_into_the_challenge(service: Service) -> None:
    for host in (b'a" x="', b"[", b"a b", b"a\xff"):
        response = service.send_raw("GET", "/v3/projects", [(b"host", host)])
        challenge = response.headers["WWW-Authenticate"]
        assert re.fullmatch(r'Keystone uri="http://[a-z0-9.:-]+/v3"', challenge), host


@pytest.mark.parametrize("form", ["X-Auth-Token", "Authorization", "both the same"])
def test_a_token_counts_in_either_header(client: httpx2.Client, world: World, form: str) -> None:
    token = world.people["admin"].token
    forms = {
        "X-Auth-Token": {"X-Auth-Token": token},
        "Authorization": {"Authorization": f"Bearer {token}"},
        "both the same": {"X-Auth-Token": token, "Authorization": f"Bearer {token}"},
    }
    for response in every_call(client, world.path(tail=""), forms[form]).values():
        assert response.status_code == 200


# The order of checks: size, caller, content


@pytest.mark.parametrize("who", ["admin", "nobody"])
def test_size_is_judged_before_the_sender(client: httpx2.Client, world: World, who: str) -> None:
    headers = JSON | (world.people["admin"].headers if who == "admin" else {})
    body = is_error(client.post(world.path(), content=TOO_LARGE, headers=headers), 413, "APIGW.0201")
    assert "65536" in body["message"]


@pytest.mark.parametrize("length", [b"99999999999", b"9" * 5000], ids=["11 digits", "5,000 digits"])
def test_a_body_that_is_said_to_be_too_large_is_refused_unread(
    service: Service, world: World, length: bytes
) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    is_error(service.send_raw("POST", world.path(), headers, []), 413, "APIGW.0201")


def test_a_body_that_says_no_size_is_counted_as_it_comes(service: Service, world: World) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"transfer-encoding", b"chunked"),
        (b"x-auth-token", world.people["admin"].token.encode()),
    ]
    whole = [b'{"duration": 1'] + [b" " * 1000] * 60 + [b"}"]
    assert service.send_raw("POST", world.path(), headers, whole).status_code == 200
    is_error(service.send_raw("POST", world.path(), headers, [b" " * 10_000] * 7), 413, "APIGW.0201")


@pytest.mark.parametrize(
    "codings", [[b"gzip, chunked"], [b"gzip", b"chunked"], [b"identity, chunked"], [b",chunked"], [b"gzip"]]
)
def test_a_body_in_a_transfer_coding_besides_chunked_is_refused(
    service: Service, world: World, codings: list[bytes]
) -> None:
    headers = [(b"host", b"a"), (b"content-type", b"application/json")]
    headers += [(b"x-auth-token", world.people["admin"].token.encode())]
    body = [b'{"duration": 1}']
    coded = [*headers, *((b"transfer-encoding", coding) for coding in codings)]
    refused = is_error(service.send_raw("POST", world.path(), coded, body), 400, "CCE.01400001")
    assert "Transfer-Encoding: chunked" in refused["message"]
    chunked = [*headers, (b"transfer-encoding", b"Chunked ")]
    assert service.send_raw("POST", world.path(), chunked, body).status_code == 200


def test_a_body_that_ends_early_is_a_408(service: Service, world: World) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    is_error(service.send_raw("POST", world.path(), headers, []), 408, "APIGW.0201")


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"", "application/json"), (b"nonsense", "application/json"), (b"{}", "text/plain")],
)
def test_the_sender_is_judged_before_the_meaning(
    client: httpx2.Client, world: World, content: bytes, content_type: str
) -> None:
    headers = {"Content-Type": content_type}
    is_error(client.post(world.path(), content=content, headers=headers), 401, "CCE.01401001")


def test_a_get_with_a_large_body_is_too_large_as_well(client: httpx2.Client, world: World) -> None:
    response = client.request("GET", world.path(), content=TOO_LARGE, headers=world.people["admin"].headers)
    is_error(response, 413, "APIGW.0201")


# 404


MISSING = str(uuid.UUID(int=7, version=4))
STRANGE_IDS = [
    "plain",
    "x",
    "null",
    "0",
    "-1",
    "%20",
    "%00",
    "%0A",
    "%F0%9F%94%90",
    "%EF%BF%BD",
    "..;",
    "'%20OR%20'1'='1",
    "a" * 2000,
    "4d1ecb2c229a11e89c750255ac100ceb",
    "{4d1ecb2c-229a-11e8-9c75-0255ac100ceb}",
    "d41d8cd98f00b204e9800998ecf8427e",
]


def test_what_is_not_the_callers_does_not_exist(client: httpx2.Client, world: World) -> None:
    """No role in the project, a cluster of another project, no such cluster: the responses are equal."""
    ours, others = world.project.id, world.other_project.id
    plain, foreign = world.clusters["plain"].id, world.clusters["foreign"].id
    places = [
        (ours, MISSING),
        (ours, foreign),
        (others, foreign),
        (others, plain),
        (others, MISSING),
        ("0" * 32, plain),
        ("eu-de", plain),
        (ours.upper(), plain),
        *((ours, strange) for strange in STRANGE_IDS),
        *((strange, plain) for strange in STRANGE_IDS),
    ]
    said = set()
    for project_id, cluster_id in places:
        base = f"/api/v3/projects/{project_id}/clusters/{cluster_id}"
        for call, response in every_call(client, base, world.people["admin"].headers).items():
            assert response.status_code == 404, (call, base)
            body = is_error(response, 404, "CCE.01404001")
            said.add(response.text.replace(body["request_id"], ""))
            headers = response.headers.multi_items()
            names = [name for name, _ in headers]
            assert names == [
                "content-length",
                "content-type",
                "content-security-policy",
                "x-content-type-options",
                "x-frame-options",
                "x-request-id",
            ], (call, base)
    assert len(said) == 1


# A byte that never occurs in UTF-8, a surrogate, an incomplete character, and a valid character before such a byte.
NOT_UTF_8 = ["%FF", "%ED%A0%80", "a%C3", "%EF%BF%BD%FF"]


@pytest.mark.parametrize("who", ["admin", "nobody"])
@pytest.mark.parametrize("strange", NOT_UTF_8)
def test_a_path_that_is_not_utf_8_is_refused_at_every_route(
    client: httpx2.Client, world: World, strange: str, who: str
) -> None:
    headers = world.people["admin"].headers if who == "admin" else {}
    ours, plain = world.project.id, world.clusters["plain"].id
    for project_id, cluster_id in ((ours, strange), (strange, plain)):
        base = f"/api/v3/projects/{project_id}/clusters/{cluster_id}"
        for response in every_call(client, base, headers).values():
            assert "UTF-8" in is_error(response, 400, "CCE.01400001")["message"]
    for path in ("/clustercert/v1/users/{}", "/{}", "/docs/assets/{}", "/healthz/{}"):
        is_error(client.get(path.format(strange), headers=headers), 400, "CCE.01400001")
    assert client.get(f"/v3/projects/{strange}", headers=headers).json()["error"]["code"] == 400


@pytest.mark.parametrize("strange", NOT_UTF_8)
@pytest.mark.parametrize("query", ["type={}", "{}=x", "type=VirtualMachine&{}"])
def test_a_query_that_is_not_utf_8_is_refused(
    client: httpx2.Client, world: World, query: str, strange: str
) -> None:
    path = f"/api/v3/projects/{world.project.id}/clusters?{query.format(strange)}"
    response = client.get(path, headers=world.people["admin"].headers)
    assert "UTF-8" in is_error(response, 400, "CCE.01400001")["message"]


def test_an_encoded_replacement_character_is_a_character(client: httpx2.Client, world: World) -> None:
    path = f"/api/v3/projects/{world.project.id}/clusters?type=%EF%BF%BD"
    response = client.get(path, headers=world.people["admin"].headers)
    assert (response.status_code, response.json()["items"]) == (200, [])


def test_a_name_in_the_id_slot_is_a_404_for_each_client_that_tries(
    client: httpx2.Client, world: World
) -> None:
    """The openstack command tries the name as an id first, and lists the clusters after a 404."""
    base = f"/api/v3/projects/{world.project.id}/clusters/plain"
    is_error(client.get(base, headers=world.people["admin"].headers), 404, "CCE.01404001")


def test_the_list_of_a_project_without_a_role_is_the_same_404(client: httpx2.Client, world: World) -> None:
    said = set()
    for project_id in (world.other_project.id, "0" * 32, "eu-nl", "%00", "a" * 2000):
        response = client.get(
            f"/api/v3/projects/{project_id}/clusters", headers=world.people["admin"].headers
        )
        body = is_error(response, 404, "CCE.01404001")
        said.add(response.text.replace(body["request_id"], ""))
    assert len(said) == 1


def test_a_role_elsewhere_is_none_here(client: httpx2.Client, world: World) -> None:
    headers = world.people["stranger"].headers
    for response in every_call(client, world.path(tail=""), headers).values():
        is_error(response, 404, "CCE.01404001")
    assert client.get(world.path("foreign", ""), headers=headers).status_code == 200


def test_a_cluster_id_in_capitals_is_that_cluster_or_none(client: httpx2.Client, world: World) -> None:
    base = f"/api/v3/projects/{world.project.id}/clusters/{world.clusters['plain'].id.upper()}"
    response = client.get(base, headers=world.people["admin"].headers)
    assert response.status_code in (200, 404)
    if response.status_code == 200:
        assert response.json()["metadata"]["uid"] == world.clusters["plain"].id


# 403


def test_a_role_that_is_too_small_is_told_so(client: httpx2.Client, world: World) -> None:
    headers = world.people["inspector"].headers
    answers = every_call(client, world.path(tail=""), headers)
    for call in ("POST", "dry run", "GET", "Autopilot"):
        body = is_error(answers[call], 403, "CCE.01403001")
        assert "inspector" in body["message"]
    assert answers["show"].status_code == answers["openapi"].status_code == 200


def test_a_role_that_is_too_small_learns_nothing_of_other_projects(
    client: httpx2.Client, world: World
) -> None:
    base = f"/api/v3/projects/{world.project.id}/clusters/{world.clusters['foreign'].id}"
    for response in every_call(client, base, world.people["inspector"].headers).values():
        is_error(response, 404, "CCE.01404001")


# Ambiguous requests


def test_two_hosts_are_refused(service: Service, world: World) -> None:
    token = (b"x-auth-token", world.people["admin"].token.encode())
    one = [(b"host", b"a.example"), token]
    assert service.send_raw("GET", world.path(tail=""), one).status_code == 200
    for second in (b"a.example", b"b.example", b""):
        response = service.send_raw("GET", world.path(tail=""), [*one, (b"host", second)])
        is_error(response, 400, "CCE.01400001")


# Unknown paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/api",
        "/api/v3",
        "/api/v3/projects",
        "/api/v3/projects/x",
        "/api/v3/projects//clusters",
        "/api/v2/projects/x/clusters",
        "/autopilot/v3/projects/x/clusters",
        "/v3x",
        "/v30/auth/tokens",
        "/%00",
        "/a%0Ab",
        "/../etc/passwd",
        "/docs/assets/../../settings.py",
        "/docs/assets/nope.js",
        "/clustercert/v1/nope",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_a_404_of_the_gateway(client: httpx2.Client, path: str, method: str) -> None:
    response = client.request(method, path)
    if response.status_code == 405:
        is_error(response, 405, "APIGW.0201")
    else:
        is_error(response, 404, "APIGW.0101")


@pytest.mark.parametrize("tail", ["/clustercert/", "/", "/openapi/", "/clustercertrevoke/", "//clustercert"])
def test_a_known_path_with_something_more_is_unknown(client: httpx2.Client, world: World, tail: str) -> None:
    response = client.post(world.path(tail=tail), json={"userId": "x"}, headers=world.people["admin"].headers)
    is_error(response, 404, "APIGW.0101")


@pytest.mark.parametrize("path", ["/v3/nope", "/v3.0/nope", "/v3/auth/nope", "/v3/auth"])
def test_an_unknown_path_of_the_identity_answers_in_keystones_form(client: httpx2.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.headers["X-Request-Id"]
    error = response.json()["error"]
    assert (error["code"], error["title"]) == (404, "Not Found")
    assert error["message"]


def test_a_missing_credential_of_the_identity_answers_in_keystones_form(client: httpx2.Client) -> None:
    for path in ("/v3/projects", "/v3/auth/catalog", "/v3/auth/tokens"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


def test_a_large_body_of_the_identity_answers_in_keystones_form(client: httpx2.Client) -> None:
    response = client.post("/v3/auth/tokens", content=TOO_LARGE, headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == 413


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get"])
def test_a_method_that_a_path_does_not_take_is_a_405_with_those_it_takes(
    service: Service, world: World, method: str
) -> None:
    token = (b"x-auth-token", world.people["admin"].token.encode())
    for tail, takes in (("/clustercert", {"GET", "POST"}), ("", {"GET"}), ("/openapi", {"GET"})):
        response = service.send_raw(method, world.path(tail=tail), [token])
        is_error(response, 405, "APIGW.0201")
        allowed = {name.strip() for name in response.headers["Allow"].split(",")}
        assert takes <= allowed
        assert method not in allowed


def test_a_405_at_a_path_of_several_segments_names_its_methods(client: httpx2.Client) -> None:
    for path, takes in (
        ("/clustercert/v1/audit/log/tile/0/000", "GET"),
        ("/docs/assets/docs.js", "GET, HEAD"),
        ("/v3/auth/tokens", "DELETE, GET, HEAD, POST"),
    ):
        response = client.put(path)
        assert (response.status_code, response.headers["Allow"]) == (405, takes)


# Policies and their limits


def rule(role: str, lifetime: str, *groups: str) -> dict[str, object]:
    grant = {"groups": list(groups), "max_lifetime": lifetime}
    return {"name": role, "when": {"roles": [role]}, "grant": grant}


POLICY = {"rules": [rule("admin", "30d", "ours"), rule("member", "8h", "theirs", "others")]}


def test_the_policys_limit_clips_minus_one_and_get_and_forbids_more(
    service_with: Callable[..., Service], world: World
) -> None:
    client = service_with(policy=POLICY).client
    member, admin = world.people["member"].headers, world.people["admin"].headers
    body = is_error(client.post(world.path(), json={"duration": 1}, headers=member), 403, "CCE.01403001")
    assert "8 hours" in body["message"]
    body = is_error(client.post(world.path(), json={"duration": 31}, headers=admin), 403, "CCE.01403001")
    assert "30 days" in body["message"]
    for headers, hours in ((member, 8), (admin, 30 * 24)):
        for response in (
            client.post(world.path(), json={"duration": -1}, headers=headers),
            client.get(world.path(), headers=headers),
        ):
            leaf = leaf_of(response.json())
            seconds = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
            assert seconds == hours * 3600 + 300
    reader = client.post(world.path(), json={"duration": 1}, headers=world.people["reader"].headers)
    assert "admin, member" in is_error(reader, 403, "CCE.01403001")["message"]


def test_a_system_group_needs_to_be_named(service_with: Callable[..., Service], world: World) -> None:
    policy = {"rules": [rule("admin", "1d", "system:masters")], "allow_system": ["system:masters"]}
    client = service_with(policy=policy).client
    preview = client.post(
        world.path() + "?dryRun=All", json={"duration": 1}, headers=world.people["admin"].headers
    )
    assert preview.json()["organizations"] == ["system:masters", "clustercert:credential:<number>"]


# Every response


def test_every_answer_has_a_request_id_of_its_own(client: httpx2.Client, world: World) -> None:
    headers = world.people["admin"].headers
    paths = ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/nope", "/v3", "/v3/nope", "/metrics"]
    paths += [world.path(), world.path(tail=""), "/docs/assets/swagger-ui.css"]
    ids = [client.get(path, headers=headers).headers["X-Request-Id"] for path in paths]
    assert len(set(ids)) == len(paths)
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)
