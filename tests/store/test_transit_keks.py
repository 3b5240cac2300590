"""A key-encryption key in a real OpenBao: outages, tokens, two keys for each data key, and moves between them."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clustercert.background import running
from clustercert.custody import Custody
from clustercert.custody.keks import KekFile, write_new_kek_file
from clustercert.custody.sources import KekSource
from clustercert.custody.status import kek_statuses
from clustercert.custody.transit import TransitSource
from clustercert.http_client import Response
from clustercert.model import Actor, JsonObject
from clustercert.model.errors import Conflict, CustodyError, KeysUnavailable
from clustercert.pki import openbao as client
from clustercert.pki.envelope import data_key_id_of
from clustercert.pki.openbao import OpenBao, OpenBaoRefused, ServerUnavailable
from clustercert.pki.openbao_settings import OpenBaoSettings
from support import openbao
from support.log_capture import captured_logs
from support.openbao import KEK_POLICY, RealOpenBao
from support.stores import ORIGIN, Store, patient, sqlite_url
from support.stores import migrate as migrate_store
from support.wait import eventually_async

KEK = "transit/clustercert"
BY = Actor("cli:test", ORIGIN)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOpenBao]:
    with openbao.running(tmp_path_factory.mktemp("interrupted") / "openbao") as server:
        yield server


@pytest.fixture
def server(interrupted: RealOpenBao) -> RealOpenBao:
    """A server that works at first, whatever another test did to it."""
    interrupted.restore()
    return interrupted


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOpenBao]:
    """A server that no test interrupts."""
    with openbao.running(tmp_path_factory.mktemp("shared") / "openbao") as server:
        yield server


@pytest.fixture
def kek_file(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    write_new_kek_file(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(sqlite_url(tmp_path / "store.db"))
    migrate_store(store)
    return store


def settings_of(server: RealOpenBao, folder: Path, policy: str = KEK_POLICY) -> OpenBaoSettings:
    """Settings with a new token in a file."""
    token_file = folder / "token"
    token_file.unlink(missing_ok=True)
    token_file.touch(0o600)
    token_file.write_text(server.token(policy) + "\n")
    return OpenBaoSettings(url=server.url, token_file=token_file, ca_file=server.ca_file)


def transit(server: RealOpenBao, folder: Path) -> TransitSource:
    return TransitSource(settings_of(server, folder), "clustercert")


@asynccontextmanager
async def opened(store: Store, *sources: KekSource) -> AsyncIterator[Custody]:
    """Custody as in a new process. Its rotations don't wait for workers."""
    database = patient(store.url)
    custody = Custody(database, *sources)
    custody.RETRY_SECONDS = 0.02
    custody.rotation = replace(custody.rotation, propagation_seconds=0)
    try:
        if store.rows("SELECT id FROM data_key"):
            await custody.open()
        else:
            await custody.initialise()
        yield custody
    finally:
        await custody.close()
        await database.close()


def wrapped_by(store: Store) -> list[object]:
    return [kek for (kek,) in store.rows("SELECT kek_id FROM data_key_wrapping ORDER BY data_key_id, kek_id")]


async def test_a_data_key_is_wrapped_by_the_server_and_bound_to_its_id(
    shared: RealOpenBao, store: Store, tmp_path: Path
) -> None:
    async with opened(store, transit(shared, tmp_path)) as custody:
        sealed = await custody.seal(b"secret", "client_ca:1")
        await custody.rotation.rotate_data_key(actor=BY)
    assert wrapped_by(store) == [KEK, KEK]
    [(first,), (second,)] = store.rows("SELECT wrapped FROM data_key_wrapping ORDER BY data_key_id")
    assert isinstance(first, bytes)
    assert first.startswith(b"vault:v1:")
    async with opened(store, transit(shared, tmp_path)) as custody:
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"
    store.execute("UPDATE data_key_wrapping SET wrapped = ? WHERE data_key_id = 1", second)
    with pytest.raises(CustodyError, match="The database is damaged: data key 1 can't be decrypted"):
        async with opened(store, transit(shared, tmp_path)):
            pytest.fail("a data key was exchanged with another one")


async def test_a_missing_key_is_an_error_of_the_start(
    shared: RealOpenBao, store: Store, tmp_path: Path
) -> None:
    settings = settings_of(shared, tmp_path, KEK_POLICY.replace("clustercert", "missing"))
    with pytest.raises(KeysUnavailable) as caught:
        async with opened(store, TransitSource(settings, "missing")):
            pytest.fail("there is no such key")
    assert "transit/missing" in caught.value.reason
    assert "or the key does not exist" in caught.value.reason
    assert store.rows("SELECT id FROM data_key") == []


async def test_a_key_that_cannot_bind_is_refused(shared: RealOpenBao, store: Store, tmp_path: Path) -> None:
    shared.new_key("rsa", type="rsa-2048")
    policy = KEK_POLICY.replace("clustercert", "rsa")
    with pytest.raises(CustodyError, match=r"transit/rsa can't encrypt: .*type aes256-gcm96"):
        async with opened(store, TransitSource(settings_of(shared, tmp_path, policy), "rsa")):
            pytest.fail("an RSA key encrypts without associated data")


async def test_either_of_two_keys_opens_the_database(
    shared: RealOpenBao, store: Store, kek_file: Path, tmp_path: Path
) -> None:
    [kek] = KekFile(kek_file).read()
    async with opened(store, KekFile(kek_file), transit(shared, tmp_path)) as custody:
        sealed = await custody.seal(b"secret", "client_ca:1")
        await custody.rotation.rotate_data_key(actor=BY)
    assert wrapped_by(store) == [kek.id, KEK] * 2
    for source in (KekFile(kek_file), transit(shared, tmp_path)):
        async with opened(store, source) as custody:
            assert await custody.unseal(sealed, "client_ca:1") == b"secret"
    kek_file.unlink()
    async with opened(store, KekFile(kek_file), transit(shared, tmp_path)) as custody:
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"
        [file, server, lost] = await kek_statuses(custody.rotation.queries, custody.sources)
        assert "No such file" in file.problem
        assert (server.id, server.data_key_ids, server.problem) == (KEK, (1, 2), "")
        assert (lost.id, lost.source, lost.data_key_ids) == (kek.id, None, (1, 2))


async def test_data_keys_move_from_a_file_to_the_server_and_back(
    shared: RealOpenBao, store: Store, kek_file: Path, tmp_path: Path
) -> None:
    [old] = KekFile(kek_file).read()
    async with opened(store, KekFile(kek_file)) as custody:
        sealed = await custody.seal(b"secret", "client_ca:1")
    async with opened(store, KekFile(kek_file), transit(shared, tmp_path)) as custody:
        moved = await custody.rotation.rotate_kek(actor=BY)
        assert (moved.kek_ids, moved.added, moved.rewrapped) == ((old.id, KEK), (), 1)
        with pytest.raises(CustodyError, match=f"The key-encryption key {old.id} is in use"):
            await custody.rotation.retire([old.id], actor=BY)
    async with opened(store, transit(shared, tmp_path)) as custody:
        assert wrapped_by(store) == [old.id, KEK], "a recovery key outside the settings is kept"
        await custody.rotation.rotate_kek(actor=BY)
        assert wrapped_by(store) == [old.id, KEK]
        with pytest.raises(CustodyError, match=r"There is no key-encryption key ffff\."):
            await custody.rotation.retire(["ffff"], actor=BY)
        assert await custody.rotation.retire([old.id], actor=BY) == (old.id,)
        assert wrapped_by(store) == [KEK]
        assert store.events()[-1]["detail"] == {"kek_ids": [old.id]}
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"
    new_file = tmp_path / "new"
    new = write_new_kek_file(new_file)
    async with opened(store, KekFile(new_file), transit(shared, tmp_path)) as custody:
        await custody.rotation.rotate_kek(actor=BY)
        assert wrapped_by(store) == sorted([new.id, KEK])
    async with opened(store, KekFile(new_file)) as custody:
        assert await custody.rotation.retire([KEK], actor=BY) == (KEK,)
        assert wrapped_by(store) == [new.id]
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"
        with pytest.raises(CustodyError):
            await custody.rotation.retire([new.id], actor=BY)


async def test_a_key_that_alone_unwraps_a_data_key_is_not_retired(
    shared: RealOpenBao, store: Store, kek_file: Path, tmp_path: Path
) -> None:
    async with opened(store, transit(shared, tmp_path)):
        pass
    [kek] = KekFile(kek_file).read()
    async with opened(store, KekFile(kek_file), transit(shared, tmp_path)) as custody:
        database = patient(store.url)
        with pytest.raises(CustodyError, match=f"Only {KEK} wraps the data key 1"):
            await Custody(database, KekFile(kek_file)).rotation.retire([KEK], actor=BY)
        await database.close()
        assert wrapped_by(store) == [KEK]
        assert kek.id not in wrapped_by(store)
        assert await custody.rotation.retire(actor=BY) == ()


async def test_a_key_rotated_on_the_server_wraps_anew(
    shared: RealOpenBao, store: Store, tmp_path: Path
) -> None:
    shared.new_key("turned")
    policy = KEK_POLICY.replace("clustercert", "turned")
    async with opened(store, TransitSource(settings_of(shared, tmp_path, policy), "turned")) as custody:
        sealed = await custody.seal(b"secret", "client_ca:1")
        shared.request("POST", "transit/keys/turned/rotate")
        await custody.rotation.rotate_kek(actor=BY)
    [(wrapped,)] = store.rows("SELECT wrapped FROM data_key_wrapping")
    assert isinstance(wrapped, bytes)
    assert wrapped.startswith(b"vault:v2:")
    shared.request("POST", "transit/keys/turned/config", {"min_decryption_version": 2})
    async with opened(store, TransitSource(settings_of(shared, tmp_path, policy), "turned")) as custody:
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"


async def test_two_rotations_at_once_without_a_lock_leave_a_usable_database(
    shared: RealOpenBao, store: Store, tmp_path: Path
) -> None:
    source = transit(shared, tmp_path)
    async with opened(store, source) as one, opened(store, transit(shared, tmp_path)) as two:
        sealed = await one.seal(b"secret", "client_ca:1")
        done = await asyncio.gather(
            *(each.rotation.rotate_kek(actor=BY) for each in (one, two)), return_exceptions=True
        )
    assert [each for each in done if isinstance(each, BaseException) and not isinstance(each, Conflict)] == []
    assert wrapped_by(store) == [KEK]
    async with opened(store, transit(shared, tmp_path)) as custody:
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"


async def test_an_outage_stops_nothing_that_runs(server: RealOpenBao, store: Store, tmp_path: Path) -> None:
    async with (
        opened(store, transit(server, tmp_path)) as custody,
        opened(store, transit(server, tmp_path)) as other,
    ):
        sealed = await custody.seal(b"secret", "client_ca:1")
        # Another worker adds a data key, and the server fails before this worker notices.
        await other.rotation.rotate_data_key(actor=BY)
        new = await other.seal(b"new", "client_ca:2")
        assert data_key_id_of(new) == 2
        server.kill()
        for _ in range(3):
            assert await custody.unseal(sealed, "client_ca:1") == b"secret"
            assert data_key_id_of(await custody.seal(b"more", "client_ca:3")) == 1
            custody.require_opened()
            with pytest.raises(KeysUnavailable) as caught:
                await custody.unseal(new, "client_ca:2")
            assert caught.value.retry_after
            assert f"the key-encryption key {KEK} at {server.url} can't be used" in caught.value.reason
            assert server.url not in caught.value.message
        async with running("work", custody.watch):
            server.start()
            await eventually_async(lambda: len(custody._ring.data_keys) == 2)
            assert await custody.unseal(new, "client_ca:2") == b"new"
            assert data_key_id_of(await custody.seal(b"more", "client_ca:3")) == 2


def break_server(server: RealOpenBao, settings: OpenBaoSettings, fault: str) -> None:
    match fault:
        case "token revoked":
            server.revoke(settings.token_file.read_text().strip())
        case "no token":
            settings.token_file.unlink()
        case "policy":
            server.request(
                "PUT", "sys/policies/acl/test", {"policy": 'path "other" { capabilities = ["read"] }'}
            )
        case outage:
            server.interrupt(outage)


def repair(server: RealOpenBao, settings: OpenBaoSettings, fault: str) -> None:
    match fault:
        case "token revoked" | "no token":
            settings_of(server, settings.token_file.parent)
        case "policy":
            server.request("PUT", "sys/policies/acl/test", {"policy": KEK_POLICY})
        case outage:
            server.recover(outage)


@pytest.mark.parametrize("fault", ["killed", "suspended", "sealed", "token revoked", "no token", "policy"])
async def test_a_start_waits_until_the_server_is_back(
    server: RealOpenBao, store: Store, tmp_path: Path, fault: str
) -> None:
    async with opened(store, transit(server, tmp_path)) as custody:
        sealed = await custody.seal(b"secret", "client_ca:1")
    settings = settings_of(server, tmp_path)
    token = settings.token_file.read_text().strip()
    break_server(server, settings, fault)
    database = patient(store.url)
    custody = Custody(database, TransitSource(settings, "clustercert"))
    custody.RETRY_SECONDS = 0.02
    with captured_logs(client) as said:
        with pytest.raises(KeysUnavailable) as caught:
            await custody.open()
        for attempt in (custody.unseal(sealed, "client_ca:1"), custody.seal(b"secret", "client_ca:1")):
            with pytest.raises(KeysUnavailable):
                await attempt
        with pytest.raises(KeysUnavailable):
            custody.require_opened()
        assert KEK in caught.value.reason
        async with running("work", custody.watch):
            await asyncio.to_thread(repair, server, settings, fault)
            await eventually_async(lambda: custody._was_complete)
    assert await custody.unseal(sealed, "client_ca:1") == b"secret"
    custody.require_opened()
    assert any(line["event"] == "openbao not usable" for line in said)
    assert token not in f"{said} {caught.value.reason} {custody.sources[0]!r}"
    await custody.close()
    await database.close()


async def test_a_second_key_makes_the_start_independent_of_the_server(
    server: RealOpenBao, store: Store, kek_file: Path, tmp_path: Path
) -> None:
    sources = KekFile(kek_file), transit(server, tmp_path)
    async with opened(store, *sources) as custody:
        sealed = await custody.seal(b"secret", "client_ca:1")
    server.kill()
    async with opened(store, *sources) as custody:
        assert await custody.unseal(sealed, "client_ca:1") == b"secret"
        with pytest.raises(KeysUnavailable):
            await custody.rotation.rotate_data_key(actor=BY)
        assert store.rows("SELECT id FROM data_key") == [(1,)], "no data key lacks the server's key"
        [file, away] = await kek_statuses(custody.rotation.queries, custody.sources)
        assert (file.problem, file.data_key_ids) == ("", (1,))
        assert "can't be used" in away.problem


async def test_the_token_is_renewed_and_its_file_read_again(shared: RealOpenBao, tmp_path: Path) -> None:
    settings = settings_of(shared, tmp_path)

    def renewed(token: str) -> bool:
        found = shared.request("POST", "auth/token/lookup", {"token": token})["data"]
        return "last_renewal" in found

    server = OpenBao(settings, token_poll_seconds=0.02)
    body: JsonObject = {"plaintext": "AAAA"}
    await server.transit("POST", "encrypt/clustercert", body)
    first = settings.token_file.read_text().strip()
    await eventually_async(lambda: renewed(first))
    settings_of(shared, tmp_path)
    second = settings.token_file.read_text().strip()
    shared.revoke(first)
    await server.transit("POST", "encrypt/clustercert", body)
    await eventually_async(lambda: renewed(second))
    await server.close()


@pytest.mark.parametrize("options", [{"renewable": False}, {"explicit_max_ttl": "2h", "period": "1h"}])
async def test_a_token_that_ends_is_warned_of(
    shared: RealOpenBao, tmp_path: Path, options: dict[str, object]
) -> None:
    settings = settings_of(shared, tmp_path)
    made = shared._new_token(policies=["test"], ttl="1h", **options)
    settings.token_file.write_text(str(made["client_token"]))
    server = OpenBao(settings, token_poll_seconds=0.02)
    with captured_logs(client) as said:
        await server.transit("POST", "encrypt/clustercert", {"plaintext": "AAAA"})
        if not made["renewable"]:
            await eventually_async(
                lambda: [line for line in said if line["event"] == "openbao token can't be renewed"]
            )
        await server.close()
    assert str(made["client_token"]) not in str(said)


@pytest.mark.parametrize(
    ("mode", "content", "reason"),
    [
        (0o604, "s.token", "is accessible by all users; run `chmod 600"),
        (0o600, "", "is not a token"),
        (0o600, "two words", "is not a token"),
        (0o600, "x" * 5000, "is not a token"),
        (0o600, "s.\u00e9", "is not a token"),
    ],
)
async def test_an_unusable_token_file_is_named(tmp_path: Path, mode: int, content: str, reason: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    server = OpenBao(OpenBaoSettings(url="https://openbao.example.com", token_file=file))
    with pytest.raises(ServerUnavailable) as caught:
        await server.transit("POST", "encrypt/clustercert", {})
    assert reason in str(caught.value)
    assert str(file) in str(caught.value)
    assert not content or content not in str(caught.value)
    await server.close()


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"data":' * 10_000 + b"1" + b"}" * 10_000, b"\xff", b"[]"]
)
def test_an_unreadable_answer_counts_as_an_outage(content: bytes) -> None:
    with pytest.raises(ServerUnavailable):
        client._answer(Response(200, {}, content))


async def test_the_server_is_recognised_by_its_ca(tmp_path: Path) -> None:
    with openbao.running(tmp_path / "openbao", tls=True) as real:
        settings = settings_of(real, tmp_path)
        server = OpenBao(settings)
        answer = await server.transit("POST", "encrypt/clustercert", {"plaintext": "AAAA"})
        assert str(answer["ciphertext"]).startswith("vault:v1:")
        with pytest.raises(OpenBaoRefused) as refused:
            await server.transit("POST", "decrypt/clustercert", {"ciphertext": "vault:v1:AAAA"})
        assert refused.value.status == 400
        await server.close()
        stranger = OpenBao(settings.model_copy(update={"ca_file": None}))
        with pytest.raises(ServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.transit("POST", "encrypt/clustercert", {"plaintext": "AAAA"})
        await stranger.close()


async def test_a_missing_ca_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("s.token")
    server = OpenBao(
        OpenBaoSettings(
            url="https://openbao.example.com", token_file=tmp_path / "token", ca_file=tmp_path / "ca.pem"
        )
    )
    with pytest.raises(ServerUnavailable, match=r"ca\.pem: No such file"):
        await server.transit("POST", "encrypt/clustercert", {})
    (tmp_path / "ca.pem").write_text("not PEM")
    with pytest.raises(ServerUnavailable):
        await server.transit("POST", "encrypt/clustercert", {})
    assert ssl.create_default_context() is not None
    await server.close()


@pytest.mark.parametrize(
    ("url", "is_accepted"),
    [
        ("https://openbao.example.com:8200", True),
        ("http://127.0.0.1:8200", True),
        ("http://[::1]:8200", True),
        ("http://openbao.example.com:8200", False),
        ("https://openbao.example.com/v1", False),
        ("https://user:secret@openbao.example.com", False),
        ("openbao.example.com", False),
    ],
)
def test_only_encrypted_connections_leave_this_machine(tmp_path: Path, url: str, is_accepted: bool) -> None:
    if is_accepted:
        OpenBaoSettings(url=url, token_file=tmp_path)
        return
    with pytest.raises(ValueError, match="url"):
        OpenBaoSettings(url=url, token_file=tmp_path)
