"""The signer `transit` with a real OpenBao: what its policy allows, which keys it refuses, and outages."""

import asyncio
import functools
import textwrap
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from clustercert.issuance.signers import transit
from clustercert.issuance.signers.limited import LimitedSigner
from clustercert.issuance.signers.transit import access_policy, transit_signer
from clustercert.model import ClientCA, KeyType
from clustercert.model.clusters import Registration
from clustercert.model.errors import InvalidRequest, SignerError, Unavailable
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import check_leaf, new_signing_request
from clustercert.pki.signer import CaRequest, SignerContext
from support import openbao
from support.openbao import CA_MOUNT, RealOpenBao
from support.samples import CA_NOT_BEFORE, grant
from support.sealed_log import PlainCustody
from support.wait import eventually_async

LEAF_KEY = new_key("ec-p256").public_key()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOpenBao]:
    with openbao.running(tmp_path_factory.mktemp("openbao") / "server") as server:
        yield server


@asynccontextmanager
async def signer_of(server: RealOpenBao, **changed: object) -> AsyncIterator[LimitedSigner]:
    signer = transit_signer(SignerContext(server.new_signer() | changed, PlainCustody()))
    try:
        yield signer
    finally:
        await signer.close()


async def new_ca(signer: LimitedSigner, key_type: KeyType = "ec-p256") -> ClientCA:
    registration = Registration("prod", "https://10.0.0.5:6443", b"")
    request = CaRequest("c" * 36, registration, key_type, CA_NOT_BEFORE, timedelta(days=3650))
    return await signer.create_ca(request)


async def issue(signer: LimitedSigner, ca: ClientCA) -> None:
    request = new_signing_request(grant(), LEAF_KEY, ca, takes_serial=True)
    check_leaf(await signer.sign(request), request)


def key_of(ca: ClientCA) -> str:
    return f"{CA_MOUNT}/keys/clustercert-{ca.id}"


@pytest.mark.full
async def test_the_printed_policy_allows_nothing_but_the_signers_work(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        ca = await new_ca(signer)
        await issue(signer, ca)
        token = (server.folder / "token").read_text()
        policy = (await signer.custody(ca)).access_policy
        assert policy == server.request("GET", "sys/policies/acl/ca")["data"]["policy"]
        name = f"clustercert-{ca.id}"
        for method, path, body in (
            ("GET", f"{CA_MOUNT}/export/signing-key/{name}", None),
            ("GET", f"{CA_MOUNT}/backup/{name}", None),
            ("POST", f"{CA_MOUNT}/keys/{name}/rotate", None),
            ("POST", f"{CA_MOUNT}/keys/{name}/config", {"exportable": True}),
            ("POST", f"{CA_MOUNT}/keys/{name}/config", {"deletion_allowed": True, "exportable": True}),
            ("POST", f"{CA_MOUNT}/keys/{name}/config", {"allow_plaintext_backup": True}),
            ("POST", f"{CA_MOUNT}/keys/{name}/trim", {"min_available_version": 1}),
            ("POST", f"{CA_MOUNT}/keys/other", {"type": "ecdsa-p256", "exportable": True}),
            ("POST", f"{CA_MOUNT}/keys/other/import", {"ciphertext": "", "type": "ecdsa-p256"}),
            ("LIST", f"{CA_MOUNT}/keys", None),
            ("POST", f"{CA_MOUNT}/encrypt/{name}", {"plaintext": "AAAA"}),
            ("POST", "transit/decrypt/clustercert", {"ciphertext": "vault:v1:AAAA"}),
            ("GET", "transit/keys/clustercert", None),
            ("POST", "auth/token/create", {}),
            ("GET", "sys/policies/acl/ca", None),
        ):
            assert server.status(method, path, body, token=token) == 403, path
        await issue(signer, ca)


def test_the_documentation_has_the_policy() -> None:
    page = (Path(__file__).parents[2] / "docs" / "openbao.md").read_text()
    block = page.partition("<!-- begin transit policy -->")[2].partition("```hcl\n")[2].partition("   ```")[0]
    assert textwrap.dedent(block) == access_policy(CA_MOUNT)


@pytest.mark.full
async def test_it_says_what_protects_a_key(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        ca = await new_ca(signer, "ec-p384")
        assert (ca.signer, ca.key_reference, ca.sealed_key) == ("transit", key_of(ca), None)
        custody = await signer.custody(ca)
        assert custody.location == (
            f"OpenBao at {server.url}, transit engine {CA_MOUNT}, key clustercert-{ca.id}, version 1"
        )
        assert custody.proof == {
            "exportable": "false",
            "allow_plaintext_backup": "false",
            "imported_key": "false",
            "type": "ecdsa-p384",
            "latest_version": "1",
            "deletion_allowed": "false",
        }


@pytest.mark.full
@pytest.mark.parametrize("weakness", ["exportable", "allow_plaintext_backup"])
async def test_a_key_that_can_leave_openbao_is_refused(
    server: RealOpenBao, weakness: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with signer_of(server) as signer:
        ca = await new_ca(signer)
        await issue(signer, ca)
        server.request("POST", f"{key_of(ca)}/config", {weakness: True})
        # As after this time.
        monkeypatch.setattr(transit, "CHECK_SECONDS", 0)
        with pytest.raises(SignerError, match=f"is not protected: {weakness} is true, but must be false"):
            await issue(signer, ca)
        assert (await signer.custody(ca)).proof[weakness] == "true"


@pytest.mark.full
async def test_a_key_made_readable_is_not_used_for_a_new_ca(
    server: RealOpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_id = "b" * 32
    server.new_signer()
    server.request("POST", f"{CA_MOUNT}/keys/clustercert-{ca_id}", {"type": "ecdsa-p256", "exportable": True})
    monkeypatch.setattr("clustercert.issuance.signers.ca_keys.new_id", lambda: ca_id)
    async with signer_of(server) as signer:
        with pytest.raises(SignerError, match="exportable is true"):
            await new_ca(signer)


@pytest.mark.full
async def test_a_rotated_key_signs_with_the_version_of_the_ca(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        ca = await new_ca(signer)
        server.request("POST", f"{key_of(ca)}/rotate")
        await issue(signer, ca)
        assert (await signer.custody(ca)).proof["latest_version"] == "2"


@pytest.mark.full
async def test_another_key_of_the_same_name_signs_nothing(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        ca = await new_ca(signer)
        assert await signer.delete_key(ca) == (
            f"The key clustercert-{ca.id} is deleted from the transit engine {CA_MOUNT} of OpenBao."
        )
        assert server.status("GET", key_of(ca)) == 404
        server.request("POST", key_of(ca), {"type": "ecdsa-p256"})
        with pytest.raises(SignerError, match="is not the key of the client CA"):
            await issue(signer, ca)


@pytest.mark.full
async def test_all_key_types_but_ed25519_are_made(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        for key_type in get_args(KeyType):
            if key_type == "ed25519":
                with pytest.raises(InvalidRequest, match="has no ed25519 keys"):
                    await new_ca(signer, key_type)
            else:
                await issue(signer, await new_ca(signer, key_type))


@pytest.mark.full
async def test_an_outage_is_temporary(tmp_path: Path) -> None:
    with openbao.running(tmp_path / "openbao") as server:
        for outage in ("killed", "suspended", "sealed"):
            async with signer_of(server) as patient:
                ca = await new_ca(patient)
            async with signer_of(server, timeout=1) as signer:
                await eventually_async(functools.partial(signs, signer, ca))
                server.interrupt(outage)
                # Each of them waits for a second while the server is suspended.
                attempts = issue(signer, ca), new_ca(signer), signer.custody(ca), signer.delete_key(ca)
                await asyncio.gather(*(assert_unavailable(server, attempt) for attempt in attempts))
                server.recover(outage)
                await eventually_async(functools.partial(signs, signer, ca))


@pytest.mark.full
async def test_a_token_is_replaced_while_the_signer_runs(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        ca = await new_ca(signer)
        server.revoke((server.folder / "token").read_text())
        await assert_unavailable(server, issue(signer, ca))
        server.new_signer()
        await issue(signer, ca)


async def assert_unavailable(server: RealOpenBao, attempt: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(Unavailable) as caught:
        await attempt
    assert caught.value.retry_after
    assert server.url not in caught.value.message


async def signs(signer: LimitedSigner, ca: ClientCA) -> bool:
    try:
        await issue(signer, ca)
    except Unavailable:
        return False
    return True


@pytest.mark.full
async def test_a_lost_key_is_named(server: RealOpenBao) -> None:
    async with signer_of(server) as signer:
        ca = replace(await new_ca(signer), id="e" * 32)
        with pytest.raises(SignerError, match=f"has no key clustercert-{'e' * 32}"):
            await issue(signer, ca)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "url"),
        ({"url": "http://openbao.example.com", "token_file": "t"}, "url: .*use https"),
        ({"url": "https://openbao.example.com", "token_file": "t", "mount": "../sys"}, "mount"),
        ({"url": "https://openbao.example.com", "token_file": "t", "pin": "1234"}, "pin"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        transit_signer(SignerContext(settings, PlainCustody()))
    assert "1234" not in str(caught.value)
