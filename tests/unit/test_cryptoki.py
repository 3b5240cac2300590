"""The binding of PKCS#11, with SoftHSM."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from clustercert.pki.cryptoki import (
    Attribute,
    Cryptoki,
    CryptokiError,
    CryptokiSession,
    Mechanism,
    ObjectClass,
    Template,
)
from clustercert.pki.cryptoki_codes import CKR, return_value_name
from support import tokens

P256 = bytes.fromhex("06082a8648ce3d030107")
DIGEST = sha256(b"statement").digest()

pytestmark = tokens.needs_softhsm


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tokens.SoftToken:
    token = tokens.new_token(tmp_path_factory.mktemp("token"))
    tokens.add_token(token, "other")
    return token


@pytest.fixture
def cryptoki(token: tokens.SoftToken) -> Iterator[Cryptoki]:
    with tokens.environment(token):
        module = Cryptoki(token.module)
        module.initialize()
        yield module
        module.finalize()


def slot_of(cryptoki: Cryptoki, label: str = tokens.LABEL) -> int:
    (slot,) = (token.slot for token in cryptoki.tokens() if token.label == label)
    return slot


@pytest.fixture
def session(cryptoki: Cryptoki) -> CryptokiSession:
    session = cryptoki.open_session(slot_of(cryptoki))
    session.login(tokens.PIN.encode())
    return session


def new_key(session: CryptokiSession, key_id: bytes) -> tuple[int, int]:
    common: Template = {Attribute.TOKEN: True, Attribute.ID: key_id}
    return session.generate_key_pair(
        Mechanism.EC_KEY_PAIR_GEN,
        {**common, Attribute.EC_PARAMS: P256, Attribute.VERIFY: True},
        {**common, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.SIGN: True},
    )


def verify(session: CryptokiSession, public: int, signature: bytes) -> None:
    point = session.read(public, Attribute.EC_POINT)[2:]
    numbers = (int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    key.verify(encode_dss_signature(*numbers), DIGEST, ec.ECDSA(Prehashed(SHA256())))


def test_return_values_have_their_names() -> None:
    assert return_value_name(0x30) == "CKR_DEVICE_ERROR"
    assert return_value_name(0x190) == "CKR_CRYPTOKI_NOT_INITIALIZED"
    assert return_value_name(0x80000001) == "return value 0x80000001"
    assert str(CryptokiError("C_Login", CKR.PIN_INCORRECT)) == "C_Login: CKR_PIN_INCORRECT"


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-file"):
        Cryptoki(tmp_path / "no-such-file")
    with pytest.raises(OSError, match="has no function C_GetFunctionList"):
        Cryptoki(Path("libc.so.6"))


def test_tokens_are_listed_with_label_and_serial(cryptoki: Cryptoki) -> None:
    found = {token.label: token for token in cryptoki.tokens()}
    # SoftHSM has one more token, not initialised.
    assert found.keys() == {tokens.LABEL, "other", ""}
    assert len(found[tokens.LABEL].serial) == 16
    assert not found[tokens.LABEL].is_pin_locked
    assert not found[tokens.LABEL].is_final_try


@pytest.mark.parametrize("value", [CKR.TOKEN_NOT_PRESENT, CKR.TOKEN_NOT_RECOGNIZED])
def test_a_token_that_the_module_can_not_read_is_left_out(cryptoki: Cryptoki, value: CKR) -> None:
    other, token_info = slot_of(cryptoki, "other"), cryptoki._functions["C_GetTokenInfo"]

    def without_other(slot: int, info: object) -> object:
        return value if slot == other else token_info(slot, info)

    cryptoki._functions["C_GetTokenInfo"] = without_other  # type: ignore[assignment] # it is called alike
    assert {token.label for token in cryptoki.tokens()} == {tokens.LABEL, ""}


def test_a_login_is_valid_for_all_sessions_with_the_token(cryptoki: Cryptoki) -> None:
    first, other = (cryptoki.open_session(slot_of(cryptoki, label)) for label in (tokens.LABEL, "other"))
    assert not first.is_logged_in()
    first.login(tokens.PIN.encode())
    second = cryptoki.open_session(slot_of(cryptoki))
    assert second.is_logged_in()
    second.login(tokens.PIN.encode())
    assert not other.is_logged_in()


def test_a_wrong_pin_is_named_and_not_shown(cryptoki: Cryptoki) -> None:
    session = cryptoki.open_session(slot_of(cryptoki))
    with pytest.raises(CryptokiError) as refused:
        session.login(b"hunter2")
    assert refused.value.value == CKR.PIN_INCORRECT
    assert str(refused.value) == "C_Login: CKR_PIN_INCORRECT"


def test_a_generated_key_signs(session: CryptokiSession) -> None:
    public, private = new_key(session, b"one")
    verify(session, public, session.sign(private, Mechanism.ECDSA, DIGEST))
    for attribute in (Attribute.SENSITIVE, Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE):
        assert session.read(private, attribute) == b"\1"
    assert session.read(private, Attribute.EXTRACTABLE) == b"\0"


def test_keys_are_found_by_id_until_they_are_destroyed(cryptoki: Cryptoki, session: CryptokiSession) -> None:
    public, private = new_key(session, b"two")
    new_key(session, b"three")
    other = cryptoki.open_session(slot_of(cryptoki))
    assert other.find(ObjectClass.PRIVATE_KEY, b"two") == [private]
    assert other.find(ObjectClass.PUBLIC_KEY, b"two") == [public]
    session.destroy(private)
    session.destroy(public)
    assert other.find(ObjectClass.PRIVATE_KEY, b"two") == []
    assert other.find(ObjectClass.PUBLIC_KEY, b"two") == []


def test_an_attribute_that_a_key_has_not_is_an_error(session: CryptokiSession) -> None:
    _, private = new_key(session, b"four")
    with pytest.raises(CryptokiError, match="C_GetAttributeValue: CKR_ATTRIBUTE_TYPE_INVALID"):
        session.read(private, Attribute.MODULUS)


def test_a_closed_session_is_an_error(session: CryptokiSession) -> None:
    session.close()
    with pytest.raises(CryptokiError, match="CKR_SESSION_HANDLE_INVALID"):
        session.find(ObjectClass.PRIVATE_KEY, b"one")


def test_a_module_that_is_finalised_is_an_error(cryptoki: Cryptoki, session: CryptokiSession) -> None:
    cryptoki.finalize()
    with pytest.raises(CryptokiError, match="CKR_CRYPTOKI_NOT_INITIALIZED"):
        session.is_logged_in()
    cryptoki.initialize()


def test_threads_sign_at_once_with_a_session_each(cryptoki: Cryptoki, session: CryptokiSession) -> None:
    public, private = new_key(session, b"five")
    signatures: list[bytes] = []

    def sign() -> None:
        own = cryptoki.open_session(slot_of(cryptoki))
        signatures.extend(own.sign(private, Mechanism.ECDSA, DIGEST) for _ in range(250))
        own.close()

    threads = [threading.Thread(target=sign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 2000
    for signature in signatures:
        verify(session, public, signature)


def initialize_proxy(module: Cryptoki) -> None:
    """The proxy keeps broken connections of earlier tests in this process, and drops one in each attempt."""
    for _ in range(64):
        with suppress(CryptokiError):
            return module.initialize()
    return module.initialize()


@tokens.needs_network_hsm
def test_the_binding_works_through_another_module(token: tokens.SoftToken) -> None:
    with tokens.NetworkHsm(token) as hsm, tokens.environment(hsm.token):
        module = Cryptoki(hsm.token.module)
        initialize_proxy(module)
        session = module.open_session(slot_of(module))
        session.login(tokens.PIN.encode())
        public, private = new_key(session, b"six")
        verify(session, public, session.sign(private, Mechanism.ECDSA, DIGEST))
        hsm.kill()
        with pytest.raises(CryptokiError, match="C_SignInit: CKR_DEVICE_ERROR"):
            session.sign(private, Mechanism.ECDSA, DIGEST)
        module.finalize()
