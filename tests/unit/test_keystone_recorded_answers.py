"""The answers that a real Keystone gave, and what the authenticators make of them."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from clustercert.authn.credentials import BEARER, UnverifiedCredential
from clustercert.authn.federated import FederatedUser
from clustercert.authn.keystone.service import KeystoneService, new_keystone
from clustercert.authn.keystone.settings import Keystone
from clustercert.http_client import Response
from clustercert.model import Caller, Origin, UnverifiedRequest
from clustercert.model.errors import CredentialUnverified, Unauthenticated
from support.keystone_double import KeystoneDouble, Request
from support.real_keystone.answers import recorded

if TYPE_CHECKING:
    from clustercert.authn.keystone.connection import KeystoneConnection

ORIGIN = Origin("192.0.2.1", "0" * 32)
SETTINGS = {
    "url": "https://keystone.example:5000/v3",
    "domain": "cloud",
    "system_roles": {"reader": "auditor"},
    "service": {"username": "clustercert", "password": "x"},
}
PROJECT = recorded("project")["body"]["project"]["id"]
ALICE = recorded("user")["body"]["user"]["id"]
ANSWERS = {
    "groups": "groups",
    f"/users/{ALICE}": "user",
    "/projects/": "project",
    "/domains/": "domain",
    "/role_assignments": "role_assignments",
}


class Recorded:
    """A connection that gives recorded answers: one about the credential, and those about its user."""

    def __init__(self, about: str, **others: str) -> None:
        self._about = about
        self._answers = ANSWERS | others

    async def send(self, method: str, path: str, *, headers: dict[str, str], **_: object) -> Response:
        if method == "POST":
            return self._response("login_project", "own")
        subject = headers.get("X-Subject-Token", "")
        if path.startswith(("/auth/tokens", "/credentials/")):
            return self._response(self._about, subject)
        if path.endswith("/groups"):
            return self._response(self._answers["groups"], subject)
        return next(
            self._response(name, subject) for start, name in self._answers.items() if path.startswith(start)
        )

    @staticmethod
    def _response(name: str, subject: str) -> Response:
        answer = recorded(name)
        headers = {**answer["headers"], "x-subject-token": subject}
        return Response(answer["status"], headers, json.dumps(answer["body"]).encode())


class Identity:
    """Keeps the user whom the authenticator found."""

    found: FederatedUser

    async def caller_of_federated_user(self, user: FederatedUser, origin: Origin) -> Caller:
        self.found = user
        return cast("Caller", None)


def keystone(about: str, **others: str) -> tuple[KeystoneService, Identity]:
    identity, answers = Identity(), Recorded(about, **others)
    configured = Keystone.model_validate(SETTINGS)
    # The recorded tokens are valid at this time.
    issued = recorded("token_project")["body"]["token"]["issued_at"]
    service = new_keystone(configured, identity, lambda: datetime.fromisoformat(issued).astimezone(UTC))
    connection = cast("KeystoneConnection", answers)
    service.service_token._connection = connection
    service.tokens.directory.client._connection = connection
    return service, identity


def user_of_token(about: str) -> FederatedUser:
    service, identity = keystone(about)
    sent = UnverifiedRequest("GET", "/", "", (), b"", ORIGIN)
    asyncio.run(service.tokens.authenticate(UnverifiedCredential(BEARER, "gAAAAA-x"), sent))
    return identity.found


@pytest.mark.parametrize(
    ("about", "roles", "service_roles", "method"),
    [
        ("token_project", {PROJECT: {"member", "reader"}}, set(), "keystone"),
        ("token_rescoped", {PROJECT: {"member", "reader"}}, set(), "keystone"),
        ("token_application_credential", {PROJECT: {"member", "reader"}}, set(), "keystone_app"),
        ("token_domain", {}, set(), "keystone"),
        ("token_unscoped", {}, set(), "keystone"),
        ("token_system", {}, {"auditor"}, "keystone"),
    ],
)
def test_a_token_gives_the_roles_of_its_scope(
    about: str, roles: dict[str, set[str]], service_roles: set[str], method: str
) -> None:
    user = user_of_token(about)
    assert {project: set(names) for project, names in user.roles.items()} == roles
    assert (set(user.service_roles), user.method) == (service_roles, method)
    assert [group.name for group in user.groups] == ["keystone/acme/team-blue"]


@pytest.mark.parametrize(
    ("about", "error"),
    [
        ("token_trust", Unauthenticated),
        ("token_unknown", Unauthenticated),
        ("token_revoked", Unauthenticated),
        ("token_of_disabled_user", Unauthenticated),
        ("token_bad_service", CredentialUnverified),
        ("token_service_without_rights", CredentialUnverified),
    ],
)
def test_other_answers_about_a_token_are_refusals(about: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        user_of_token(about)


def user_of_key(about: str, **others: str) -> FederatedUser | None:
    """The user of the recorded access key; None if it can't sign."""
    blob = json.loads(recorded(about)["body"].get("credential", {"blob": '{"access": "a"}'})["blob"])
    service, identity = keystone(about, **others)
    assert service.access_keys is not None

    async def ask() -> FederatedUser | None:
        assert service.access_keys is not None
        key = await service.access_keys.signing_key(blob["access"])
        if key is None:
            return None
        assert key.secret.decode() == blob["secret"]
        await service.access_keys.caller_of_access_key(key, ORIGIN)
        return identity.found

    return asyncio.run(ask())


def test_an_access_key_has_its_users_effective_roles() -> None:
    user = user_of_key("credential_ec2")
    assert user is not None
    assert user.user.id == ALICE
    assert {project: set(names) for project, names in user.roles.items()} == {PROJECT: {"member", "reader"}}
    assert [group.name for group in user.groups] == ["keystone/acme/team-blue"]


@pytest.mark.parametrize(
    "about",
    [
        "credential_missing",
        "credential_ec2_trust_id",
        "credential_ec2_app_cred_id",
        "credential_ec2_access_token_id",
    ],
)
def test_other_credentials_cannot_sign(about: str) -> None:
    assert user_of_key(about) is None


@pytest.mark.parametrize("about", ["credential_forbidden", "credential_by_delegated_token"])
def test_a_service_without_the_right_to_read_credentials_is_an_outage(about: str) -> None:
    with pytest.raises(CredentialUnverified):
        user_of_key(about)


@pytest.mark.parametrize(
    ("others", "error"),
    [
        ({f"/users/{ALICE}": "user_disabled"}, Unauthenticated),
        ({f"/users/{ALICE}": "user_missing"}, Unauthenticated),
        ({f"/users/{ALICE}": "user_forbidden"}, CredentialUnverified),
    ],
)
def test_a_key_of_a_user_who_is_gone_is_refused(others: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        user_of_key("credential_ec2", **others)


@pytest.mark.parametrize("answer", ["role_assignments_none", "role_assignments_missing_user"])
def test_a_user_without_roles_has_none(answer: str) -> None:
    user = user_of_key("credential_ec2", **{"/role_assignments": answer})
    assert user is not None
    assert user.roles == {PROJECT: frozenset()}


def members(value: object, path: str = "") -> set[str]:
    if isinstance(value, dict):
        found = {f"{path}.{name}" for name in value}
        return found.union(*(members(inner, f"{path}.{name}") for name, inner in value.items()))
    return set().union(*(members(inner, path) for inner in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("token_project", "auth/tokens"),
        ("user", f"users/{ALICE}"),
        ("groups", f"users/{ALICE}/groups"),
        ("project", f"projects/{PROJECT}"),
        ("domain", "domains/3a8616d857504b0fac16ba47dc5327ea"),
        ("role_assignments", "role_assignments"),
        ("credential_ec2", "credentials/"),
        ("credential_missing", "credentials/x"),
    ],
)
def test_the_double_answers_with_members_of_a_real_answer(name: str, path: str) -> None:
    double = KeystoneDouble()
    double.add_project(PROJECT)
    double.add_user("alice", ALICE, groups=("team-blue",))
    double.roles[ALICE, PROJECT] = ["member"]
    token = double.add_token(ALICE, PROJECT)
    access, _ = double.add_credential(ALICE, PROJECT)
    if path == "credentials/":
        path += hashlib.sha256(access.encode()).hexdigest()
    query = {"effective": [""], "user.id": [ALICE], "scope.project.id": [PROJECT]}
    answer = double.known(Request("GET", f"/v3/{path}", query, {"x-subject-token": token}, None))
    real = recorded(name)
    assert answer.status == real["status"]
    sent: Any = json.loads(answer.content)
    assert members(sent) <= members(real["body"])
