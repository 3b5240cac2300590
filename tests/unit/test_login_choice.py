"""Which way `clustercert login` takes, and refresh tokens in a keyring."""

import json
import os
import sys
import threading
import types
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import typer

from clustercert.cli import completion
from clustercert.cli.login import oidc_login, profile, renewal, token_storage, trust
from clustercert.cli.login.issuer_options import IssuerOptions
from clustercert.cli.login.profile import OidcLogin, Profile
from clustercert.cli.login.renewal import may_open_window
from clustercert.cli.options import CommandError, UnknownName
from clustercert.client import Client, NamedRef
from clustercert.client.connection import ApiError
from clustercert.client.oidc import issuer as issuers
from clustercert.client.oidc.issuer import LoginIssuer, LoginOffer
from clustercert.model.login_client import LoginClient
from support.oauth_issuer import OAuthIssuer


class Begun(Exception):
    """A login began."""


URL = "https://service.example.com"
PROJECT = "a" * 32


def named(name: str) -> LoginIssuer:
    return LoginIssuer(name, f"https://{name}.example.com", LoginClient("clustercert", ("openid",)))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of issuers at which a login began. It goes no further."""
    names: list[str] = []

    def begin(self: IssuerOptions, issuer: LoginIssuer, url: str) -> None:
        del self, url
        names.append(issuer.name)
        raise Begun

    for variable in ("CLUSTERCERT_TOKEN", "CI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(trust, "accept", lambda *_: None)
    monkeypatch.setattr(IssuerOptions, "_authenticate", begin)
    return names


def choose(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], last: Profile | None = None, **options: object
) -> Profile | None:
    monkeypatch.setattr(issuers, "login_offer", lambda _: LoginOffer(tuple(map(named, found))))
    options_given = IssuerOptions(**options)  # type: ignore[arg-type] # the tests' options have the right types
    try:
        return options_given.log_in(URL, None, None, last, by_password=False)
    except Begun:
        return None


def saved(name: str | None) -> Profile:
    oidc = OidcLogin(name, "f3b1", named(name).body()) if name is not None else None
    return Profile(URL, "alice", PROJECT, "eu-de", oidc=oidc)


@pytest.mark.parametrize(
    ("found", "last", "options", "expected"),
    [
        ((), None, {}, []),
        (("sso",), None, {}, ["sso"]),
        (("sso", "corp"), None, {"issuer": "corp"}, ["corp"]),
        (("sso", "corp"), "corp", {}, ["corp"]),
        (("sso",), "corp", {}, ["sso"]),
        (("sso",), "sso", {"device": True}, ["sso"]),
    ],
)
def test_the_issuer_of_a_login(
    monkeypatch: pytest.MonkeyPatch,
    chosen: list[str],
    found: tuple[str, ...],
    last: str | None,
    options: dict[str, object],
    expected: list[str],
) -> None:
    choose(monkeypatch, found, saved(last) if last else None, **options)
    assert chosen == expected


def test_a_login_with_a_password_stays_one(monkeypatch: pytest.MonkeyPatch, chosen: list[str]) -> None:
    assert choose(monkeypatch, ("sso",), saved(None)) is None
    assert chosen == []
    choose(monkeypatch, ("sso",), saved(None), no_browser=True)
    assert chosen == ["sso"]


def _answer(asked: list[str], answer: str, text: str, **_: object) -> str:
    asked.append(text)
    return answer


def test_several_issuers_need_a_choice(monkeypatch: pytest.MonkeyPatch, chosen: list[str]) -> None:
    with pytest.raises(CommandError, match=r"add --issuer NAME \(sso, corp\), or --user NAME"):
        choose(monkeypatch, ("sso", "corp"))
    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer in ("corp", "password", "none"):
        monkeypatch.setattr(typer, "prompt", partial(_answer, asked, answer))
        if answer == "none":
            with pytest.raises(UnknownName, match="Issuers: sso, corp"):
                choose(monkeypatch, ("sso", "corp"))
        else:
            choose(monkeypatch, ("sso", "corp"))
    assert asked[0] == "Log in at which issuer (sso, corp), or with a password?"
    assert chosen == ["corp"]


def test_the_ca_of_the_last_login_stays() -> None:
    last = replace(named("sso"), ca_pem="CA")
    assert oidc_login.with_saved_ca(named("sso"), last).ca_pem == "CA"
    assert oidc_login.with_saved_ca(replace(named("sso"), ca_pem="new"), last).ca_pem == "new"
    assert oidc_login.with_saved_ca(named("corp"), last).ca_pem is None


def test_a_service_without_issuers(monkeypatch: pytest.MonkeyPatch, chosen: list[str]) -> None:
    with pytest.raises(CommandError, match="ask an operator to set client_id"):
        choose(monkeypatch, (), device=True)
    assert chosen == []


@pytest.mark.parametrize(
    "options", [{"device": True, "no_browser": True}, {"token_file": Path("t"), "device": True}]
)
def test_options_that_exclude_each_other(options: dict[str, object]) -> None:
    with pytest.raises(typer.BadParameter):
        IssuerOptions(**options)  # type: ignore[arg-type] # as above


@pytest.mark.parametrize(
    ("variables", "terminal", "expected"),
    [
        ({"BROWSER": "/bin/true"}, True, True),
        ({"BROWSER": "/bin/true"}, False, False),
        ({"BROWSER": "/bin/true", "KUBERNETES_EXEC_INFO": "{}"}, False, True),
        ({"BROWSER": "/bin/true", "CI": "1"}, True, False),
        ({"BROWSER": "/bin/true", "CI": "false"}, True, True),
        ({}, True, False),
    ],
)
def test_when_a_window_opens_by_itself(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *, terminal: bool, expected: bool
) -> None:
    for name in ("BROWSER", "CI", "DISPLAY", "WAYLAND_DISPLAY", "KUBERNETES_EXEC_INFO"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert may_open_window(saved("sso")) is expected
    assert not may_open_window(saved(None))


def test_a_browser_in_the_terminal_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not oidc_login.has_browser({})
    assert not oidc_login.has_browser({"BROWSER": "", "DISPLAY": ""})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """A keyring in memory, in the place of the optional package."""
    entries: dict[tuple[str, str], str] = {}
    package = types.ModuleType("keyring")
    package.__dict__.update(
        set_password=lambda service, account, secret: entries.__setitem__((service, account), secret),
        get_password=lambda service, account: entries.get((service, account)),
        delete_password=lambda service, account: entries.pop((service, account)),
    )
    monkeypatch.setitem(sys.modules, "keyring", package)
    return entries


def test_a_refresh_token_in_the_keyring(home: Path, ring: dict[tuple[str, str], str]) -> None:
    (home / "issuer").mkdir()
    with OAuthIssuer(home / "issuer").running() as issuer:
        issuer.refresh_tokens.add("first")
        oidc = OidcLogin("sso", "f3b1", issuer.login_issuer().body(), keyring=True)
        expired = datetime.now(UTC) - timedelta(minutes=1)
        login = replace(saved(None), oidc=oidc, token="t", expires_at=expired, refresh_token="first")
        renewal.save("default", login)
        path = profile.tokens_path("default", os.environ)
        assert json.loads(path.read_text())["refresh_token"] is None
        assert list(ring.values()) == ["first"]
        found = renewal.renew("default", profile.load("default", os.environ))
        assert (found.is_renewable, found.has_expired) == (True, False)
        assert set(ring.values()) == issuer.refresh_tokens
        assert "first" not in issuer.refresh_tokens
        assert json.loads(path.read_text())["refresh_token"] is None
        oidc_login.end_session("default", found)
        assert (ring, issuer.refresh_tokens) == ({}, set())


def test_a_keyring_that_hangs_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("keyring")
    ended = threading.Event()
    package.__dict__["get_password"] = lambda *_: ended.wait(60)
    monkeypatch.setitem(sys.modules, "keyring", package)
    monkeypatch.setattr(token_storage, "_KEYRING_SECONDS", 0.05)
    with pytest.raises(CommandError, match="no answer within"):
        token_storage.get("account")
    ended.set()
    monkeypatch.setattr(token_storage, "_KEYRING_SECONDS", 60)
    with pytest.raises(CommandError, match=r"AttributeError.*without --keyring"):
        token_storage.put("account", "secret")


def test_the_keyring_is_checked_before_the_login(monkeypatch: pytest.MonkeyPatch, chosen: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(CommandError, match=r"pip install '\./clustercert-.+\.whl\[keyring\]'"):
        choose(monkeypatch, ("sso",), keyring=True)
    assert chosen == []


def test_the_choice_of_the_keyring_stays(
    monkeypatch: pytest.MonkeyPatch, chosen: list[str], ring: dict[tuple[str, str], str]
) -> None:
    checked: list[bool] = []
    monkeypatch.setattr(token_storage, "check", lambda: checked.append(True))
    last = saved("sso")
    assert last.oidc is not None
    choose(monkeypatch, ("sso",), replace(last, oidc=replace(last.oidc, keyring=True)))
    assert (chosen, checked) == (["sso"], [True])


def test_names_are_completed_while_a_login_waits_for_its_renewal(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    expired = datetime.now(UTC) - timedelta(minutes=1)
    profile.save(
        "default", replace(saved("sso"), token="t", expires_at=expired, refresh_token="r"), os.environ
    )
    completion.save_names("default", [{"name": "prod", "project": "eu-de", "domain": "acme"}])
    assert completion.saved_names("clusters", "default") == ["acme/eu-de/prod", "prod"]
    profile.save("default", replace(saved("sso"), token="t", expires_at=expired), os.environ)
    assert completion.saved_names("clusters", "default") == ()


@dataclass
class BusyService:
    """A service that is unavailable for some requests."""

    failures: int
    status: int = 503

    def projects(self) -> tuple[NamedRef, ...]:
        self.failures -= 1
        if self.failures >= 0:
            raise ApiError("Not now.", self.status)
        return (NamedRef(PROJECT, "eu-de", "Default"),)


def test_a_login_waits_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    # Only this module's clock: threads of other tests sleep too.
    moved = types.SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: clock.append(clock.pop() + s))
    monkeypatch.setattr(oidc_login, "time", moved)
    assert oidc_login._projects(cast("Client", BusyService(3)))[0].name == "eu-de"
    assert clock == [15.0]
    with pytest.raises(ApiError):
        oidc_login._projects(cast("Client", BusyService(1, status=401)))
    assert clock == [15.0]
    with pytest.raises(ApiError):
        oidc_login._projects(cast("Client", BusyService(1000)))
    assert 55 <= clock[0] <= 65
