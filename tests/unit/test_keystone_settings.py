"""Settings of Keystone: what is refused at the start of the service, and how the service logs in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clustercert.authn.credentials import is_built_in_access_key, is_built_in_token, is_keystone_token
from clustercert.authn.identity_settings import IdentitySettings
from clustercert.authn.keystone.settings import Keystone, UnreadableSecret

USER = {"username": "clustercert", "password": "s3cret"}
APPLICATION = {"application_credential_id": "a" * 32, "application_credential_secret": "s3cret"}
MINIMAL: Mapping[str, object] = {
    "url": "https://keystone.example.com/v3",
    "domain": "acme",
    "service": USER,
}


def settings(**changed: object) -> Keystone:
    return Keystone.model_validate(dict(MINIMAL) | changed)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"url": "http://keystone.example.com/v3"}, "use https"),
        ({"url": "http://127.0.0.1.example.com/v3"}, "use https"),
        ({"url": "ftp://127.0.0.1/v3"}, "use https"),
        ({"url": "https://keystone.example.com"}, "expected a URL"),
        ({"url": "https://keystone.example.com/v3/"}, "expected a URL"),
        ({"url": "https://user:password@keystone.example.com/v3"}, "expected a URL"),
        ({"url": "https://keystone.example.com?/v3"}, "expected a URL"),
        ({"url": "https:///v3"}, "expected a URL"),
        ({"domain": None}, "name the projects or the domain"),
        ({"projects": ["acme"]}, "projects"),
        ({"cache": "61s"}, "cache"),
        ({"cache": "0s"}, "cache"),
        ({"timeout": "21s"}, "timeout"),
        ({"name": "a/b"}, "name"),
        ({"roles": {"admin": ""}}, "roles"),
        ({"typo": 1}, "typo"),
        ({"service": {}}, "give one of username"),
        ({"service": {"username": "a"}}, "give either password or password_file"),
        ({"service": USER | {"password_file": "x"}}, "give either password or password_file"),
        ({"service": USER | {"user_id": "x"}}, "give one of username"),
        (
            {"service": USER | {"project": "a", "domain": "b"}},
            "give at most one of project, project_id and domain",
        ),
        ({"service": APPLICATION}, "can't read EC2 credentials"),
        ({"service": APPLICATION | {"project": "a"}, "access_keys": False}, "has its own scope"),
        ({"service": APPLICATION | {"password": "a"}, "access_keys": False}, "give either"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**changed)
    assert text in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:5000/v3", "http://[::1]/v3", "http://localhost/v3"])
def test_http_is_allowed_on_loopback(url: str) -> None:
    assert settings(url=url).url == url


@pytest.mark.parametrize(
    ("service", "user", "scope"),
    [
        (USER, {"name": "clustercert", "domain": {"name": "Default"}}, {"system": {"all": True}}),
        (USER | {"domain": "acme"}, None, {"domain": {"name": "acme"}}),
        (USER | {"project_id": "p"}, None, {"project": {"id": "p"}}),
        (USER | {"project": "p"}, None, {"project": {"name": "p", "domain": {"name": "Default"}}}),
        ({"user_id": "u", "password": "s3cret"}, {"id": "u"}, {"system": {"all": True}}),
    ],
)
def test_a_log_in_by_password(
    service: dict[str, str], user: dict[str, object] | None, scope: dict[str, object]
) -> None:
    auth: Any = settings(service=service).service.request()["auth"]
    assert auth["scope"] == scope
    assert auth["identity"]["methods"] == ["password"]
    if user is not None:
        assert auth["identity"]["password"]["user"] == {**user, "password": "s3cret"}


def test_a_log_in_by_an_application_credential() -> None:
    auth: Any = settings(service=APPLICATION, access_keys=False).service.request()["auth"]
    assert auth == {
        "identity": {
            "methods": ["application_credential"],
            "application_credential": {"id": "a" * 32, "secret": "s3cret"},
        }
    }


def test_no_secret_is_printed() -> None:
    for service in (USER, APPLICATION):
        found = settings(service=service, access_keys=False)
        assert "s3cret" not in f"{found!r}{found!r}"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\n", b"x" * 5000])
def test_a_file_without_a_secret_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    credential = settings(service={"username": "a", "password_file": file}).service
    with pytest.raises(UnreadableSecret, match=str(file)):
        credential.request()


def test_an_authority_must_be_left_and_names_differ() -> None:
    IdentitySettings(keystone=settings(), built_in=False)
    with pytest.raises(ValidationError, match="configure Keystone or an issuer"):
        IdentitySettings(built_in=False)
    issuer = {"name": "keystone", "issuer": "https://sso.example.com", "audiences": ["a"], "domain": "acme"}
    with pytest.raises(ValidationError, match="an issuer has the name keystone"):
        IdentitySettings.model_validate({"keystone": dict(MINIMAL), "issuers": [issuer]})


@pytest.mark.parametrize(
    ("token", "keystone", "built_in"),
    [
        ("gAAAAA" + "x" * 177, True, False),
        ("3e2a1cf0e8f94f0c8b1b4e7f6a5d4c3b", True, False),
        ("MIIK+/=" * 500, True, False),
        ("PKIZ_eJx", True, False),
        ("x" * 42, True, False),
        ("x" * 44, True, False),
        ("x" * 43, False, True),
        ("x" * 42 + "=", True, False),
        ("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln", False, False),
        ("eyJ.eyJvcGVuc3RhY2tfYXVkaXRfaWRzIjpbXX0.c2ln", True, False),
        ("a.b", False, False),
        ("a.é.c", False, False),
    ],
)
def test_a_token_is_recognised_by_its_form(token: str, keystone: bool, built_in: bool) -> None:
    assert (is_keystone_token(token), is_built_in_token(token)) == (keystone, built_in)


@pytest.mark.parametrize(
    ("access_key", "built_in"),
    [
        ("ABCDEFGHIJ0123456789", True),
        ("ABCDEFGHIJ012345678", False),
        ("ABCDEFGHIJ0123456789\n", False),
        ("abcdefghij0123456789", False),
        ("b9ff7dfe86cd40238c08235bcd94e895", False),
    ],
)
def test_an_access_key_is_recognised_by_its_form(access_key: str, built_in: bool) -> None:
    assert is_built_in_access_key(access_key) is built_in
