"""The requests of the Go clients (both Terraform providers and their SDKs), replayed in their own order."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.go_clients import USER_AGENT, Answer, GoClient, Headers, encoded, send
from support.installed_demo import MISSING_CLUSTER, Demo, Tenant
from support.kubeconfig_checks import assert_kubeconfig, assert_lives

GO_HEADERS = {"User-Agent": USER_AGENT, "Accept": "application/json"}


@pytest.fixture(scope="module")
def tenant(demo: Demo) -> Tenant:
    return demo.own


@pytest.fixture(scope="module")
def otc(tenant: Tenant) -> GoClient:
    return GoClient(
        tenant.url,
        tenant.access_key,
        tenant.secret_key,
        scoped=True,
        unsigned={"X-Project-Id": tenant.project_id},
    )


@pytest.fixture(scope="module")
def huawei(tenant: Tenant) -> GoClient:
    return GoClient(
        tenant.url,
        tenant.access_key,
        tenant.secret_key,
        scoped=False,
        unsigned={"X-Project-Id": tenant.project_id},
    )


@pytest.fixture(scope="module")
def temporary(tenant: Tenant) -> dict[str, str]:
    """A temporary access key, got with a token; `access`, `secret`, `securitytoken`."""
    identity = {"methods": ["token"], "token": {"id": tenant.token, "duration_seconds": 900}}
    headers = {**GO_HEADERS, "Content-Type": "application/json", "X-Auth-Token": tenant.token}
    answer = send(
        tenant.url,
        "POST",
        "/v3.0/OS-CREDENTIAL/securitytokens",
        headers,
        encoded({"auth": {"identity": identity}}),
    )
    assert answer.status == 201
    credential: dict[str, str] = answer.json()["credential"]
    return credential


def unsigned(client: GoClient, more: Headers) -> GoClient:
    """The same client, which adds other headers after signing."""
    return GoClient(client.url, client.access_key, client.secret_key, client.scoped, more)


def assert_issued(answer: Answer, tenant: Tenant, lifetime: timedelta, asked_at: datetime) -> None:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    assert_lives(assert_kubeconfig(answer.json(), tenant), lifetime, asked_at)


def test_otc_with_an_access_key(otc: GoClient, tenant: Tenant) -> None:
    without_project = unsigned(otc, {})
    at = datetime.now(UTC)

    lookups = [
        without_project.get(f"/v3/projects?name={tenant.region}", content_type=False, at=at) for _ in range(2)
    ]
    catalog = otc.get("/v3/auth/catalog", content_type=False)

    assert [lookup.status for lookup in lookups] == [200, 200], (
        "equal signatures are no replay: Go sends them"
    )
    document = lookups[0].json()
    assert [(p["id"], p["name"]) for p in document["projects"]] == [(tenant.project_id, tenant.region)]
    assert document["links"]["next"] is None
    assert catalog.status == 200
    assert endpoint_of("ccev2.0", catalog.json()["catalog"], tenant.region) == tenant.url

    assert tenant.cluster_id in [c["metadata"]["uid"] for c in otc.get(tenant.clusters_path).json()["items"]]
    assert otc.get(f"{tenant.clusters_path}/{tenant.cluster_id}").status == 200
    assert_issued(otc.get(tenant.clustercert_path), tenant, timedelta(days=30), at)
    assert_issued(otc.post(tenant.clustercert_path, {"duration": 7}), tenant, timedelta(days=7), at)


def endpoint_of(service_type: str, catalog: list[dict[str, Any]], region: str) -> object:
    """How gophertelekomcloud picks one: by type, interface and region; more than one is an error."""
    found = [
        endpoint["url"]
        for service in catalog
        if service["type"] == service_type
        for endpoint in service["endpoints"]
        if endpoint["interface"] == "public" and endpoint["region"] in (region, "*")
    ]
    assert len(found) == 1
    return found[0]


def test_domains_are_found_by_access_key(otc: GoClient, tenant: Tenant) -> None:
    answer = unsigned(otc, {}).get("/v3/auth/domains", content_type=False)

    assert answer.status == 200
    assert tenant.domain_id in [domain["id"] for domain in answer.json()["domains"]]


def test_otc_with_a_password(tenant: Tenant) -> None:
    user = {"domain": {"id": tenant.domain_id}, "name": tenant.user_name, "password": tenant.password}
    auth = {
        "identity": {"methods": ["password"], "password": {"user": user}},
        "scope": {"project": {"domain": {"id": tenant.domain_id}, "name": tenant.region}},
    }
    headers = {**GO_HEADERS, "Content-Type": "application/json"}
    asked_at = datetime.now(UTC)

    created = send(tenant.url, "POST", "/v3/auth/tokens", headers, encoded({"auth": auth}))

    assert created.status == 201
    document = created.json()["token"]
    assert document["project"]["id"] == tenant.project_id
    assert endpoint_of("ccev2.0", document["catalog"], tenant.region) == tenant.url
    with_token = {**headers, "X-Auth-Token": created.headers["x-subject-token"]}
    assert send(tenant.url, "GET", tenant.clusters_path, with_token).status == 200
    got = send(tenant.url, "GET", tenant.clustercert_path, with_token)
    assert_issued(got, tenant, timedelta(days=30), asked_at)
    posted = send(tenant.url, "POST", tenant.clustercert_path, with_token, encoded({"duration": 30}))
    assert_issued(posted, tenant, timedelta(days=30), asked_at)


def test_otc_with_a_token_reads_it_back_first(tenant: Tenant) -> None:
    headers = {**GO_HEADERS, "X-Auth-Token": tenant.token, "X-Subject-Token": tenant.token}

    answer = send(tenant.url, "GET", "/v3/auth/tokens", headers)

    assert answer.status == 200
    document = answer.json()["token"]
    assert (document["project"]["id"], document["user"]["id"]) == (tenant.project_id, tenant.user_id)
    assert endpoint_of("ccev2.0", document["catalog"], tenant.region) == tenant.url


def test_huawei_terraform_does_not_sign_the_host(huawei: GoClient, tenant: Tenant) -> None:
    asked_at = datetime.now(UTC)

    shown = huawei.get(f"{tenant.clusters_path}/{tenant.cluster_id}")
    answer = huawei.post(tenant.clustercert_path, {"duration": -1})

    assert shown.status == 200
    assert_issued(answer, tenant, timedelta(days=1825), asked_at)


@pytest.mark.parametrize("scoped", [True, False], ids=["OTC", "Huawei"])
def test_a_temporary_key_comes_with_its_unsigned_security_token(
    tenant: Tenant, temporary: dict[str, str], *, scoped: bool
) -> None:
    headers = {"X-Project-Id": tenant.project_id, "X-Security-Token": temporary["securitytoken"]}
    client = GoClient(tenant.url, temporary["access"], temporary["secret"], scoped, headers)
    at = datetime.now(UTC)

    assert_issued(client.post(tenant.clustercert_path, {"duration": 1}), tenant, timedelta(days=1), at)
    for wrong in ({}, {"X-Security-Token": "another"}):
        assert unsigned(client, wrong).post(tenant.clustercert_path, {"duration": 1}).status == 401


@pytest.mark.parametrize("scoped", [True, False], ids=["OTC", "Huawei"])
def test_an_unsigned_project_id_widens_nothing(demo: Demo, tenant: Tenant, *, scoped: bool) -> None:
    other = demo.others[0]
    client = GoClient(
        tenant.url, tenant.access_key, tenant.secret_key, scoped, unsigned={"X-Project-Id": other.project_id}
    )

    assert client.post(other.clustercert_path, {"duration": 1}).status == 404
    assert client.get(other.clusters_path).status == 404
    assert client.post(tenant.clustercert_path, {"duration": 1}).status == 200, (
        "nor does it take anything away"
    )


@pytest.mark.parametrize("client_name", ["otc", "huawei"])
def test_a_body_that_was_not_signed_is_refused(
    request: pytest.FixtureRequest, tenant: Tenant, client_name: str
) -> None:
    client: GoClient = request.getfixturevalue(client_name)
    signed = {
        **GO_HEADERS,
        "Content-Type": "application/json",
        "X-Sdk-Date": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
    }
    authorization = client.authorization("POST", tenant.clustercert_path, signed, encoded({"duration": 1}))
    headers = {**signed, "Authorization": authorization}

    answers = [
        send(tenant.url, "POST", tenant.clustercert_path, headers, body)
        for body in (encoded({"duration": 1}), b'{"duration":1}', encoded({"duration": -1}))
    ]

    assert [answer.status for answer in answers] == [200, 401, 401]


@pytest.mark.parametrize("client_name", ["otc", "huawei"])
def test_a_missing_cluster_is_a_404_in_json(
    request: pytest.FixtureRequest, tenant: Tenant, client_name: str
) -> None:
    """At a 404 Terraform drops a resource from its state; a hash or nothing in the id's place is one too."""
    client: GoClient = request.getfixturevalue(client_name)

    for cluster_id in (MISSING_CLUSTER, "1780512345", ""):
        answer = client.post(f"{tenant.clusters_path}/{cluster_id}/clustercert", {"duration": -1})
        assert answer.status == 404, cluster_id
        assert answer.json()["errorCode"] in {"CCE.01404001", "APIGW.0101"}


@pytest.mark.parametrize("body", [{"duration": 0}, {"duration": -2}, {}], ids=["0", "-2", "{}"])
def test_a_past_expiry_date_is_a_400(otc: GoClient, tenant: Tenant, body: dict[str, int]) -> None:
    answer = otc.post(tenant.clustercert_path, body)
    assert (answer.status, answer.json()["errorCode"]) == (400, "CCE.01400001")


def test_a_cluster_decodes_into_the_go_structs(demo: Demo, eip_demo: Demo) -> None:
    """What nil pointers, index 0 and `map[string]string` of the Terraform providers ask of a cluster."""
    for tenant in (demo.own, eip_demo.own):
        headers = {**GO_HEADERS, "Content-Type": "application/json", "X-Auth-Token": tenant.token}
        cluster = send(tenant.url, "GET", f"{tenant.clusters_path}/{tenant.cluster_id}", headers).json()

        spec, status = cluster["spec"], cluster["status"]
        assert isinstance(spec["eniNetwork"], dict)
        assert isinstance(spec["serviceNetwork"], dict)
        assert isinstance(spec["hostNetwork"], dict)
        maps = (
            spec["extendParam"],
            spec["authentication"]["authenticatingProxy"],
            cluster["metadata"]["labels"],
            cluster["metadata"]["annotations"],
        )
        assert all(isinstance(value, str) for each in maps for value in each.values())
        assert isinstance(spec["billingMode"], int)
        assert status["endpoints"]
        assert isinstance(status.get("conditions", {}), dict)
        for moment in ("creationTimestamp", "updateTimestamp"):
            assert cluster["metadata"][moment].endswith(" +0000 UTC")
