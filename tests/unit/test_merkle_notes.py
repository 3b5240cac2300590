"""Signed notes and checkpoints: the known ones open, changed ones don't."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clustercert.merkle import Checkpoint, NoteError, VerifierKey, opened, signed
from clustercert.merkle.notes import MAX_NOTE, is_name, opened_text

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
NOTE = signed(HEAD.text(), NAME, KEY)


def test_the_known_note_opens_and_is_signed_again_to_the_letter() -> None:
    verifier = VerifierKey.parsed(PETERS_KEY)
    assert opened_text(PETERS_NOTE, verifier) == PETERS_TEXT
    assert str(verifier) == PETERS_KEY
    secret = Ed25519PrivateKey.from_private_bytes(base64.b64decode(PETERS_SECRET)[1:])
    assert signed(PETERS_TEXT, "PeterNeumann", secret) == PETERS_NOTE


def test_a_checkpoint_is_its_three_lines() -> None:
    root = base64.b64encode(bytes(range(32))).decode()
    assert HEAD.text() == f"log.example/audit\n20852163\n{root}\n"
    assert opened(NOTE, VERIFIER) == HEAD


def test_extension_lines_and_signatures_of_others_do_not_disturb() -> None:
    other = Ed25519PrivateKey.generate()
    extended = HEAD.text() + "an extension\n"
    note = signed(extended, NAME, KEY) + signed(extended, "witness.example", other).split("\n\n")[1]
    assert opened(note, VERIFIER) == HEAD
    # The same name under another key is somebody else's signature.
    same_name = signed(extended, NAME, other).split("\n\n")[1]
    assert opened(note + same_name, VERIFIER) == HEAD


@given(position=st.integers(0, len(NOTE.encode()) - 1), bit=st.integers(0, 7))
def test_no_changed_bit_goes_unnoticed(position: int, bit: int) -> None:
    wrong = bytearray(NOTE.encode())
    wrong[position] ^= 1 << bit
    try:
        text = wrong.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(NoteError):
        opened(text, VERIFIER)


@pytest.mark.parametrize(
    ("note", "problem"),
    [
        ("", "no signed note"),
        (HEAD.text(), "no signed note"),
        (NOTE.replace("\n", "\r\n"), "no signed note"),
        (NOTE + "x" * MAX_NOTE, "no signed note"),
        (NOTE[:-1], "cut off"),
        (NOTE + "another line\n", "among its signatures"),
        (NOTE + "\N{EM DASH} name AAAA\n", "among its signatures"),
        (signed(HEAD.text(), NAME, Ed25519PrivateKey.from_private_bytes(bytes(32))), "not signed by the key"),
        (signed(HEAD.text(), "another.example", KEY), "not signed by the key"),
        (signed("other\n1\n" + "A" * 43 + "=\n", NAME, KEY), "of the log other"),
        (signed(f"{NAME}\n01\n" + "A" * 43 + "=\n", NAME, KEY), "not a checkpoint"),
        (signed(f"{NAME}\n-1\n" + "A" * 43 + "=\n", NAME, KEY), "not a checkpoint"),
        (signed(f"{NAME}\n1\nAAAA\n", NAME, KEY), "not a checkpoint"),
        (signed(f"{NAME}\n1\n", NAME, KEY), "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_of_this_log_is_refused(note: str, problem: str) -> None:
    with pytest.raises(NoteError, match=problem):
        opened(note, VERIFIER)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not of the form"),
        (NAME, "not of the form"),
        (PETERS_KEY[:-4], "not of the form"),
        (PETERS_KEY.replace("+A", "+B"), "not of the form"),
        (PETERS_KEY.replace("PeterN", "Peter N"), "not of the form"),
        (PETERS_KEY.replace("c74f20a3", "c74f20a4"), "does not belong"),
        (PETERS_KEY.replace("PeterN", "PeterM"), "does not belong"),
    ],
)
def test_a_mangled_verifier_key_is_refused(text: str, problem: str) -> None:
    with pytest.raises(NoteError, match=problem):
        VerifierKey.parsed(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb", "a\x00", "a\u2028b", "x" * 256])
def test_such_a_name_no_key_can_have(name: str) -> None:
    assert not is_name(name)


def test_names_are_like_urls() -> None:
    assert is_name(NAME)
