"""The signer `pkcs11`, with SoftHSM, alone and behind a daemon as a network HSM that fails."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clustercert.issuance.signers import token_sessions
from clustercert.issuance.signers.limited import LimitedSigner
from clustercert.issuance.signers.local import local_signer
from clustercert.issuance.signers.pkcs11 import pkcs11_signer
from clustercert.issuance.signers.token_sessions import Login, TokenAddress
from clustercert.model import ClientCA, SigningRequest
from clustercert.model.clusters import Registration
from clustercert.model.errors import SignerError, Unavailable
from clustercert.pki.cryptoki import (
    Attribute,
    Cryptoki,
    CryptokiError,
    CryptokiSession,
    Mechanism,
    ObjectClass,
    Template,
)
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import check_leaf, new_signing_request
from clustercert.pki.signer import CaRequest, Signer, SignerContext
from support import tokens
from support.log_capture import captured_logs
from support.ring_sealer import RingSealer
from support.samples import CA_NOT_BEFORE, grant

pytestmark = tokens.needs_softhsm
LEAF_KEY = new_key("ec-p256").public_key()
CA_REQUEST = CaRequest(
    "00000000-0000-4000-8000-000000000000",
    Registration("prod", "https://10.0.0.5:6443", b""),
    "ec-p256",
    CA_NOT_BEFORE,
    timedelta(days=3650),
)


@pytest.fixture
def token(tmp_path: Path) -> tokens.SoftToken:
    return tokens.new_token(tmp_path)


@asynccontextmanager
async def signer_of(token: tokens.SoftToken, /, **settings: object) -> AsyncIterator[LimitedSigner]:
    with tokens.environment(token):
        signer = pkcs11_signer(SignerContext(token.settings() | settings, RingSealer()))
        try:
            yield signer
        finally:
            await signer.close()


def asked(ca: ClientCA) -> SigningRequest:
    return new_signing_request(grant(), LEAF_KEY, ca, takes_serial=True)


async def issue(signer: Signer, ca: ClientCA) -> None:
    request = asked(ca)
    check_leaf(await signer.sign(request), request)


def in_token(token: tokens.SoftToken, operation: Callable[[CryptokiSession], Any]) -> Any:
    """Do something in the token with a session of our own, while no signer uses the module."""
    with tokens.environment(token):
        module = Cryptoki(token.module)
        module.initialize()
        try:
            (slot,) = (each.slot for each in module.tokens() if each.label == tokens.LABEL)
            session = module.open_session(slot)
            session.login(tokens.PIN.encode())
            return operation(session)
        finally:
            module.finalize()


def signer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pkcs11-")]


# Keys


async def test_a_key_never_leaves_the_token(token: tokens.SoftToken) -> None:
    async with signer_of(token) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        custody = await signer.custody(ca)
    assert custody.proof == {
        "CKA_SENSITIVE": "true",
        "CKA_ALWAYS_SENSITIVE": "true",
        "CKA_EXTRACTABLE": "false",
        "CKA_NEVER_EXTRACTABLE": "true",
        "CKA_LOCAL": "true",
    }
    assert custody.location.startswith("PKCS#11 token clustercert (serial number ")
    assert custody.location.endswith(f", key id {ca.id}")
    assert ca.sealed_key is None
    assert ca.key_reference is not None
    assert ca.key_reference.startswith("pkcs11:token=clustercert;serial=")
    assert tokens.PIN not in f"{custody}{ca}"


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (Attribute.EXTRACTABLE, True, "CKA_EXTRACTABLE is true, but must be false"),
        (Attribute.SENSITIVE, False, "CKA_SENSITIVE is false, but must be true"),
    ],
)
async def test_a_key_that_can_leave_the_token_is_not_used(
    token: tokens.SoftToken, attribute: Attribute, value: bool, message: str
) -> None:
    async with signer_of(token) as signer:
        ca = await signer.create_ca(CA_REQUEST)

    def replace_key(session: CryptokiSession) -> None:
        key_id = bytes.fromhex(ca.id)
        for each in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            session.destroy(*session.find(each, key_id))
        common: Template = {Attribute.TOKEN: True, Attribute.ID: key_id}
        protection: Template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, attribute: value}
        session.generate_key_pair(
            Mechanism.EC_KEY_PAIR_GEN,
            {**common, Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107")},
            {**common, **protection, Attribute.PRIVATE: True, Attribute.SIGN: True},
        )

    in_token(token, replace_key)
    async with signer_of(token) as signer:
        with pytest.raises(SignerError) as refused:
            await signer.sign(asked(ca))
        assert message in refused.value.message
        # An operator can see what is wrong.
        custody = await signer.custody(ca)
        assert custody.proof[f"CKA_{attribute.name}"] == str(value).lower()


async def test_deleting_a_key_deletes_both_halves(token: tokens.SoftToken) -> None:
    async with signer_of(token) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        other = await signer.create_ca(CA_REQUEST)
        assert (
            await signer.delete_key(ca) == f"The key {ca.id} is deleted from the PKCS#11 token clustercert."
        )
        assert (
            await signer.delete_key(ca) == f"The key {ca.id} does not exist in the PKCS#11 token clustercert."
        )
        await issue(signer, other)
    found = in_token(
        token, lambda session: [session.find(each, bytes.fromhex(ca.id)) for each in ObjectClass]
    )
    assert found == [[], []]


async def test_a_ca_made_by_one_process_signs_in_another(token: tokens.SoftToken) -> None:
    async with signer_of(token) as signer:
        ca = await signer.create_ca(CA_REQUEST)
    async with signer_of(token, token=None, serial=serial_of(token)) as signer:
        await issue(signer, ca)


def serial_of(token: tokens.SoftToken) -> str:
    with tokens.environment(token):
        module = Cryptoki(token.module)
        module.initialize()
        (serial,) = (each.serial for each in module.tokens() if each.label == tokens.LABEL)
        module.finalize()
    return serial


# Settings and PIN


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pin": "824-secret-pin"}, "pin: unknown field"),
        ({"pin_file": None}, "pin_file: "),
        ({"token": None}, "set token to the token's label, or serial to its serial number"),
        ({"module": "softhsm.so"}, "set module to an absolute path"),
        ({"threads": 0}, "threads: "),
    ],
)
def test_wrong_settings_are_named_without_their_values(
    token: tokens.SoftToken, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        pkcs11_signer(SignerContext(token.settings() | changed, RingSealer()))
    assert tokens.PIN not in str(refused.value)


async def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    settings = {"module": str(tmp_path / "missing.so"), "token": "x", "pin_file": str(tmp_path / "pin")}
    before = signer_threads()
    signer = pkcs11_signer(SignerContext(settings, RingSealer()))
    assert signer_threads() == before
    with pytest.raises(SignerError, match=r"The PKCS#11 module can't be loaded\. .*signers\.pkcs11\.module"):
        await signer.create_ca(CA_REQUEST)
    await signer.close()


async def test_a_missing_token_is_temporary(token: tokens.SoftToken) -> None:
    """The token's device may be restarting."""
    async with signer_of(token, token="later") as signer:
        with pytest.raises(
            Unavailable, match=r"The token later is not available \(.*CKR_TOKEN_NOT_PRESENT\)"
        ):
            await signer.create_ca(CA_REQUEST)
        tokens.add_token(token, "later")
        await issue(signer, await signer.create_ca(CA_REQUEST))


async def test_two_tokens_with_one_label_are_told_apart_by_serial(token: tokens.SoftToken) -> None:
    serial = serial_of(token)
    tokens.add_token(token, tokens.LABEL)
    async with signer_of(token) as signer:
        with pytest.raises(SignerError, match=f"2 tokens have the label clustercert.*{serial}"):
            await signer.create_ca(CA_REQUEST)
    async with signer_of(token, serial=serial) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        assert serial in (await signer.custody(ca)).location


@pytest.mark.parametrize("mode", [0o640, 0o604])
async def test_a_pin_file_for_others_is_refused(token: tokens.SoftToken, mode: int) -> None:
    token.pin_file.chmod(mode)
    async with signer_of(token) as signer:
        with pytest.raises(
            SignerError, match=f"is accessible by other users. Run `chmod 600 {token.pin_file}`"
        ):
            await signer.create_ca(CA_REQUEST)


async def test_a_wrong_pin_is_tried_once_until_the_file_changes(token: tokens.SoftToken) -> None:
    token.pin_file.write_text("hunter2")
    with captured_logs(token_sessions) as logs:
        async with signer_of(token) as signer:
            with pytest.raises(SignerError, match=r"refused the PIN \(C_Login: CKR_PIN_INCORRECT\)") as first:
                await signer.create_ca(CA_REQUEST)
            failures = await asyncio.gather(
                *(signer.create_ca(CA_REQUEST) for _ in range(20)), return_exceptions=True
            )
            texts = {str(each) for each in failures}
            (text,) = texts
            assert "the service does not try again until" in text
            token.pin_file.write_text(tokens.PIN)
            await issue(signer, await signer.create_ca(CA_REQUEST))
    refusals = [line for line in logs if "refused the PIN" in line["event"]]
    assert [(line["label"], line["cause"]) for line in refusals] == [
        (tokens.LABEL, "C_Login: CKR_PIN_INCORRECT")
    ]
    assert "hunter2" not in f"{logs}{texts}{first.value}"


@pytest.mark.parametrize(
    ("state", "message"),
    [("is_final_try", "locks itself after one more wrong PIN"), ("is_pin_locked", "is locked")],
)
def test_the_last_attempt_is_left_to_the_operator(token: tokens.SoftToken, state: str, message: str) -> None:
    settings = TokenAddress(token.module, tokens.LABEL, None, token.pin_file)
    with tokens.environment(token):
        module = Cryptoki(token.module)
        module.initialize()
        (found,) = (each for each in module.tokens() if each.label == tokens.LABEL)
        session = module.open_session(found.slot)
        with pytest.raises(SignerError, match=message):
            Login(settings).log_in(session, replace(found, **{state: True}))  # type: ignore[arg-type] # flags
        assert not session.is_logged_in()
        Login(settings).log_in(session, found)
        assert session.is_logged_in()
        module.finalize()


# Failing tokens


@pytest.fixture
def hsm(token: tokens.SoftToken) -> Iterator[tokens.NetworkHsm]:
    with tokens.NetworkHsm(token) as hsm:
        yield hsm


async def failures_of(signer: LimitedSigner, ca: ClientCA, calls: int) -> list[BaseException]:
    results = await asyncio.gather(*(issue(signer, ca) for _ in range(calls)), return_exceptions=True)
    return [result for result in results if result is not None]


@tokens.needs_network_hsm
async def test_a_killed_daemon_is_unavailable_until_it_is_back(hsm: tokens.NetworkHsm) -> None:
    async with signer_of(hsm.token) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        with captured_logs(token_sessions) as logs:
            for _ in range(3):
                assert await failures_of(signer, ca, 20) == []
                hsm.kill()
                failures = await failures_of(signer, ca, 20)
                assert len(failures) == 20
                for failure in failures:
                    assert isinstance(failure, Unavailable)
                    assert failure.retry_after == 1
                hsm.start()
                # Nothing is lost: each thread connects again.
                assert await failures_of(signer, ca, 20) == []
    events = [line["event"] for line in logs]
    assert "PKCS#11 token not available" in events
    assert events[-1] == "PKCS#11 token available again"
    assert tokens.PIN not in str(logs)


@tokens.needs_network_hsm
async def test_a_daemon_that_was_restarted_meanwhile_is_not_noticed(hsm: tokens.NetworkHsm) -> None:
    async with signer_of(hsm.token) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        for _ in range(3):
            assert await failures_of(signer, ca, 20) == []
            hsm.kill()
            hsm.start()
            assert await failures_of(signer, ca, 20) == []
            assert (await signer.custody(ca)).proof["CKA_SENSITIVE"] == "true"


@tokens.needs_network_hsm
async def test_a_token_that_is_away_at_first_is_used_when_it_is_there(hsm: tokens.NetworkHsm) -> None:
    hsm.kill()
    async with signer_of(hsm.token) as signer:
        with pytest.raises(Unavailable):
            await signer.create_ca(CA_REQUEST)
        hsm.start()
        await issue(signer, await signer.create_ca(CA_REQUEST))


async def test_closed_sessions_are_opened_again(token: tokens.SoftToken) -> None:
    """As by an HSM that ends idle sessions."""
    async with signer_of(token, threads=1) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        module = Cryptoki(token.module)
        closed = 0
        # Handles of SoftHSM are small numbers.
        for handle in range(20):
            with suppress(CryptokiError):
                CryptokiSession(module, handle).close()
                closed += 1
        assert closed == 1
        await issue(signer, ca)


async def test_a_module_that_other_code_finalised_is_initialised_again(token: tokens.SoftToken) -> None:
    async with signer_of(token, threads=2) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        assert await failures_of(signer, ca, 10) == []
        module = Cryptoki(token.module)
        module.finalize()
        assert await failures_of(signer, ca, 10) == []
        module.finalize()
        # Sessions of the other code: the token's user is logged out, and all handles are other ones.
        module.initialize()
        assert await failures_of(signer, ca, 10) == []


async def test_a_key_that_somebody_deleted_is_missed(token: tokens.SoftToken) -> None:
    async with signer_of(token) as signer:
        ca, other = [await signer.create_ca(CA_REQUEST) for _ in range(2)]
        await issue(signer, ca)
        module = Cryptoki(token.module)
        (slot,) = (each.slot for each in module.tokens() if each.label == tokens.LABEL)
        session = module.open_session(slot)
        session.destroy(*session.find(ObjectClass.PRIVATE_KEY, bytes.fromhex(ca.id)))
        with pytest.raises(SignerError, match=f"has no private keys with the id {ca.id}"):
            await issue(signer, ca)
        await issue(signer, other)


async def new_ca(token: tokens.SoftToken) -> ClientCA:
    async with signer_of(token, timeout=60) as signer:
        return await signer.create_ca(CA_REQUEST)


async def wait_until_all_succeed(signer: LimitedSigner, ca: ClientCA) -> None:
    while await failures_of(signer, ca, 12):
        await asyncio.sleep(0.05)


@tokens.needs_network_hsm
async def test_a_stopped_daemon_occupies_a_bounded_number_of_threads(hsm: tokens.NetworkHsm) -> None:
    ca = await new_ca(hsm.token)
    async with signer_of(hsm.token, threads=3, queue=10, timeout=1) as signer:
        await wait_until_all_succeed(signer, ca)
        hsm.stop()
        failures = await failures_of(signer, ca, 40)
        assert len(failures) == 40
        assert {type(failure) for failure in failures} == {Unavailable}
        texts = [str(failure) for failure in failures]
        # 3 calls hang, 10 wait, and the others are refused at once.
        assert sum("Too many requests are waiting" in text for text in texts) == 27
        # Once all threads hang, calls don't even wait.
        later = [str(failure) for _ in range(3) for failure in await failures_of(signer, ca, 3)]
        assert "all calls to its PKCS#11 module hang" in later[-1]
        assert len(signer_threads()) == 3
        hsm.resume()
        await wait_until_all_succeed(signer, ca)


@pytest.mark.full
@tokens.needs_network_hsm
async def test_a_daemon_that_is_killed_while_it_is_stopped_comes_back(hsm: tokens.NetworkHsm) -> None:
    ca = await new_ca(hsm.token)
    async with signer_of(hsm.token, threads=2, queue=20, timeout=1) as signer:
        await wait_until_all_succeed(signer, ca)
        hsm.stop()
        assert len(await failures_of(signer, ca, 6)) == 6
        hsm.kill()
        hsm.start()
        await wait_until_all_succeed(signer, ca)


@tokens.needs_network_hsm
async def test_closing_does_not_wait_for_calls_that_hang(hsm: tokens.NetworkHsm) -> None:
    ca = await new_ca(hsm.token)
    async with signer_of(hsm.token, threads=2, queue=20, timeout=1) as signer:
        await wait_until_all_succeed(signer, ca)
        hsm.stop()
        assert len(await failures_of(signer, ca, 4)) == 4
    # Closed, although both threads still hang.
    hanging = signer_threads()
    assert len(hanging) == 2
    hsm.kill()
    for thread in hanging:
        thread.join()


@tokens.needs_network_hsm
async def test_another_signer_signs_while_the_daemon_is_stopped(hsm: tokens.NetworkHsm) -> None:
    ca = await new_ca(hsm.token)
    local = local_signer(SignerContext({}, RingSealer()))
    local_ca = await local.create_ca(CA_REQUEST)
    async with signer_of(hsm.token, threads=2, timeout=60) as signer:
        await issue(signer, ca)
        hsm.stop()
        hanging = [asyncio.create_task(issue(signer, ca)) for _ in range(50)]
        for _ in range(100):
            await issue(local, local_ca)
        assert not any(task.done() for task in hanging)
        hsm.resume()
        await asyncio.gather(*hanging)


# Processes and load


async def test_a_forked_child_does_not_use_the_module_of_its_parent(token: tokens.SoftToken) -> None:
    async with signer_of(token) as signer:
        ca = await signer.create_ca(CA_REQUEST)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            # The loop belongs to the parent, so run the coroutine by hand: it fails before it waits for anything.
            texts = []
            for each in (signer, pkcs11_signer(SignerContext(token.settings(), RingSealer()))):
                try:
                    asyncio.new_event_loop().run_until_complete(each.sign(asked(ca)))
                except BaseException as error:  # noqa: BLE001 - the parent looks at it
                    texts.append(f"{type(error).__name__}: {error}")
            os.write(write, "\n".join(texts).encode())
            os._exit(0)
        os.close(write)
        answers = os.read(read, 4096).decode().splitlines()
        os.waitpid(child, 0)  # noqa: ASYNC222 - the child has ended
        os.close(read)
        assert len(answers) == 2
        for answer in answers:
            assert answer.startswith("SignerError: This process has inherited an open PKCS#11 module"), answer
        await issue(signer, ca)


@pytest.mark.full
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.long), 8])
async def test_many_signatures_leave_no_handle_behind(token: tokens.SoftToken, threads: int) -> None:
    """`python -m bench pkcs11` does the same with 8 times 10,000 signatures, and 100,000 in a row."""
    async with signer_of(token, threads=threads) as signer:
        ca = await signer.create_ca(CA_REQUEST)

        async def many() -> None:
            for _ in range(2000 // threads):
                await issue(signer, ca)

        await asyncio.gather(*(many() for _ in range(threads)))
        files = len(list(Path("/proc/self/fd").iterdir()))
        await asyncio.gather(*(many() for _ in range(threads)))
        assert len(list(Path("/proc/self/fd").iterdir())) == files
        assert len(signer_threads()) == threads
    assert signer_threads() == []


async def test_a_ca_with_another_key_is_refused_by_the_check_of_the_leaf(token: tokens.SoftToken) -> None:
    async with signer_of(token) as signer:
        one, two = [await signer.create_ca(CA_REQUEST) for _ in range(2)]
        request = asked(replace(one, id=two.id))
        chain = await signer.sign(request)
        with pytest.raises(SignerError, match="does not verify against the cluster's client CA"):
            check_leaf(chain, request)
