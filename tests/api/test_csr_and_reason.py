"""Our two additional fields: `csr` and `reason`."""

import json
from pathlib import Path

import httpx2
import pytest

from clustercert.pki.keys import key_type_of
from support.asn1 import csr_of_version, flipped
from support.leaf_checks import BACKDATE, assert_client_leaf, leaf_of, openssl, spki, user_of
from support.stores import rows
from support.world import World

KINDS = {
    "ec-p256": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "ec-p384": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "ed25519": ["-newkey", "ed25519"],
    "rsa-2048": ["-newkey", "rsa:2048"],
    "rsa-4096": ["-newkey", "rsa:4096"],
}
REFUSED_KINDS = {
    "P-521": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "RSA-1024": ["-newkey", "rsa:1024"],
    "Ed448": ["-newkey", "ed448"],
}


def csr(kind: list[str], folder: Path) -> str:
    """Create a CSR with the most powerful subject, in the group system:masters."""
    asked = ["-subj", "/O=system:masters/CN=root", "-addext", "subjectAltName=DNS:kubernetes"]
    key = folder / "key.pem"
    return openssl("req", "-new", *kind, "-nodes", "-keyout", key, *asked).decode()


def ask(
    client: httpx2.Client, world: World, body: dict[str, object], who: str = "admin", query: str = ""
) -> httpx2.Response:
    headers = world.people[who].headers | {"Content-Type": "application/json"}
    return client.post(world.path() + query, content=json.dumps(body), headers=headers)


def is_refused(response: httpx2.Response, field: str) -> None:
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400001")
    assert response.json()["errorMessage"].startswith(f"{field}: ")


# csr


@pytest.mark.parametrize("kind", KINDS)
def test_a_csr_gives_its_public_key_and_nothing_else(
    client: httpx2.Client, world: World, kind: str, tmp_path: Path
) -> None:
    request = csr(KINDS[kind], tmp_path)
    response = ask(client, world, {"duration": 2, "csr": request}, "member")
    assert response.status_code == 200
    assert list(user_of(response.json())) == ["client-certificate-data"]
    leaf = leaf_of(response.json())
    issued_at = leaf.not_valid_before_utc + BACKDATE
    assert_client_leaf(
        leaf,
        ca=world.client_ca("plain"),
        username=world.people["member"].user.id,
        groups=["clustercert:editors"],
        issued_at=issued_at,
        lifetime=leaf.not_valid_after_utc - issued_at,
    )
    assert key_type_of(leaf.public_key()) == kind  # type: ignore[arg-type] # one of ours
    public = openssl("pkey", "-in", tmp_path / "key.pem", "-pubout", "-outform", "DER")
    assert spki(leaf.public_key()) == public
    assert "Cache-Control" in response.headers
    ((origin, key_type),) = rows(
        world.database,
        "select key_origin, key_type from certificate where request_id = ?",
        response.headers["X-Request-Id"],
    )
    assert (origin, key_type) == ("csr", kind)


def test_one_csr_can_be_used_again(client: httpx2.Client, world: World, tmp_path: Path) -> None:
    request = csr(KINDS["ec-p256"], tmp_path)
    answers = [ask(client, world, {"duration": 2, "csr": request}).json() for _ in range(2)]
    assert leaf_of(answers[0]).serial_number != leaf_of(answers[1]).serial_number
    assert spki(leaf_of(answers[0]).public_key()) == spki(leaf_of(answers[1]).public_key())


def test_a_preview_of_a_csr_names_its_kind(client: httpx2.Client, world: World, tmp_path: Path) -> None:
    request = csr(KINDS["rsa-2048"], tmp_path)
    preview = ask(client, world, {"duration": 2, "csr": request}, query="?dryRun=All").json()
    assert (preview["key_type"], preview["common_name"]) == ("rsa-2048", world.people["admin"].user.id)


def test_a_csr_of_null_is_none(client: httpx2.Client, world: World) -> None:
    assert "client-key-data" in user_of(ask(client, world, {"duration": 2, "csr": None}).json())


def test_csrs_that_are_refused(client: httpx2.Client, world: World, tmp_path: Path) -> None:
    good = csr(KINDS["ec-p256"], tmp_path)
    key = (tmp_path / "key.pem").read_text()
    for wrong in (
        "",
        "x",
        good + good,
        good + key,
        f"before {good}",
        good + "after",
        good + "\n" * 16385,
        flipped(good, 3),
        csr_of_version(good, 1),
        good.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        30,
        True,
        [good],
        {"pem": good},
    ):
        is_refused(ask(client, world, {"duration": 2, "csr": wrong}), "csr")


@pytest.mark.parametrize("kind", ["P-521", "RSA-1024", "Ed448"])
def test_csrs_of_other_keys_are_refused(
    client: httpx2.Client, world: World, kind: str, tmp_path: Path
) -> None:
    request = csr(REFUSED_KINDS[kind], tmp_path)
    response = ask(client, world, {"duration": 2, "csr": request})
    is_refused(response, "csr")
    assert "P-256" in response.json()["errorMessage"]


def test_a_csr_that_holds_a_key_does_not_come_back(
    client: httpx2.Client, world: World, tmp_path: Path
) -> None:
    """The response does not repeat a private key that was sent by mistake."""
    csr(KINDS["ec-p256"], tmp_path)
    key = (tmp_path / "key.pem").read_text()
    response = ask(client, world, {"duration": 2, "csr": key})
    assert key.splitlines()[1] not in response.text


# reason


@pytest.mark.parametrize(
    "reason",
    [
        "plain words",
        "Größe 日本語 🔐",
        "x" * 512,
        "🔐" * 512,
        "<b>bold</b> {{7*7}} %s ${jndi:x} =1+1 ' OR 1=1 --",
        "عربي and עברית are words, not controls",
    ],
    ids=["plain", "Unicode", "512", "512 beyond the BMP", "markup", "right-to-left words"],
)
def test_a_reason_is_kept_as_it_is(client: httpx2.Client, world: World, reason: str) -> None:
    response = ask(client, world, {"duration": 2, "reason": reason})
    assert response.status_code == 200
    fingerprint = response.headers["X-Clustercert-Fingerprint"]
    ((kept,),) = rows(
        world.database, "select reason from certificate where fingerprint = ?", bytes.fromhex(fingerprint)
    )
    ((body,),) = rows(world.database, "select body from audit_event where subject = ?", fingerprint)
    assert isinstance(body, bytes)
    assert kept == json.loads(body)["detail"]["request"]["reason"] == reason


def test_no_reason_is_none(client: httpx2.Client, world: World) -> None:
    reasons: list[dict[str, object]] = [{}, {"reason": None}, {"reason": ""}, {"reason": " "}]
    for reason in reasons:
        response = ask(client, world, {"duration": 2, **reason})
        ((kept,),) = rows(
            world.database,
            "select reason from certificate where request_id = ?",
            response.headers["X-Request-Id"],
        )
        assert kept is None


@pytest.mark.parametrize(
    "reason",
    [
        "x" * 513,
        "🔐" * 513,
        "two\nlines",
        "tab\there",
        "null\0",
        "bell\x07",
        "delete\x7f",
        "next line\x85",
        "line separator\u2028",
        "paragraph separator\u2029",
        "override\u202etxt.exe",
        "embedding\u202a",
        "isolate\u2066",
        "mark\u200f",
        "Arabic letter mark\u061c",
        "lone surrogate \ud800",
        "lone low surrogate \udc00",
        "surrogates in the wrong order \udd10\ud83d",
        30,
        True,
        ["because"],
        {"why": "because"},
    ],
    ids=ascii,
)
def test_a_reason_that_no_audit_should_show_is_refused(
    client: httpx2.Client, world: World, reason: object
) -> None:
    response = ask(client, world, {"duration": 2, "reason": reason})
    is_refused(response, "reason")
    response.text.encode()
    if isinstance(reason, str):
        assert reason not in response.text


def test_a_pair_of_escaped_surrogates_is_one_character(client: httpx2.Client, world: World) -> None:
    headers = world.people["admin"].headers | {"Content-Type": "application/json"}
    body = rb'{"duration": 2, "reason": "\ud83d\udd10"}'
    assert client.post(world.path(), content=body, headers=headers).status_code == 200
