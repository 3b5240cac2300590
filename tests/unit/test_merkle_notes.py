"""Signed notes and checkpoints: the known ones open, changed ones don't."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clustercert.merkle.notes import (
    MAX_NOTE,
    Checkpoint,
    NoteError,
    VerifierKey,
    is_name,
    sign_note,
    verify_checkpoint,
    verify_note,
)

# Source: golang.org/x/mod/sumdb/note, the reference implementation of c2sp.org/signed-note.
PETERS_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_SECRET = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETERS_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
PETERS_NOTE = (
    f"{PETERS_TEXT}\n\N{EM DASH} PeterNeumann"
    " x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

NAME = "log.example/audit"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VERIFIER = VerifierKey(NAME, KEY.public_key().public_bytes_raw())
HEAD = Checkpoint(NAME, 20852163, bytes(range(32)))
NOTE = sign_note(HEAD.text(), NAME, KEY)


def test_the_known_note_verifies_and_signs_byte_for_byte() -> None:
    verifier = VerifierKey.parse(PETERS_KEY)
    assert verify_note(PETERS_NOTE, verifier) == PETERS_TEXT
    assert str(verifier) == PETERS_KEY
    secret = Ed25519PrivateKey.from_private_bytes(base64.b64decode(PETERS_SECRET)[1:])
    assert sign_note(PETERS_TEXT, "PeterNeumann", secret) == PETERS_NOTE


def test_a_checkpoint_is_its_three_lines() -> None:
    root = base64.b64encode(bytes(range(32))).decode()
    assert HEAD.text() == f"log.example/audit\n20852163\n{root}\n"
    assert verify_checkpoint(NOTE, VERIFIER) == HEAD


def test_extension_lines_and_other_signatures_are_ignored() -> None:
    other = Ed25519PrivateKey.generate()
    extended = HEAD.text() + "an extension\n"
    note = sign_note(extended, NAME, KEY) + sign_note(extended, "witness.example", other).split("\n\n")[1]
    assert verify_checkpoint(note, VERIFIER) == HEAD
    # The same name under another key is somebody else's signature.
    same_name = sign_note(extended, NAME, other).split("\n\n")[1]
    assert verify_checkpoint(note + same_name, VERIFIER) == HEAD


@given(position=st.integers(0, len(NOTE.encode()) - 1), bit=st.integers(0, 7))
def test_no_changed_bit_goes_unnoticed(position: int, bit: int) -> None:
    wrong = bytearray(NOTE.encode())
    wrong[position] ^= 1 << bit
    try:
        text = wrong.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(NoteError):
        verify_checkpoint(text, VERIFIER)


@pytest.mark.parametrize(
    ("note", "problem"),
    [
        ("", "not a signed note"),
        (HEAD.text(), "not a signed note"),
        (NOTE.replace("\n", "\r\n"), "not a signed note"),
        (NOTE + "x" * MAX_NOTE, "not a signed note"),
        (NOTE[:-1], "truncated"),
        (NOTE + "another line\n", "invalid signature line"),
        (NOTE + "\N{EM DASH} name AAAA\n", "invalid signature line"),
        (
            sign_note(HEAD.text(), NAME, Ed25519PrivateKey.from_private_bytes(bytes(32))),
            "not signed by the key",
        ),
        (sign_note(HEAD.text(), "another.example", KEY), "not signed by the key"),
        (sign_note("other\n1\n" + "A" * 43 + "=\n", NAME, KEY), "to the log other"),
        (sign_note(f"{NAME}\n01\n" + "A" * 43 + "=\n", NAME, KEY), "not a checkpoint"),
        (sign_note(f"{NAME}\n-1\n" + "A" * 43 + "=\n", NAME, KEY), "not a checkpoint"),
        (sign_note(f"{NAME}\n1\nAAAA\n", NAME, KEY), "not a checkpoint"),
        (sign_note(f"{NAME}\n1\n", NAME, KEY), "not a checkpoint"),
    ],
)
def test_an_invalid_checkpoint_is_refused(note: str, problem: str) -> None:
    with pytest.raises(NoteError, match=problem):
        verify_checkpoint(note, VERIFIER)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not have the form"),
        (NAME, "not have the form"),
        (PETERS_KEY[:-4], "not have the form"),
        (PETERS_KEY.replace("+A", "+B"), "not have the form"),
        (PETERS_KEY.replace("PeterN", "Peter N"), "not have the form"),
        (PETERS_KEY.replace("c74f20a3", "c74f20a4"), "does not match its name"),
        (PETERS_KEY.replace("PeterN", "PeterM"), "does not match its name"),
    ],
)
def test_a_mangled_verifier_key_is_refused(text: str, problem: str) -> None:
    with pytest.raises(NoteError, match=problem):
        VerifierKey.parse(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb", "a\x00", "a\u2028b", "x" * 256])
def test_invalid_key_names_are_refused(name: str) -> None:
    assert not is_name(name)


def test_url_like_names_are_valid() -> None:
    assert is_name(NAME)
