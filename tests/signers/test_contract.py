"""The contract of signers, run against each kind of signer. A new kind needs a line in KINDS."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import pytest
from cryptography import x509

from clustercert.issuance.signers.ca_keys import KeySigner
from clustercert.issuance.signers.local import LocalKeys, local_signer
from clustercert.issuance.signers.pkcs11 import pkcs11_signer
from clustercert.issuance.signers.transit import transit_signer
from clustercert.model import ClientCA, Grant, KeyType, SigningRequest
from clustercert.model.clusters import Registration
from clustercert.model.errors import (
    InvalidRequest,
    NotFound,
    RemoteFailed,
    SignerError,
    Unavailable,
    UnsealError,
)
from clustercert.pki.crl import CrlContent, CrlEntry, check_crl
from clustercert.pki.keys import key_der, new_key
from clustercert.pki.leaf import check_leaf, new_signing_request
from clustercert.pki.signer import CaRequest, Signer, SignerContext
from clustercert.settings import Settings, SettingsError
from clustercert.wiring.signers import Signers
from support import openbao, tokens
from support.apiserver import ApiServer
from support.leaf_checks import assert_client_leaf, assert_cluster_leaf, spki
from support.openbao import RealOpenBao
from support.ring_sealer import RingSealer
from support.samples import CA_NOT_BEFORE, CLUSTER_ID, ISSUED_AT, NOW, USER_ID, client_ca, grant
from support.signing_cluster import (
    MemoryClusters,
    first_token,
    give_access,
    new_signer,
    registration_of,
    requests_in,
)

REGISTRATION = Registration("prod", "https://10.0.0.5:6443", b"")


@dataclass
class Kind:
    """A signer, a CA that it signs for, and the same CA with its key out of the signer's reach.

    `key_types` are the types of keys that the signer can create. `registration` and `secret` are what it needs to
    create a CA. `stored` stores a CA that it created, as the service does.
    """

    signer: Signer
    ca: ClientCA
    lost: ClientCA
    key_types: tuple[KeyType, ...] = get_args(KeyType)
    registration: Registration = REGISTRATION
    secret: bytes | None = None
    stored: Callable[[ClientCA], object] = lambda _ca: None

    def ca_request(self, key_type: KeyType) -> CaRequest:
        return replace(ca_request(key_type), registration=self.registration, secret=self.secret)

    def request(
        self, grant: Grant, key_type: KeyType = "ec-p256", ca: ClientCA | None = None
    ) -> SigningRequest:
        """A request as the service makes it for the signer."""
        key, signer = LEAF_KEYS[key_type], self.signer
        return new_signing_request(
            grant,
            key.public_key(),
            ca or self.ca,
            takes_serial=signer.takes_serial,
            profile=signer.profile,
            private_key=key,
        )


def local(ca_key_type: KeyType) -> Kind:
    ring, key = RingSealer(), new_key(ca_key_type)
    ca = client_ca(key)
    sealed = ring.ring.seal(key_der(key), f"client_ca:{ca.id}")
    return Kind(
        KeySigner("local", LocalKeys(ring)),
        replace(ca, sealed_key=sealed),
        replace(ca, id="e" * 32, sealed_key=None),
    )


@asynccontextmanager
async def pkcs11(folder: Path) -> AsyncIterator[Kind]:
    tokens.require_softhsm()
    token = tokens.new_token(folder)
    with tokens.environment(token):
        signer = pkcs11_signer(SignerContext(token.settings(), RingSealer()))
        ca = await signer.create_ca(ca_request("ec-p256"))
        yield Kind(
            signer,
            ca,
            replace(ca, id="e" * 32),
            key_types=tuple(each for each in get_args(KeyType) if each != "ed25519"),
        )
        await signer.close()


@asynccontextmanager
async def csr_api(folder: Path) -> AsyncIterator[Kind]:
    with ApiServer(folder) as double:
        give_access(double)
        double.now = lambda: NOW
        clusters, registration, secret = MemoryClusters(double), registration_of(double), first_token(double)
        signer = new_signer(double, clusters, RingSealer())
        ca = await signer.create_ca(replace(ca_request("ec-p256"), registration=registration, secret=secret))
        lost = replace(ca, id="e" * 32)
        yield Kind(signer, clusters.store(ca), lost, (), registration, secret, clusters.store)
        await signer.close()
        assert requests_in(double) == []


@asynccontextmanager
async def transit(server: RealOpenBao) -> AsyncIterator[Kind]:
    signer = transit_signer(SignerContext(server.new_signer(), RingSealer()))
    ca = await signer.create_ca(ca_request("ec-p256"))
    yield Kind(
        signer,
        ca,
        replace(ca, id="e" * 32),
        key_types=tuple(each for each in get_args(KeyType) if each != "ed25519"),
    )
    await signer.close()


@pytest.fixture(scope="module")
def openbao_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOpenBao]:
    with openbao.running(tmp_path_factory.mktemp("openbao") / "server") as server:
        yield server


def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("tmp_path")
    return path


def server(request: pytest.FixtureRequest) -> RealOpenBao:
    found: RealOpenBao = request.getfixturevalue("openbao_server")
    return found


KINDS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Kind]]] = {
    "local": lambda _: nullcontext(local("ec-p256")),
    "csr_api": lambda request: csr_api(folder(request)),
    "pkcs11": lambda request: pkcs11(folder(request)),
    "transit": lambda request: transit(server(request)),
}
# The signer `transit` needs a real OpenBao.
PARAMETERS = [pytest.param(name, marks=pytest.mark.full if name == "transit" else ()) for name in KINDS]
# Making such a key takes seconds.
LARGE: tuple[KeyType, ...] = ("rsa-3072", "rsa-4096")


CRL = CrlContent(
    [CrlEntry("0a" * 20, ISSUED_AT, "keyCompromise")],
    7 << 40,
    this_update=ISSUED_AT,
    next_update=ISSUED_AT + timedelta(days=1),
)
LEAF_KEYS = {key_type: new_key(key_type) for key_type in get_args(KeyType)}


CA_LIFETIME = timedelta(days=3650)


def ca_request(key_type: KeyType) -> CaRequest:
    return CaRequest(CLUSTER_ID, REGISTRATION, key_type, CA_NOT_BEFORE, CA_LIFETIME)


@pytest.fixture(params=PARAMETERS)
async def kind(request: pytest.FixtureRequest) -> AsyncIterator[Kind]:
    async with KINDS[request.param](request) as kind:
        yield kind


def asked(kind: Kind, key_type: KeyType = "ec-p256", **changed: object) -> SigningRequest:
    """A request as the service makes it for the signer; the fields of a grant may be changed."""
    wanted = replace(grant(), **changed)  # type: ignore[arg-type] # as the tests say
    return kind.request(wanted, key_type)


@pytest.mark.parametrize("key_type", LEAF_KEYS)
@pytest.mark.parametrize("ca_key_type", ["ec-p256", "ec-p384", "ed25519", "rsa-2048"])
async def test_local_answers_leaves_of_all_types_from_cas_of_all_types(
    ca_key_type: KeyType, key_type: KeyType
) -> None:
    kind = local(ca_key_type)
    await assert_it_answers_the_leaf_that_was_asked_for(kind, key_type)
    check_crl(await kind.signer.sign_crl(kind.ca, CRL), kind.ca.ca_certificate, CRL)


async def test_it_answers_the_leaf_that_was_asked_for(kind: Kind) -> None:
    # A CSR for a cluster is signed with the leaf's key.
    key_types: tuple[KeyType, ...] = tuple(LEAF_KEYS) if kind.signer.is_ca_of_cluster else ("ec-p256",)
    for key_type in key_types:
        await assert_it_answers_the_leaf_that_was_asked_for(kind, key_type)


async def assert_it_answers_the_leaf_that_was_asked_for(kind: Kind, key_type: KeyType) -> None:
    groups = ("clustercert:admins", "a group, with a comma")
    request = asked(kind, key_type, groups=groups)
    chain = await kind.signer.sign(request)
    assert check_leaf(chain, request).der == chain[0]
    leaf = x509.load_der_x509_certificate(chain[0])
    assert_leaf = assert_client_leaf if kind.signer.profile == "own" else assert_cluster_leaf
    assert_leaf(
        leaf,
        ca=kind.ca.ca_certificate,
        username=USER_ID,
        groups=groups,
        issued_at=NOW,
        lifetime=timedelta(days=30),
        credential_number=request.credential_number,
    )
    if kind.signer.takes_serial:
        assert f"{leaf.serial_number:040x}" == request.credential_number
    assert spki(leaf.public_key()) == spki(LEAF_KEYS[key_type].public_key())


async def test_it_leaves_out_the_root(kind: Kind) -> None:
    chain = await kind.signer.sign(asked(kind))
    certificates = [x509.load_der_x509_certificate(der) for der in chain]
    assert all(certificate.issuer != certificate.subject for certificate in certificates)


async def test_a_signer_that_takes_serials_uses_the_requested_one(kind: Kind) -> None:
    if not kind.signer.takes_serial:
        assert asked(kind).serial is None
        return
    request = replace(asked(kind), serial=2**158 + 1)
    chain = await kind.signer.sign(request)
    assert check_leaf(chain, request).serial == 2**158 + 1
    assert x509.load_der_x509_certificate(chain[0]).serial_number == 2**158 + 1


async def test_it_signs_for_many_at_once(kind: Kind) -> None:
    requests = [asked(kind, username=f"user-{number}") for number in range(20)]
    chains = await asyncio.gather(*(kind.signer.sign(request) for request in requests))
    leaves = [check_leaf(chain, request) for chain, request in zip(chains, requests, strict=True)]
    assert len({leaf.serial for leaf in leaves}) == len(chains)
    for leaf in leaves:
        assert x509.load_der_x509_certificate(leaf.der).serial_number == leaf.serial


async def test_it_fails_in_one_of_three_ways(kind: Kind) -> None:
    with pytest.raises((SignerError, RemoteFailed, Unavailable)):
        await kind.signer.sign(replace(asked(kind), ca=kind.lost))


async def test_a_failure_leaves_it_as_it_was(kind: Kind) -> None:
    with pytest.raises((SignerError, RemoteFailed, Unavailable)):
        await kind.signer.sign(replace(asked(kind), ca=kind.lost))
    request = asked(kind)
    check_leaf(await kind.signer.sign(request), request)


@pytest.mark.parametrize(
    "key_type",
    [pytest.param(each, marks=pytest.mark.full if each in LARGE else ()) for each in get_args(KeyType)],
)
async def test_a_ca_that_it_creates_signs_leaves_and_crls(kind: Kind, key_type: KeyType) -> None:
    if kind.signer.is_ca_of_cluster:
        ca = await kind.signer.create_ca(kind.ca_request(key_type))
        kind.stored(ca)
        assert ca.id != kind.ca.id
        assert ca.certificate == kind.ca.certificate
        request = kind.request(grant(), ca=ca)
        check_leaf(await kind.signer.sign(request), request)
        return
    if key_type not in kind.key_types:
        with pytest.raises(InvalidRequest, match=key_type):
            await kind.signer.create_ca(ca_request(key_type))
        return
    ca, other = [await kind.signer.create_ca(ca_request(each)) for each in (key_type, "ec-p256")]
    assert ca.id != other.id
    assert ca.ca_certificate.subject != other.ca_certificate.subject
    assert (ca.cluster_id, ca.state) == (CLUSTER_ID, "active")
    assert ca.ca_certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.ca_certificate.not_valid_before_utc == CA_NOT_BEFORE
    assert ca.not_after == CA_NOT_BEFORE + CA_LIFETIME
    request = kind.request(grant(), ca=ca)
    check_leaf(await kind.signer.sign(request), request)
    check_crl(await kind.signer.sign_crl(ca, CRL), ca.ca_certificate, CRL)


async def test_it_signs_the_crl_that_was_asked_for(kind: Kind) -> None:
    if kind.signer.is_ca_of_cluster:
        with pytest.raises(NotFound, match="no CRL"):
            await kind.signer.sign_crl(kind.ca, CRL)
        return
    der = await kind.signer.sign_crl(kind.ca, CRL)
    check_crl(der, kind.ca.ca_certificate, CRL)
    (revoked,) = x509.load_der_x509_crl(der)
    assert revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason.value == "keyCompromise"


async def test_a_crl_of_a_ca_without_its_key_fails(kind: Kind) -> None:
    with pytest.raises((NotFound, SignerError, RemoteFailed, Unavailable)):
        await kind.signer.sign_crl(kind.lost, CRL)


async def test_it_says_where_a_key_is(kind: Kind) -> None:
    custody = await kind.signer.custody(kind.ca)
    assert custody.location
    assert "\n" not in custody.location
    with pytest.raises((SignerError, RemoteFailed, Unavailable)):
        await kind.signer.custody(kind.lost)


async def test_a_deleted_key_signs_nothing_more(kind: Kind) -> None:
    await kind.signer.sign(asked(kind))
    first, second = [await kind.signer.delete_key(kind.ca) for _ in range(2)]
    assert first.endswith(".")
    assert second.endswith(".")
    # Whoever deletes a key deletes its sealed form, too.
    deleted = replace(kind.ca, sealed_key=None)
    with pytest.raises((SignerError, RemoteFailed, Unavailable)):
        await kind.signer.sign(replace(asked(kind), ca=deleted))
    with pytest.raises((SignerError, RemoteFailed, Unavailable)):
        await kind.signer.custody(deleted)


# The local signer's own


def test_local_refuses_settings() -> None:
    with pytest.raises(ValueError, match="no setting pin") as refused:
        local_signer(SignerContext({"pin": "1234"}, RingSealer()))
    assert "1234" not in str(refused.value)


async def test_local_opens_a_key_once() -> None:
    ring, key = RingSealer(), new_key("ec-p256")
    ca = client_ca(key)
    ca = replace(ca, sealed_key=ring.ring.seal(key_der(key), f"client_ca:{ca.id}"))
    kind = Kind(local_signer(SignerContext({}, ring)), ca, ca)
    for _ in range(3):
        await kind.signer.sign(asked(kind))
    assert ring.opened == 1


async def test_local_keeps_the_keys_of_the_cas_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, key = RingSealer(), new_key("ec-p256")
    # So that the test needs no thousands of keys.
    monkeypatch.setattr(LocalKeys, "MAX_OPEN_KEYS", 2)
    signer = local_signer(SignerContext({}, ring))
    cas = [
        replace(
            client_ca(key), id=f"{n:032x}", sealed_key=ring.ring.seal(key_der(key), f"client_ca:{n:032x}")
        )
        for n in range(3)
    ]
    for ca in (cas[0], cas[1], cas[0], cas[2], cas[0]):
        await signer.sign(SigningRequest(grant(), LEAF_KEYS["ec-p256"].public_key(), ca))
    assert ring.opened == 3
    await signer.sign(SigningRequest(grant(), LEAF_KEYS["ec-p256"].public_key(), cas[1]))
    assert ring.opened == 4


async def test_local_refuses_a_key_that_was_sealed_for_another_ca() -> None:
    """A sealed key that is moved to another row signs nothing there."""
    kind = local("ec-p256")
    moved = replace(kind.ca, id="a" * 32)
    with pytest.raises((SignerError, UnsealError)):
        await kind.signer.sign(SigningRequest(grant(), LEAF_KEYS["ec-p256"].public_key(), moved))


def test_the_built_in_signer_is_found_by_its_entry_point() -> None:
    (point,) = entry_points(group="clustercert.signers", name="local")
    assert point.load() is local_signer


@pytest.mark.parametrize(
    ("signers", "message"),
    [
        ({"local": {"pin": "1234"}}, "signers.local: the local signer has no setting pin; remove it."),
        ({"hsm": {}}, "signers.hsm: this signer is not installed. Installed: {}."),
    ],
)
def test_settings_that_no_signer_takes_are_refused(
    signers: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        Signers(Settings(signers=signers).signers, RingSealer())
    installed = sorted(point.name for point in entry_points(group="clustercert.signers"))
    assert refused.value.message == message.format(", ".join(installed))
    assert "1234" not in repr(Settings(signers=signers))
