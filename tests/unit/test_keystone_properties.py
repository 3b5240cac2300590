"""Answers with random changes: they give no rights that the unchanged ones don't, and no error but a refusal."""

import asyncio
import copy
import json
from datetime import UTC, datetime
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from clustercert.authn.credentials import BEARER, UnverifiedCredential, is_built_in_token, is_keystone_token
from clustercert.authn.federated import FederatedUser
from clustercert.authn.keystone.client import KeystoneClient
from clustercert.authn.keystone.service import new_keystone
from clustercert.authn.keystone.settings import Keystone
from clustercert.authn.oidc.tokens import is_jwt
from clustercert.http_client import Response
from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.model.errors import CredentialUnverified, Unauthenticated
from support.keystone_double import KeystoneDouble

PROJECT, TEXT = "b" * 32, "gAAAAA-a-token"
DOUBLE = KeystoneDouble()
USER = DOUBLE.add_user("alice", "a" * 32, groups=("team-blue",))
DOUBLE.roles[USER, PROJECT] = ["member"]
BODY = DOUBLE.tokens[DOUBLE.add_token(USER, PROJECT, expires_at="2999-01-01T00:00:00.000000Z")]
GROUPS = {"groups": DOUBLE.groups[USER]}
KEYSTONE = Keystone.model_validate(
    {
        "url": "https://keystone.example.com/v3",
        "domain": "acme",
        "system_roles": {"admin": "operator"},
        "service": {"username": "a", "password": "b"},
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Identity:
    """Keeps the user whom the authenticator found."""

    def __init__(self) -> None:
        self.found: FederatedUser | None = None

    async def caller_of_federated_user(self, user: FederatedUser, origin: Origin) -> Caller:
        self.found = user
        return cast("Caller", None)


class Answering:
    """A connection that gives fixed answers, and a service token that it needs."""

    def __init__(self, token: bytes, groups: bytes) -> None:
        self._token, self._groups = token, groups

    async def current(self) -> str:
        return "own"

    def drop(self, text: str) -> None:
        raise AssertionError(text)

    async def send(self, method: str, path: str, **sent: Any) -> Response:
        content = self._token if path == "/auth/tokens" else self._groups
        return Response(200, {"x-subject-token": TEXT}, content)


def logged_in(token: bytes, groups: bytes = json.dumps(GROUPS).encode()) -> FederatedUser | None:
    """The user to whom these answers lead. Any error but a refusal fails the test."""
    identity, answering = Identity(), cast("Any", Answering(token, groups))
    service = new_keystone(KEYSTONE, identity, lambda: datetime.now(UTC))
    client = KeystoneClient(answering, answering, "keystone")
    object.__setattr__(service.tokens.directory, "client", client)
    sent = UnverifiedRequest("GET", "/", "", (), b"", Origin("192.0.2.1", "0" * 32))
    try:
        asyncio.run(service.tokens.authenticate(UnverifiedCredential(BEARER, TEXT), sent))
    except (Unauthenticated, CredentialUnverified):
        return None
    return identity.found


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, inner in items for each in places(inner, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


def test_the_unchanged_answers_log_in() -> None:
    found = logged_in(json.dumps({"token": BODY}).encode())
    assert found is not None
    assert found.roles == {PROJECT: frozenset({"member"})}
    assert not found.service_roles
    assert [group.name for group in found.groups] == ["keystone/acme/team-blue"]


@given(st.sampled_from(places({"token": BODY})), JSON)
@settings(max_examples=300, deadline=None)
def test_a_changed_member_of_a_token_is_parsed_or_refused(path: tuple[Any, ...], value: object) -> None:
    found = logged_in(json.dumps(replaced({"token": BODY}, path, value)).encode())
    if found is not None:
        assert found.user.id == USER
        assert not found.service_roles
        assert path[:2] == ("token", "project") or set(found.roles) <= {PROJECT}
        assert None not in found.roles
        assert found.user.name.startswith("keystone/")


@given(st.sampled_from(places(GROUPS)), JSON)
@settings(max_examples=200, deadline=None)
def test_a_changed_member_of_the_groups_is_parsed_or_refused(path: tuple[Any, ...], value: object) -> None:
    groups = json.dumps(replaced(GROUPS, path, value)).encode()
    found = logged_in(json.dumps({"token": BODY}).encode(), groups)
    if found is not None:
        assert all(group.name.startswith("keystone/acme/") for group in found.groups)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200, deadline=None)
def test_any_other_answer_logs_nobody_in(content: bytes) -> None:
    assert logged_in(content) is None


@given(st.text(st.characters(codec="ascii"), max_size=300))
def test_exactly_one_authority_takes_a_token(text: str) -> None:
    takers = (is_keystone_token(text), is_built_in_token(text), is_jwt(text) and not is_keystone_token(text))
    assert takers.count(True) == 1
