"""Sealing: what opens, what does not, and what the keys show of themselves."""

import base64
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model.errors import UnsealError
from clustercert.pki.envelope import (
    DataKey,
    Kek,
    KeyRing,
    data_key_id_of,
    kek_line,
    new_data_key,
    new_kek,
    parse_keks,
    sealed_prefix,
)

RING = KeyRing([new_data_key(1), new_data_key(2)], active_id=2)
KEY = bytes(range(32))
LINE = base64.b64encode(KEY).decode()


@given(secret=st.binary(max_size=4096), bound_to=st.text(max_size=64))
def test_a_sealed_secret_opens_for_its_row_only(secret: bytes, bound_to: str) -> None:
    sealed = RING.seal(secret, bound_to)
    assert RING.unseal(sealed, bound_to) == secret
    with pytest.raises(UnsealError):
        RING.unseal(sealed, bound_to + "0")


@given(data=st.data(), secret=st.binary(max_size=64))
def test_no_changed_bit_goes_unnoticed(data: st.DataObject, secret: bytes) -> None:
    sealed = bytearray(RING.seal(secret, "access_key:AK"))
    position = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[position // 8] ^= 1 << position % 8
    with pytest.raises(UnsealError):
        RING.unseal(bytes(sealed), "access_key:AK")


def test_every_shorter_blob_is_refused() -> None:
    sealed = RING.seal(b"secret", "client_ca:1")
    for length in range(len(sealed)):
        with pytest.raises(UnsealError):
            RING.unseal(sealed[:length], "client_ca:1")


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(UnsealError):
        RING.unseal(noise, "client_ca:1")


def test_a_sealed_secret_names_its_data_key() -> None:
    sealed = RING.seal(b"secret", "client_ca:1")
    assert data_key_id_of(sealed) == 2
    assert sealed.startswith(sealed_prefix(2))
    assert len(sealed) == 1 + 4 + 12 + len(b"secret") + 16
    assert RING.knows(sealed)
    assert not KeyRing([new_data_key(1)], active_id=1).knows(sealed)


def test_the_same_secret_is_never_sealed_the_same_way() -> None:
    assert len({RING.seal(b"secret", "client_ca:1") for _ in range(100)}) == 100


def test_a_retired_data_key_still_opens_what_it_sealed() -> None:
    old = KeyRing([RING.data_keys[0]], active_id=1)
    assert RING.unseal(old.seal(b"secret", "client_ca:1"), "client_ca:1") == b"secret"


def test_the_message_for_callers_has_no_details() -> None:
    with pytest.raises(UnsealError) as caught:
        RING.unseal(RING.seal(b"secret", "access_key:ONE"), "access_key:TWO")
    assert "access_key:TWO" in caught.value.reason
    assert "access_key" not in caught.value.message


def test_an_unknown_data_key_is_named() -> None:
    sealed = KeyRing([new_data_key(7)], active_id=7).seal(b"secret", "client_ca:1")
    with pytest.raises(UnsealError) as caught:
        RING.unseal(sealed, "client_ca:1")
    assert caught.value.reason == "the secret of client_ca:1 is sealed under data key 7, which does not exist"


async def test_a_wrapped_data_key_needs_its_kek_and_id() -> None:
    kek, data_key = new_kek(), new_data_key(3)
    wrapped = await kek.wrap(data_key)
    assert await kek.unwrap(3, wrapped) == data_key
    for data_key_id, blob, key in (
        (4, wrapped, kek),
        (3, wrapped, new_kek()),
        (3, wrapped[:-1], kek),
        (3, wrapped[:9], kek),
        (3, b"", kek),
        (3, b"\x02" + wrapped[1:], kek),
        (3, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), kek),
    ):
        with pytest.raises(UnsealError):
            await key.unwrap(data_key_id, blob)


def test_a_data_key_of_another_length_is_refused() -> None:
    with pytest.raises(UnsealError) as caught:
        DataKey(1, os.urandom(16))
    assert caught.value.reason == "data key 1 has the wrong length"


def test_keys_are_not_in_their_repr() -> None:
    shown = f"{Kek(KEY)!r} {DataKey(1, KEY)!r} {KeyRing([DataKey(1, KEY)], 1)!r} {Kek(KEY)} {[Kek(KEY)]}"
    for form in (KEY.hex(), LINE, repr(KEY)[2:-1], str(list(KEY))[1:-1]):
        assert form not in shown
    assert Kek(KEY).id in shown


def test_the_id_of_a_kek_is_stable_and_unique() -> None:
    assert Kek(KEY).id == "a838fbd76cc08c13"
    assert new_kek().id != new_kek().id


def test_keks_are_read_in_order_between_comments() -> None:
    keks = [new_kek(), new_kek()]
    text = f"# ours\n\n{kek_line(keks[0])}   \r\n  {base64.b64encode(keks[1].key).decode()}\t# old\r\n"
    assert parse_keks(text) == tuple(keks)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, unique=True))
def test_written_lines_are_read_back(keys: list[bytes]) -> None:
    keks = tuple(Kek(key) for key in keys)
    assert parse_keks("".join(kek_line(kek) for kek in keks)) == keks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no keys; write one key on each line"),
        ("# nothing\n\n", "it has no keys; write one key on each line"),
        ("hunter2", "line 1 is not the standard base64 of 32 bytes"),
        (f"{LINE}\n{LINE[:-4]}", "line 2 is not the standard base64 of 32 bytes"),
        (f"# one\n{LINE} {LINE}", "line 2 is not the standard base64 of 32 bytes"),
        (base64.urlsafe_b64encode(b"\xff" * 32).decode(), "line 1 is not the standard base64 of 32 bytes"),
        ("\N{SNOWMAN}" * 44, "line 1 is not the standard base64 of 32 bytes"),
        (base64.b64encode(bytes(33)).decode(), "line 1 is not the standard base64 of 32 bytes"),
        (f"{LINE}\n# x\n{LINE}", "line 3 repeats a key; remove the line"),
    ],
)
def test_an_invalid_line_is_numbered_and_not_shown(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_keks(text)
    assert str(caught.value) == reason
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_hash_of_a_name_depends_on_the_active_data_key_and_hides_the_name() -> None:
    first, second = RING.data_keys
    hashed = RING.name_hash("default/hunter2")
    assert re.fullmatch(r"[0-9a-f]{16}", hashed)
    assert hashed == KeyRing([second], active_id=2).name_hash("default/hunter2")
    assert hashed != KeyRing([first, second], active_id=1).name_hash("default/hunter2")
    assert hashed != RING.name_hash("default/hunter3")
    assert len(RING.name_hash("\ud800")) == 16
