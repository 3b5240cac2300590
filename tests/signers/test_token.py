"""The signer whose credentials are tokens of service accounts, at the double of kube-apiserver."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clustercert.issuance.signers import credential_accounts
from clustercert.issuance.signers.account_tokens import parse_token, read_claims
from clustercert.issuance.signers.credential_accounts import CredentialAccounts
from clustercert.issuance.signers.token import LimitedTokenSigner, TokenSettings, TokenSigner, token_signer
from clustercert.kube_api import KubeApi
from clustercert.model import SigningRequest
from clustercert.model.errors import InvalidRequest, NotFound, RemoteFailed, SignerError, Unavailable
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, ISSUER_USER, USERS_NAMESPACE
from clustercert.pki.crl import CrlContent
from clustercert.pki.signer import SignerContext, TokenIssuer, TokenOrder, token_issuer
from support.apiserver import ApiServer, kinds
from support.apiserver.failures import Failure
from support.apiserver.storage import Document
from support.ring_sealer import RingSealer
from support.samples import CA_KEY, NOW, USER_ID, grant
from support.signing_cluster import MemoryClusters
from support.token_site import (
    TokenSite,
    accounts_in,
    bindings_in,
    ca_request,
    first_token,
    registration_of,
    status_of,
    token_site,
)

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
START = NOW.replace(microsecond=0)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[TokenSite]:
    with ApiServer(tmp_path) as double:
        made = await token_site(double)
        yield made
        await made.signer.close()


# Creating


async def test_a_credential_is_an_account_with_a_token_and_bindings(site: TokenSite) -> None:
    order = site.order()
    token = await site.signer.issue_token(order)
    account = site.double.storage.get(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE, token.account)
    labels = {
        "app.kubernetes.io/managed-by": "clustercert",
        "clustercert/installation": "0" * 32,
        "clustercert/credential": order.number,
    }
    assert token.account == f"anna-blume-{order.number}"
    assert account["metadata"]["labels"] == labels
    assert account["metadata"]["annotations"]["clustercert/user-id"] == USER_ID
    bound = [
        (each["kind"], each["metadata"]["name"], each["metadata"].get("namespace"), each["roleRef"]["name"])
        for each in bindings_in(site.double)
    ]
    assert bound == [
        ("ClusterRoleBinding", f"clustercert-{order.number}-1", None, "view"),
        ("RoleBinding", f"clustercert-{order.number}-0", "blue", "edit"),
        ("RoleBinding", f"clustercert-{order.number}-2", "blue", "pods"),
    ]
    subject = {"kind": "ServiceAccount", "name": token.account, "namespace": USERS_NAMESPACE}
    assert all(each["subjects"] == [subject] for each in bindings_in(site.double))
    assert all(each["metadata"]["labels"] == labels for each in bindings_in(site.double))
    assert site.double.storage.all(kinds.SECRETS) == []
    assert token.expires_at == order.not_after
    assert read_claims(token.text)["jti"] == token.jti
    assert token.text not in repr(token)
    assert await status_of(site.double, token.text) == 200


async def test_the_bindings_come_after_the_token(site: TokenSite) -> None:
    before = len(site.double.seen)
    await site.signer.issue_token(site.order())
    calls = [(each.method, each.path.rpartition("/")[2]) for each in site.double.seen[before:]]
    assert calls == [
        ("GET", "serviceaccounts"),
        ("POST", "serviceaccounts"),
        ("POST", "token"),
        ("POST", "rolebindings"),
        ("POST", "clusterrolebindings"),
        ("POST", "rolebindings"),
    ]


async def test_a_short_grant_gets_the_shortest_token(site: TokenSite) -> None:
    token = await site.signer.issue_token(site.order(5 * MINUTE))
    assert token.expires_at == START + 10 * MINUTE


async def test_a_lifetime_that_the_cluster_shortens_is_the_lifetime(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_claims(monkeypatch, site.double, lambda claims: {**claims, "exp": claims["iat"] + 1200})
    token = await site.signer.issue_token(site.order())
    assert token.expires_at == START + 20 * MINUTE


def change_claims(monkeypatch: pytest.MonkeyPatch, double: ApiServer, change: Callable[[Any], Any]) -> None:
    """Let the API server sign other claims than the requested ones."""
    requested = double.tokens.requested

    def changed(*arguments: Any) -> Document:
        answer = requested(*arguments)
        header, _, signature = answer["status"]["token"].split(".")
        claims = json.dumps(change(dict(read_claims(answer["status"]["token"])))).encode()
        text = f"{header}.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.{signature}"
        return {**answer, "status": {**answer["status"], "token": text}}

    monkeypatch.setattr(double.tokens, "requested", changed)


def other(**changes: Any) -> Callable[[Any], Any]:
    return lambda claims: {**claims, **changes}


def in_kubernetes(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda claims: {**claims, "kubernetes.io": change(claims["kubernetes.io"])}


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the service's own account": (other(sub=ISSUER_USER), "claim sub"),
    "no subject": (lambda claims: {key: claims[key] for key in claims if key != "sub"}, "no valid token"),
    "another namespace": (in_kubernetes(other(namespace="kube-system")), "claim namespace"),
    "another account": (
        in_kubernetes(lambda own: {**own, "serviceaccount": {**own["serviceaccount"], "name": "other"}}),
        "claim serviceaccount",
    ),
    "another uid": (
        in_kubernetes(lambda own: {**own, "serviceaccount": {**own["serviceaccount"], "uid": "other"}}),
        "claim serviceaccount",
    ),
    "no jti": (lambda claims: {key: claims[key] for key in claims if key != "jti"}, "no valid token"),
    "a jti that is not a UUID": (other(jti="7"), "no valid token"),
    "a jti in another form": (other(jti="{5c1d7a7e-3b0c-4f0e-8d8e-0f0f0f0f0f0f}"), "claim jti"),
    "a longer life": (
        lambda claims: {**claims, "exp": claims["exp"] + 60},
        "does not have the requested lifetime",
    ),
    "a token of the past": (
        lambda claims: {**claims, "exp": claims["iat"] - 1},
        "does not have the requested lifetime",
    ),
    "a time that is not a number": (other(exp="tomorrow"), "no valid token"),
    "a time without end": (other(exp=10**30), "no valid token"),
    "another clock": (
        lambda claims: {**claims, "iat": claims["iat"] + 400, "exp": claims["exp"] + 400},
        "more than 5 minutes",
    ),
    "no audience": (other(aud=[]), "claim aud"),
    "no issuer": (other(iss=""), "claim iss"),
    "a list": (lambda _claims: [], "no valid token"),
    "a deep list": (in_kubernetes(lambda _own: []), "no valid token"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_token_that_was_not_requested_is_refused_and_undone(
    site: TokenSite, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = LIES[lie]
    change_claims(monkeypatch, site.double, change)
    with pytest.raises(RemoteFailed, match=message) as failed:
        await site.signer.issue_token(site.order())
    assert "eyJ" not in failed.value.message
    assert await site.left() == []
    assert not any(each.path.endswith("bindings") for each in site.double.seen)


@pytest.mark.parametrize(
    "status", [None, [], {}, {"token": None}, {"token": "x" * 20_000}, {"token": "a.b.c"}]
)
async def test_an_answer_without_a_token_is_refused_and_undone(
    site: TokenSite, status: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.double.tokens, "requested", lambda *_: {"status": status})
    with pytest.raises(RemoteFailed, match="no valid token"):
        await site.signer.issue_token(site.order())
    assert await site.left() == []


async def test_a_huge_answer_is_not_read(site: TokenSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.double.tokens, "requested", lambda *_: {"status": {"token": "x" * 200_000}})
    with pytest.raises(RemoteFailed, match="does not read"):
        await site.signer.issue_token(site.order())
    assert await site.left() == []


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (kinds.SERVICE_ACCOUNTS, {"metadata": {"labels": {}}}, "metadata.labels"),
        (kinds.SERVICE_ACCOUNTS, {"metadata": {"uid": ""}}, "metadata.uid"),
        (kinds.SERVICE_ACCOUNTS, {"metadata": {"name": "other"}}, "metadata.name"),
        (kinds.ROLE_BINDINGS, {"roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}}, "roleRef"),
        (kinds.ROLE_BINDINGS, {"subjects": []}, "subjects"),
    ],
)
async def test_an_object_that_the_cluster_changes_is_undone(
    site: TokenSite, kind: kinds.Kind, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = site.double.storage.create

    def changed(of: kinds.Kind, *arguments: Any, **more: Any) -> Document:
        made = create(of, *arguments, **more)
        if of is not kind:
            return made
        return {**made, **change, "metadata": {**made["metadata"], **change.get("metadata", {})}}

    monkeypatch.setattr(site.double.storage, "create", changed)
    with pytest.raises(RemoteFailed, match=rf"\({message}\). No credential was issued"):
        await site.signer.issue_token(site.order())
    assert await site.left() == []


async def test_what_a_repeated_request_finds_is_its_own(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = site.double.storage.create

    def repeated(*arguments: Any, **more: Any) -> Document:
        create(*arguments, **more)
        return create(*arguments, **more)

    monkeypatch.setattr(site.double.storage, "create", repeated)
    token = await site.signer.issue_token(site.order())
    assert await status_of(site.double, token.text) == 200
    assert len(bindings_in(site.double)) == 3


async def test_an_account_of_somebody_else_is_neither_used_nor_deleted(site: TokenSite) -> None:
    order = site.order()
    name = f"anna-blume-{order.number}"
    site.double.add_service_account(USERS_NAMESPACE, name)
    with pytest.raises(RemoteFailed, match=r"\(metadata.labels\)"):
        await site.signer.issue_token(order)
    assert await site.left() == [name]


async def test_a_role_that_can_not_be_bound_undoes_the_credential(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = site.double.storage.create

    def forbidden(of: kinds.Kind, namespace: str, document: Document, **more: Any) -> Document:
        if document.get("roleRef", {}).get("name") == "pods":
            raise Failure(403, "Forbidden", "is attempting to grant permissions not currently held")
        return create(of, namespace, document, **more)

    monkeypatch.setattr(site.double.storage, "create", forbidden)
    with pytest.raises(RemoteFailed, match=r"lacks a right.*kubernetes verify"):
        await site.signer.issue_token(site.order())
    assert await site.left() == []
    deleted = [each.path.rpartition("/")[2] for each in site.double.seen if each.method == "DELETE"]
    assert deleted[0].endswith("-2")
    assert deleted[-1].startswith("anna-blume-")


async def test_a_namespace_that_was_deleted_is_explained(site: TokenSite) -> None:
    site.double.storage.delete(kinds.NAMESPACES, "", "blue")
    with pytest.raises(RemoteFailed, match=r"lacks a right.*kubernetes verify"):
        await site.signer.issue_token(site.order())
    assert await site.left() == []


async def test_a_cancelled_request_is_undone(site: TokenSite, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = site.double.tokens.requested
    loop, reached = asyncio.get_running_loop(), asyncio.Event()

    def slow(*arguments: Any) -> Document:
        answer = requested(*arguments)
        loop.call_soon_threadsafe(reached.set)
        return answer

    monkeypatch.setattr(site.double.tokens, "requested", slow)
    task = asyncio.create_task(site.signer.issue_token(site.order()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await site.left() == []


@pytest.mark.parametrize(
    ("step", "left"), [("token", 1), ("rolebindings", 1), ("clusterrolebindings", 2), (None, 4)]
)
async def test_what_a_killed_process_leaves_can_be_ended(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch, step: str | None, left: int
) -> None:
    order = site.order()

    async def killed(api: KubeApi, path: str, *arguments: Any, **more: Any) -> Any:
        if step is not None and path.endswith(f"/{step}"):
            raise RuntimeError("killed")
        return await create(api, path, *arguments, **more)

    create = KubeApi.create
    monkeypatch.setattr(KubeApi, "create", killed)
    monkeypatch.setattr(CredentialAccounts, "_undo_later", lambda *_: None)
    if step is None:
        await site.signer.issue_token(order)
    else:
        with pytest.raises(RuntimeError, match="killed"):
            await site.signer.issue_token(order)
    assert len(await site.left()) == left
    await site.signer.end_token(site.cluster, order.number)
    assert await site.left() == []


async def test_a_problem_stops_issuing_but_not_ending(site: TokenSite) -> None:
    order = site.order()
    await site.signer.issue_token(order)
    site.clusters.problem = "The admission policy clustercert-token-bindings does not deny."
    with pytest.raises(Unavailable, match=r"does not deny\. .*kubernetes verify") as refused:
        await site.signer.issue_token(site.order())
    assert refused.value.retry_after == 60
    await site.signer.end_token(site.cluster, order.number)
    assert await site.left() == []


async def test_a_full_cluster_gets_no_further_credentials(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_accounts, "MAX_ACCOUNTS", 3)
    orders = [site.order() for _ in range(3)]
    for order in orders:
        await site.signer.issue_token(order)
    with pytest.raises(Unavailable, match="at most 3 are allowed"):
        await site.signer.issue_token(site.order())
    lists = [each for each in site.double.seen if each.method == "GET" and each.path.endswith("accounts")]
    assert len(lists) == 1
    # Another process counts what is there.
    for connection in site.signer._connections:
        connection.tasks._counted_until = 0
    with pytest.raises(Unavailable, match="has 3 service accounts"):
        await site.signer.issue_token(site.order())
    await site.signer.end_token(site.cluster, orders[0].number)
    for connection in site.signer._connections:
        connection.tasks._counted_until = 0
    await site.signer.issue_token(site.order())


# Ending


async def test_ending_deletes_one_credential(site: TokenSite) -> None:
    kept, ended = site.order(), site.order()
    tokens = [await site.signer.issue_token(each) for each in (kept, ended)]
    before = len(site.double.seen)
    for _ in range(2):
        await site.signer.end_token(site.cluster, ended.number)
    assert accounts_in(site.double) == [tokens[0].account]
    assert {each["subjects"][0]["name"] for each in bindings_in(site.double)} == {tokens[0].account}
    deleted = [each.path for each in site.double.seen[before:] if each.method == "DELETE"]
    assert len(deleted) == 4
    assert deleted[-1].endswith(tokens[1].account)
    assert await status_of(site.double, tokens[0].text) == 200


async def test_ending_deletes_only_objects_with_the_names_of_the_credential(site: TokenSite) -> None:
    order = site.order()
    token = await site.signer.issue_token(order)
    own = site.double.storage.get(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE, token.account)
    labels = own["metadata"]["labels"]
    site.double.storage.create(
        kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE, {"metadata": {"name": "another", "labels": labels}}
    )
    await site.signer.end_token(site.cluster, order.number)
    assert await site.left() == ["another"]


async def test_bindings_are_found_behind_many_others_with_the_same_labels(site: TokenSite) -> None:
    order = site.order()
    await site.signer.issue_token(order)
    own = next(each for each in bindings_in(site.double) if each["kind"] == "RoleBinding")
    for index in range(60):
        copy = {**own, "metadata": {"name": f"a-{index}", "labels": own["metadata"]["labels"]}}
        site.double.storage.create(kinds.ROLE_BINDINGS, "blue", copy)
    await site.signer.end_token(site.cluster, order.number)
    assert not [each for each in bindings_in(site.double) if order.number in each["metadata"]["name"]]


async def test_the_account_ends_also_if_a_binding_can_not_be_deleted(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = site.order()
    token = await site.signer.issue_token(order)
    delete = site.double.storage.delete

    def forbidden(of: kinds.Kind, *arguments: Any, **more: Any) -> Document:
        if of is kinds.ROLE_BINDINGS:
            raise Failure(403, "Forbidden", "no")
        return delete(of, *arguments, **more)

    monkeypatch.setattr(site.double.storage, "delete", forbidden)
    with pytest.raises(RemoteFailed, match="lacks a right"):
        await site.signer.end_token(site.cluster, order.number)
    assert accounts_in(site.double) == []
    assert [each["kind"] for each in bindings_in(site.double)] == ["RoleBinding", "RoleBinding"]
    assert token.account not in await site.left()


async def test_ending_does_not_wait_for_issuing(site: TokenSite, monkeypatch: pytest.MonkeyPatch) -> None:
    order = site.order()
    await site.signer.issue_token(order)
    limits = TokenSettings(concurrency=1, queue=1)
    limited = LimitedTokenSigner(site.signer, limits)
    released = asyncio.Event()

    async def hangs(_signer: TokenSigner, _order: TokenOrder) -> Any:
        await released.wait()
        raise Unavailable("late")

    monkeypatch.setattr(TokenSigner, "issue_token", hangs)
    waiting = [asyncio.create_task(limited.issue_token(site.order())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="waiting for the signer token"):
        await limited.issue_token(site.order())
    await limited.end_token(site.cluster, order.number)
    assert await site.left() == []
    assert await limited.call(site.ca, lambda api: api.get("/version"))
    released.set()
    await asyncio.gather(*waiting, return_exceptions=True)


# The service's own account


async def test_the_first_token_is_exchanged_at_once(site: TokenSite) -> None:
    token = parse_token(site.token.encode())
    assert token.expires_at - token.issued_at == 10 * HOUR
    assert (site.ca.certificate, site.ca.key_reference) == (None, ISSUER_USER)
    assert site.token not in repr(site.ca) + repr(token) + repr(site.signer)
    [(looked_at, installation)] = site.looks.made
    assert (looked_at.internal_url, installation) == (site.double.url, "0" * 32)


async def test_a_token_of_another_account_is_refused(site: TokenSite) -> None:
    site.double.add_service_account("default", "deployer")
    with pytest.raises(InvalidRequest, match=f"signer_token: this is not a token of {ISSUER_USER}"):
        await site.signer.create_ca(ca_request(site.double, first_token(site.double, "default", "deployer")))
    with pytest.raises(InvalidRequest, match="signer_token: "):
        await site.signer.create_ca(ca_request(site.double, b"password"))
    late = first_token(site.double)
    site.at(START + 2 * HOUR)
    with pytest.raises(InvalidRequest, match="signer_token: the token has expired"):
        await site.signer.create_ca(ca_request(site.double, late))


async def test_a_first_token_is_not_exchanged_for_an_expired_one(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = first_token(site.double)
    change_claims(monkeypatch, site.double, other(exp=int(START.timestamp())))
    with pytest.raises(RemoteFailed, match="token that has already expired"):
        await site.signer.create_ca(ca_request(site.double, first))
    with pytest.raises(RemoteFailed, match="token that has already expired"):
        await site.signer.accept_secret(site.ca, registration_of(site.double), first)


async def test_a_token_is_needed(site: TokenSite) -> None:
    with pytest.raises(InvalidRequest, match="signer_token: the signer token needs a token"):
        await site.signer.create_ca(ca_request(site.double, None))


async def test_a_cluster_with_a_problem_is_refused(site: TokenSite) -> None:
    site.looks.problem = "Kubernetes v1.29.1 is older than 1.30."
    with pytest.raises(InvalidRequest, match=r"^signer: Kubernetes v1.29.1 is older"):
        await site.signer.create_ca(ca_request(site.double, first_token(site.double)))
    with pytest.raises(InvalidRequest, match=r"^signer: "):
        await site.signer.accept_secret(site.ca, registration_of(site.double), first_token(site.double))
    blind = replace(site.signer, look=None)
    with pytest.raises(SignerError, match="can't check clusters"):
        await blind.create_ca(ca_request(site.double, first_token(site.double)))


async def test_a_new_token_replaces_the_stored_one(site: TokenSite) -> None:
    before = site.token
    sealed = await site.signer.accept_secret(site.ca, registration_of(site.double), first_token(site.double))
    site.clusters.sealed[site.ca.id] = sealed
    assert site.token != before
    await site.signer.issue_token(site.order())


async def test_custody_tells_what_the_cluster_says(site: TokenSite) -> None:
    custody = await site.signer.custody(site.ca)
    assert "only a token of its own account" in custody.location
    assert custody.proof == {
        "account": ISSUER_USER,
        "token_expires_at": "2026-03-15T01:09:26Z",
        "problem": "none",
    }
    site.clusters.problem = "no policy"
    assert (await site.signer.custody(site.ca)).proof["problem"] == "no policy"
    site.double.storage.delete(kinds.SERVICE_ACCOUNTS, ACCESS_NAMESPACE, ISSUER_ACCOUNT)
    # The API server may remember an accepted token for 10 seconds.
    site.at(START + MINUTE)
    with pytest.raises(RemoteFailed, match=r"does not accept the service's token.*--signer-token-file"):
        await site.signer.custody(site.ca)


async def test_a_token_is_renewed_after_half_of_its_lifetime(site: TokenSite) -> None:
    first = site.token
    site.at(START + 4 * HOUR)
    await site.signer.maintain(site.ca)
    assert site.token == first
    site.at(START + 6 * HOUR)
    await site.signer.maintain(site.ca)
    assert parse_token(site.token.encode()).expires_at == START + 16 * HOUR


@pytest.mark.parametrize("expiry", [10**18, int((START + 6 * HOUR).timestamp())])
async def test_a_renewed_token_with_an_impossible_or_past_expiry_is_not_used(
    site: TokenSite, monkeypatch: pytest.MonkeyPatch, expiry: int
) -> None:
    first = site.token
    change_claims(monkeypatch, site.double, other(exp=expiry))
    site.at(START + 6 * HOUR)
    await site.signer.maintain(site.ca)
    assert site.token == first


async def test_of_two_workers_that_renew_a_token_one_stores_it(site: TokenSite) -> None:
    other_worker = replace(site.signer)
    site.at(START + 6 * HOUR)
    await asyncio.gather(site.signer.issue_token(site.order()), other_worker.issue_token(site.order()))
    assert site.clusters.exchanges == 1
    for signer in (site.signer, other_worker):
        await signer.issue_token(site.order())
    assert site.clusters.exchanges == 1
    await other_worker.close()


async def test_deleting_the_key_deletes_nothing_in_the_cluster(site: TokenSite) -> None:
    token = await site.signer.issue_token(site.order())
    for _ in range(2):
        said = await site.signer.delete_key(site.ca)
        assert "clustercert kubernetes remove" in said
        assert said.endswith(".")
    assert await status_of(site.double, token.text) == 200
    with pytest.raises(SignerError):
        await site.signer.issue_token(replace(site.order(), cluster=deleted(site)))


def deleted(site: TokenSite) -> Any:
    return replace(site.cluster, client_ca=replace(site.ca, sealed_key=None))


async def test_an_outage_is_temporary(site: TokenSite) -> None:
    site.double.url = "https://127.0.0.1:1"
    with pytest.raises(Unavailable) as failure:
        await site.signer.issue_token(site.order())
    assert failure.value.retry_after


async def test_there_are_no_certificates_and_no_crl(site: TokenSite) -> None:
    request = SigningRequest(grant(), CA_KEY.public_key(), site.ca)
    with pytest.raises(SignerError, match="no certificates"):
        await site.signer.sign(request)
    content = CrlContent([], 1, this_update=START, next_update=START + HOUR)
    with pytest.raises(NotFound, match="no CRL"):
        await site.signer.sign_crl(site.ca, content)
    assert (site.signer.profile, site.signer.takes_serial) == ("token", False)


# Settings


def test_the_signer_needs_no_settings_and_issues_tokens() -> None:
    signer = token_signer(SignerContext({}, RingSealer(), MemoryClusters(None)))  # type: ignore[arg-type] # not used
    assert isinstance(token_issuer(signer), TokenIssuer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"token_lifetime": "30m"}, "token_lifetime"), ({"timeout": 60}, "timeout"), ({"url": "x"}, "url")],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_signer(SignerContext(settings, RingSealer(), MemoryClusters(None)))  # type: ignore[arg-type] # not used
