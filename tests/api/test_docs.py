import json
import re
import sys
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import schemathesis

from clustercert.http import responses
from clustercert.http.operations import _swagger_ui
from support.service import Service
from support.world import World

REFERENCE = re.compile(r"""(?:src|href|url|Url)\s*[=:(]\s*["']?([^"'\s)>,]+)""")


def test_the_documentation_needs_no_other_host(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    references = REFERENCE.findall(page.text)
    assert len(references) >= 4
    assert "//" not in page.text
    for reference in references:
        assert reference.startswith("/"), reference
        assert client.get(reference).status_code == 200, reference


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/docs.js", "/healthz", "/v3/nothing", "/nothing"])
def test_browsers_show_answers_in_no_frame_and_run_no_inline_script(client: httpx2.Client, path: str) -> None:
    answer = client.get(path)
    rules = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/docs.js"])
@pytest.mark.parametrize("wanted", ["bytes=0-4", "bytes=99999999-", "bytes=5-1", "bytes=a", "lines=1-2"])
def test_a_file_is_sent_whole_whatever_range_is_requested(
    client: httpx2.Client, path: str, wanted: str
) -> None:
    """The framework answers invalid ranges itself, with plain text."""
    answer = client.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, client.get(path).content)
    assert "accept-ranges" not in answer.headers


def test_the_page_has_no_inline_script(client: httpx2.Client) -> None:
    page = client.get("/docs").text
    assert re.findall(r"<script(?! src=\"[^\"]+\"></script>)|<style|\son\w+=|style=", page) == []


def test_the_assets_need_no_other_host(client: httpx2.Client) -> None:
    style = client.get("/docs/assets/swagger-ui.css")
    assert style.headers["content-type"].startswith("text/css")
    assert re.findall(r"@import|url\(['\"]?(?:https?:)?//", style.text) == []
    script = client.get("/docs/assets/swagger-ui-bundle.js")
    assert script.headers["content-type"].split(";")[0] in {"text/javascript", "application/javascript"}
    assert len(script.content) > 100_000


def test_the_root_redirects_browsers_and_gives_clients_the_versions(
    client: httpx2.Client,
) -> None:
    browser = client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert browser.is_redirect
    assert browser.headers["location"].startswith("/")
    assert "Accept" in browser.headers["vary"]
    for accept in ("application/json", "*/*", ""):
        response = client.get("/", headers={"Accept": accept})
        assert response.status_code == 300
        assert response.headers["vary"] == "Accept, User-Agent, X-Domain-Id"
        (version,) = response.json()["versions"]["values"]
        assert version["id"].startswith("v3")


def test_without_swagger_ui_the_page_says_what_to_install(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "swagger_ui_bundle", None)
    _swagger_ui.cache_clear()
    for path in ("/docs", "/docs/assets/swagger-ui.css"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
        assert "install the extra docs" in answer.json()["message"]
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("name", ["index.html", "swagger-ui.js", "..%2Fdocs.html", "docs.html", "nothing"])
def test_no_other_file_of_the_package_is_served(client: httpx2.Client, name: str) -> None:
    assert client.get(f"/docs/assets/{name}").status_code == 404


def test_the_documentation_can_be_turned_off(service_with: Callable[..., Service]) -> None:
    client = service_with(api={"documentation": False}).client
    for path in ("/docs", "/docs/assets/docs.js", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "/docs" not in answer.text
    assert client.get("/", headers={"Accept": "text/html"}).status_code == 300


def document(client: httpx2.Client) -> Any:
    response = client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def test_the_openapi_document_is_serialized_once(
    service_with: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone may request it, and serializing it takes longer than issuing a certificate."""
    client = service_with().client
    first = client.get("/openapi.json")
    monkeypatch.setattr(responses, "json_response", None)
    assert client.get("/openapi.json").content == first.content


def test_the_openapi_document_is_valid(client: httpx2.Client) -> None:
    schemathesis.openapi.from_dict(document(client)).validate()


def test_the_openapi_document_has_every_call_of_the_contract(client: httpx2.Client) -> None:
    paths = document(client)["paths"]
    clusters = "/api/v3/projects/{project_id}/clusters"
    wanted = {
        (clusters, "get"),
        (f"{clusters}/{{cluster_id}}", "get"),
        (f"{clusters}/{{cluster_id}}/openapi", "get"),
        (f"{clusters}/{{cluster_id}}/clustercert", "get"),
        (f"{clusters}/{{cluster_id}}/clustercert", "post"),
        ("/autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert", "post"),
        ("/v3", "get"),
        ("/v3/auth/tokens", "post"),
        ("/v3/auth/tokens", "get"),
        ("/v3/auth/tokens", "head"),
        ("/v3/projects", "get"),
        ("/v3/auth/projects", "get"),
        ("/v3/auth/catalog", "get"),
        ("/v3/auth/domains", "get"),
        ("/v3.0/OS-CREDENTIAL/securitytokens", "post"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
    }
    there = {(path, method) for path, operations in paths.items() for method in operations}
    assert wanted - there == set()


def test_the_openapi_document_says_what_is_asked_and_answered(client: httpx2.Client) -> None:
    described = document(client)
    clustercert = described["paths"]["/api/v3/projects/{project_id}/clusters/{cluster_id}/clustercert"]
    post = clustercert["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    lifetimes = {"duration", "expire_at", "expires_in", "shorten"}
    assert {*lifetimes, "csr", "reason", "access_request", "credential"} == set(body["properties"])
    assert set(post["responses"]) >= {"200", "400", "401", "403", "404", "413", "500", "503"}
    assert set(post["responses"]["200"]["content"]) == {"application/json", "application/yaml"}
    assert clustercert["get"]["deprecated"] is True
    assert "422" not in json.dumps([*described["paths"].values()]), "the framework's own form of an error"
    named = described["components"]["securitySchemes"]
    for requirement in post["security"]:
        assert requirement.keys() <= named.keys()
    names = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


def test_the_openapi_document_describes_every_call_in_whole_sentences(client: httpx2.Client) -> None:
    for path, operations in document(client)["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert not operation["summary"].endswith("."), (method, path)
            assert operation["description"].endswith("."), (method, path)


def test_the_openapi_document_tells_nothing_of_this_installation(client: httpx2.Client, world: World) -> None:
    text = json.dumps(document(client))
    for secret in (
        world.project.id,
        world.people["admin"].token,
        str(world.folder),
        world.clusters["eip"].id,
    ):
        assert secret not in text
