"""The holder of a private key can revoke its certificate without logging in."""

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clustercert.certificates.revocation import statement_to_sign
from clustercert.model import KeyType, PrivateKey
from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.keys import key_pem, new_key, signed_by
from clustercert.pki.leaf import serial_hex
from support.leaf_checks import credential_number_of
from support.revocation_client import OWN, RevocationClient
from support.service import Service
from support.wait import SECONDS


def documented_commands() -> str:
    """Return the documented commands that create a signature, without the one that sends it."""
    document = (Path(__file__).parents[2] / "docs" / "certificates.md").read_text(encoding="utf-8")
    block = document.split("### By the key alone")[1].split("```sh\n")[1].split("```")[0]
    return block.split("curl")[0]


def signature(key: PrivateKey, statement: bytes, folder: Path) -> str:
    """Sign a statement with the documented openssl command."""
    (folder / "client.key").write_bytes(key_pem(key))
    (folder / "statement").write_bytes(statement)
    [command] = [line for line in documented_commands().splitlines() if "pkeyutl" in line]
    return ran(command, folder)


def ran(commands: str, folder: Path) -> str:
    subprocess.run(["sh", "-euc", commands], cwd=folder, check=True, timeout=SECONDS)
    return (folder / "signature").read_text()


def revoke_with_key(place: RevocationClient, name: str, body: object) -> httpx2.Response:
    return place.client.post(f"{OWN}/certificates/{name}/revoke-with-key", json=body)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384", "rsa-2048", "ed25519"])
def test_the_key_alone_revokes_its_certificate(
    place: RevocationClient, tmp_path: Path, key_type: KeyType
) -> None:
    key = new_key(key_type)
    certificate, other = place.issue("member", key=key), place.issue("member")
    name = fingerprint(certificate).hex()
    (tmp_path / "client.key").write_bytes(key_pem(key))
    (tmp_path / "client.crt").write_bytes(chain_pem((certificate,)))
    signed = ran(documented_commands(), tmp_path)
    assert (tmp_path / "statement").read_bytes() == statement_to_sign("clustercert", name)
    answer = revoke_with_key(place, name, {"signature": signed, "reason": "keyCompromise"})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["by"], said["proved"], said["fingerprint"]) == ("holder", True, name)
    assert place.states(certificate, other) == ["revoked", "live"]
    again = revoke_with_key(place, name, {"signature": signed, "reason": "keyCompromise"})
    assert again.json() == said
    assert place.post("operator", f"{OWN}/revocations/{said['id']}/undo").status_code == 409
    [event] = [each for each in place.events("certificate.revoked") if each["subject"] == name]
    assert (event["actor"], event["detail"]["proved"]) == ("holder", True)


@pytest.mark.parametrize("written", [str.lower, str.upper])
def test_the_key_revokes_by_the_credential_number_too(
    place: RevocationClient, tmp_path: Path, written: Callable[[str], str]
) -> None:
    """The ledger knows an altered copy only by its credential number."""
    key = new_key("ec-p256")
    certificate, other = place.issue("member", key=key), place.issue("member", key=key)
    number = credential_number_of(certificate)
    signed = signature(key, statement_to_sign("clustercert", number), tmp_path)
    # Both certificates have this key, but the statement names only one of them.
    assert revoke_with_key(place, credential_number_of(other), {"signature": signed}).status_code == 401
    assert revoke_with_key(place, fingerprint(certificate).hex(), {"signature": signed}).status_code == 401
    answer = revoke_with_key(place, written(number), {"signature": signed})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["by"], said["proved"], said["fingerprint"]) == (
        "holder",
        True,
        fingerprint(certificate).hex(),
    )
    assert place.states(certificate, other) == ["revoked", "live"]


def test_the_holders_word_outlasts_an_operators_undo(place: RevocationClient, tmp_path: Path) -> None:
    key = new_key("ec-p256")
    name = fingerprint(place.issue("member", key=key)).hex()
    first = place.post("admin", place.own(f"/certificates/{name}/revoke")).json()
    signed = signature(key, statement_to_sign("clustercert", name), tmp_path)
    assert revoke_with_key(place, name, {"signature": signed}).json()["id"] > first["id"]
    assert place.post("operator", f"{OWN}/revocations/{first['id']}/undo").status_code == 200
    path = f"{OWN}/certificates/{name}"
    shown = place.client.get(path, headers=place.world.people["operator"].headers).json()
    assert (shown["state"], shown["revoked_by"]) == ("revoked", "holder")


def test_what_proves_nothing_is_answered_alike_and_revokes_nothing(
    place: RevocationClient, tmp_path: Path
) -> None:
    key = new_key("ec-p256")
    certificate, others = place.issue("member", key=key), place.issue("member", key=new_key("ec-p256"))
    name, other_name = fingerprint(certificate).hex(), fingerprint(others).hex()
    right, number = statement_to_sign("clustercert", name), credential_number_of(certificate)
    attempts = [
        (name, signature(new_key("ec-p256"), right, tmp_path)),
        (name, signature(key, statement_to_sign("another", name), tmp_path)),
        (name, signature(key, statement_to_sign("clustercert", other_name), tmp_path)),
        (name, signature(key, right.strip(), tmp_path)),
        (name, signature(key, right.replace(b"v1", b"v2"), tmp_path)),
        (name, base64.b64encode(b"no signature").decode()),
        (name, ""),
        (other_name, signature(key, right, tmp_path)),
        ("0" * 64, signature(key, statement_to_sign("clustercert", "0" * 64), tmp_path)),
        (serial_hex(certificate.serial_number), signature(key, right, tmp_path)),
        (credential_number_of(others), signature(key, statement_to_sign("clustercert", number), tmp_path)),
        (number, signature(new_key("ec-p256"), statement_to_sign("clustercert", number), tmp_path)),
        ("0" * 40, signature(key, statement_to_sign("clustercert", "0" * 40), tmp_path)),
        ("x", signature(key, right, tmp_path)),
    ]
    answers = [revoke_with_key(place, wanted, {"signature": signed}) for wanted, signed in attempts]
    unknown = place.client.get(f"{OWN}/certificates", headers={"X-Auth-Token": "A" * 43})
    assert [answer.status_code for answer in answers] == [401] * len(attempts)
    same = [answer.json() | {"request_id": ""} == unknown.json() | {"request_id": ""} for answer in answers]
    assert all(same)
    assert place.states(certificate, others) == ["live", "live"]


@pytest.mark.parametrize(
    "body", [{}, {"signature": None}, {"signature": 5}, {"signature": "?"}, {"signature": "A" * 1028}, []]
)
def test_what_is_no_signature_is_a_bad_request(place: RevocationClient, body: object) -> None:
    assert revoke_with_key(place, "0" * 64, body).status_code == 400


def test_the_services_name_is_a_setting(place: RevocationClient, tmp_path: Path) -> None:
    key = new_key("ed25519")
    with Service(place.world.settings(service_name="certs.example.com")).running() as service:
        other = RevocationClient(place.world, service.client)
        name = fingerprint(other.issue("member", key=key)).hex()
        statuses = [
            revoke_with_key(
                other, name, {"signature": signature(key, statement_to_sign(said, name), tmp_path)}
            ).status_code
            for said in ("clustercert", "certs.example.com")
        ]
    assert statuses == [401, 200]


SIGNING = Ed25519PrivateKey.generate()


@given(flip=st.integers(0, 64 * 8 - 1), position=st.integers(0, 10_000))
def test_no_changed_bit_of_a_signature_or_statement_proves(flip: int, position: int) -> None:
    statement = statement_to_sign("clustercert", "ab" * 32)
    signed = SIGNING.sign(statement)
    assert signed_by(SIGNING.public_key(), signed, statement)
    changed = bytearray(signed)
    changed[flip // 8] ^= 1 << (flip % 8)
    assert not signed_by(SIGNING.public_key(), bytes(changed), statement)
    other = bytearray(statement)
    other[position % len(other)] ^= 1 << (flip % 8)
    assert not signed_by(SIGNING.public_key(), signed, bytes(other))
