"""Tokens that a cluster verifies: what is taken from its answer, and how often it is asked."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from clustercert.authn.oidc import token_reviews as module
from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.connection import FetchFailed
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.token_reviews import MAX_WAITING, TokenReview, TokenReviewer
from clustercert.authn.oidc.tokens import UnverifiedToken, parse_token
from clustercert.kubernetes.service_accounts import parse_review
from clustercert.model.errors import CredentialUnverified
from support.issuer_tokens import KUBERNETES, fresh

CLUSTER = "2f6d3bd5-4a3c-4bd1-8d3c-6b1f4f6a2f10"
ISSUER = OidcIssuer.model_validate(
    {
        "name": "cluster-a",
        "preset": "kubernetes",
        "issuer": KUBERNETES["iss"],
        "audiences": ["clustercert"],
        "cluster": CLUSTER,
        "token_review": True,
        "projects": ["1" * 32],
    }
)
USERNAME, UID = KUBERNETES["sub"], "a087d5a0-e1dd-43ec-93ac-f13d89cd13af"
GOOD = TokenReview(True, USERNAME, UID, ("clustercert",))


@dataclass
class Cluster:
    """An API server that gives this answer, once `release` is set."""

    answer: TokenReview | FetchFailed = GOOD
    asked: list[tuple[str, str, frozenset[str]]] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    seconds: float = 0

    def __post_init__(self) -> None:
        self.release.set()
        self.reviewer = TokenReviewer(ISSUER, self, lambda: self.seconds)

    async def fetch_keys(self, cluster_id: str) -> bytes:
        raise AssertionError(cluster_id)

    async def review(self, cluster_id: str, token: str, audiences: frozenset[str]) -> TokenReview:
        self.asked.append((cluster_id, token, audiences))
        await self.release.wait()
        if isinstance(self.answer, FetchFailed):
            raise self.answer
        return self.answer

    async def verified(self, **changed: object) -> Mapping[str, Any]:
        return (await self.reviewer.verified(token(**changed))).claims


def token(**changed: object) -> UnverifiedToken:
    """A token of which nothing but its form is right."""
    header = {"alg": "RS256", "kid": "any"}
    parts = (json.dumps(header), json.dumps(fresh(KUBERNETES, **changed)), "signature")
    return parse_token(
        ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)
    )


async def test_the_cluster_is_asked_with_the_audiences() -> None:
    cluster, one = Cluster(), token()
    await cluster.reviewer.verified(one)
    assert cluster.asked == [(CLUSTER, one.text, frozenset({"clustercert"}))]


async def test_claims_are_those_of_the_answer() -> None:
    extra = {
        "authentication.kubernetes.io/pod-name": ("prometheus-0",),
        "authentication.kubernetes.io/pod-uid": ("778a530c",),
        "authentication.kubernetes.io/node-name": ("node-1",),
    }
    cluster = Cluster(replace(GOOD, audiences=("clustercert", "other"), extra=extra))
    claimed = {"namespace": "kube-system", "serviceaccount": {"name": "admin", "uid": "1"}}
    one = token(**{"kubernetes.io": claimed}, groups=["system:masters"], email="alice@example.com")
    claims = (await cluster.reviewer.verified(one)).claims
    assert claims == {
        **{name: one.claims[name] for name in ("iss", "sub", "exp", "iat", "nbf", "jti")},
        "aud": ["clustercert", "other"],
        "kubernetes.io": {
            "namespace": "monitoring",
            "serviceaccount": {"name": "prometheus", "uid": UID},
            "pod": {"name": "prometheus-0", "uid": "778a530c"},
            "node": {"name": "node-1"},
        },
    }


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        (TokenReview(False, error="[invalid bearer token]"), "token review"),
        (TokenReview(False, USERNAME, UID, ("clustercert",)), "token review"),
        (replace(GOOD, audiences=()), "aud"),
        (replace(GOOD, audiences=("https://kubernetes.default.svc",)), "aud"),
        (replace(GOOD, username="system:serviceaccount:default:prometheus"), "sub"),
        (replace(GOOD, username="alice"), "sub"),
        (replace(GOOD, username=""), "sub"),
        (replace(GOOD, uid=""), "sub"),
    ],
)
async def test_other_answers_refuse_the_token(answer: TokenReview, check: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        await Cluster(answer).verified()
    assert caught.value.check == check


async def test_a_user_of_another_kind_is_no_service_account() -> None:
    with pytest.raises(TokenRefused):
        await Cluster(replace(GOOD, username="alice")).verified(sub="alice")


async def test_concurrent_requests_with_one_token_make_one_call() -> None:
    cluster, one = Cluster(), token()
    cluster.release.clear()
    waiting = [asyncio.create_task(cluster.reviewer.verified(one)) for _ in range(20)]
    other = asyncio.create_task(cluster.verified(jti="another"))
    await asyncio.sleep(0)
    waiting.pop().cancel()
    cluster.release.set()
    assert len({json.dumps(each.claims) for each in await asyncio.gather(*waiting)}) == 1
    await other
    assert len(cluster.asked) == 2


async def test_a_refusal_is_remembered_for_five_seconds() -> None:
    cluster, one = Cluster(TokenReview(False, error="expired")), token()
    for seconds, asked in ((0, 1), (4.9, 1), (5.1, 2)):
        cluster.seconds = seconds
        with pytest.raises(TokenRefused) as caught:
            await cluster.reviewer.verified(one)
        assert caught.value.came == "'expired'"
        assert len(cluster.asked) == asked


async def test_many_refused_tokens_use_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REFUSED", 3)
    cluster = Cluster(TokenReview(False))
    for number in range(10):
        with pytest.raises(TokenRefused):
            await cluster.verified(jti=str(number))
    assert len(cluster.reviewer._refused) == 3


async def test_a_cluster_that_is_away_is_left_alone_for_five_seconds() -> None:
    cluster = Cluster(FetchFailed("it can't be reached"))
    for seconds, asked in ((0, 1), (4.9, 1), (5.1, 2)):
        cluster.seconds = seconds
        with pytest.raises(CredentialUnverified) as caught:
            await cluster.verified()
        assert (caught.value.status, caught.value.retry_after, len(cluster.asked)) == (503, 5, asked)
        assert "can't be reached" not in caught.value.message
        assert str(caught.value.__cause__) == "cluster-a: it can't be reached"
    cluster.answer, cluster.seconds = GOOD, 11
    assert (await cluster.verified())["sub"] == USERNAME


async def test_a_cluster_that_hangs_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REVIEW_SECONDS", 0.01)
    cluster = Cluster()
    cluster.release.clear()
    with pytest.raises(CredentialUnverified):
        await cluster.verified()


async def test_a_cluster_that_hangs_holds_few_requests() -> None:
    cluster = Cluster()
    cluster.release.clear()
    waiting = [asyncio.create_task(cluster.verified(jti=str(number))) for number in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(CredentialUnverified, match="slowly"):
        await cluster.verified(jti="one more")
    cluster.release.set()
    await asyncio.gather(*waiting)
    assert len(cluster.asked) == MAX_WAITING


ANSWER: dict[str, Any] = {
    "kind": "TokenReview",
    "apiVersion": "authentication.k8s.io/v1",
    "status": {
        "authenticated": True,
        "user": {"username": USERNAME, "uid": UID, "groups": ["system:serviceaccounts"]},
        "audiences": ["clustercert"],
    },
}


def answer(**status: object) -> dict[str, Any]:
    return ANSWER | {"status": ANSWER["status"] | status}


def test_the_answer_of_an_api_server_is_parsed() -> None:
    extra = {"authentication.kubernetes.io/pod-name": ["prometheus-0"]}
    user = ANSWER["status"]["user"] | {"extra": extra}
    found = parse_review(answer(user=user, aFieldOfLaterReleases={}))
    assert found == replace(GOOD, extra={name: tuple(values) for name, values in extra.items()})


@pytest.mark.parametrize("authenticated", [None, False, "true", 1, "yes", {}])
def test_only_true_is_authenticated(authenticated: object) -> None:
    assert not parse_review(answer(authenticated=authenticated)).authenticated


@pytest.mark.parametrize(
    "malformed",
    [
        {},
        {"kind": "TokenReview"},
        {"kind": "TokenReview", "status": None},
        {"kind": "TokenReview", "status": []},
        answer(user="alice"),
        answer(user=None),
        answer() | {"kind": "SubjectAccessReview"},
    ],
)
def test_a_malformed_answer_is_no_answer(malformed: dict[str, Any]) -> None:
    with pytest.raises(FetchFailed, match="unexpected response"):
        parse_review(malformed)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"audiences": "clustercert"}, {"audiences": ()}),
        ({"audiences": ["x" * 2000, 7, None]}, {"audiences": ()}),
        ({"user": {"username": 7, "uid": UID}}, {"username": ""}),
        ({"user": {"username": USERNAME}}, {"uid": ""}),
        ({"user": {"username": USERNAME, "uid": UID, "extra": {"a": "text"}}}, {"extra": {"a": ()}}),
    ],
)
def test_fields_of_other_types_are_empty(changed: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parse_review(answer(**changed)) == replace(GOOD, **expected)
