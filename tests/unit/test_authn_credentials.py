from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.authn.access_keys import AccessKeyAuthenticator, SigningKey
from clustercert.authn.credentials import (
    MAX_TOKEN,
    Authenticators,
    TokenAuthenticator,
    UnverifiedCredential,
    only_credential,
)
from clustercert.authn.sessions import CONSOLE_SCHEME, SessionAuthenticator, session_credential
from clustercert.model import Caller, Domain, Origin, UnverifiedRequest, User
from clustercert.model.errors import Unauthenticated
from clustercert.pki.request_signature import SignatureCredential, SignedParts, payload_hash, sign

NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
ORIGIN = Origin("192.0.2.1", "0" * 32)
KEY = SigningKey("AKEXAMPLE00000000001", "b" * 32, b"SKEXAMPLE000000000000000000000000000001")
SIGNED_HEADERS = ((b"host", b"cce.example.test"), (b"x-sdk-date", b"20260115T103000Z"))
SIGNATURE = sign(
    SignedParts("GET", "/", "", SIGNED_HEADERS, payload_hash(b"")),
    SignatureCredential("flat", KEY.id),
    KEY.secret,
)
TOKEN = ("x-auth-token", "t0ken")
BEARER = ("authorization", "Bearer t0ken")
SIGNED = ("authorization", SIGNATURE)


class Directory:
    """An identity that knows one token and one access key; each caller is named after what they brought."""

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        if token not in {"t0ken", "t" * MAX_TOKEN}:
            raise Unauthenticated("no such token")
        return Caller(User("a" * 32, "of-token", Domain("d" * 32, "acme")), {}, "token", origin)

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        return None

    async def look_up_unknown(self, access_key_id: str) -> None:
        raise AssertionError(access_key_id)

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        return KEY if access_key_id == KEY.id else None

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        return Caller(User(key.user_id, "of-key", Domain("d" * 32, "acme")), {}, "access_key", origin)


async def authenticate(sent: UnverifiedRequest) -> Caller:
    directory = Directory()
    authenticators = Authenticators(
        (TokenAuthenticator(directory), AccessKeyAuthenticator(directory, lambda: NOW))
    )
    return await authenticators.authenticate(only_credential(sent.headers), sent)


def request(*headers: tuple[str, str]) -> UnverifiedRequest:
    sent = tuple((name.encode(), value.encode()) for name, value in headers)
    return UnverifiedRequest("GET", "/", "", SIGNED_HEADERS + sent, b"", ORIGIN)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([TOKEN], "of-token"),
        ([BEARER], "of-token"),
        ([("authorization", "bearer  t0ken ")], "of-token"),
        ([TOKEN, BEARER], "of-token"),
        ([TOKEN, TOKEN], "of-token"),
        ([TOKEN, ("authorization", "")], "of-token"),
        ([TOKEN, ("authorization", "Bearer ")], "of-token"),
        ([TOKEN, ("x-auth-token", " ")], "of-token"),
        ([TOKEN, ("x-subject-token", "other")], "of-token"),
        ([SIGNED], "of-key"),
        ([SIGNED, SIGNED], "of-key"),
        ([SIGNED, ("x-auth-token", "")], "of-key"),
    ],
)
async def test_one_credential_is_found_wherever_it_stands(headers: list[tuple[str, str]], name: str) -> None:
    caller = await authenticate(request(*headers))
    assert (caller.user.name, caller.origin) == (name, ORIGIN)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "no credential"),
        ([("x-auth-token", "")], "no credential"),
        ([("authorization", "Bearer")], "no credential"),
        ([TOKEN, SIGNED], "two different"),
        ([BEARER, SIGNED], "two different"),
        ([TOKEN, ("x-auth-token", "other")], "two different"),
        ([TOKEN, ("authorization", "Bearer other")], "two different"),
        ([SIGNED, ("authorization", SIGNATURE.replace("host;", ""))], "two different"),
        ([("authorization", "Basic dXNlcjpwdw==")], "unknown scheme"),
        ([("authorization", "t0ken")], "unknown scheme"),
        ([("authorization", "SDK-HMAC-SM3 Access=AK")], "unknown scheme"),
        ([TOKEN, ("authorization", "Basic dXNlcjpwdw==")], "two different"),
        ([("x-auth-token", "tökén")], "not ASCII"),
        ([("x-auth-token", "other")], "no such token"),
        ([("x-auth-token", "t" * (MAX_TOKEN + 1))], "longer than 4096"),
        ([("authorization", "SDK-HMAC-SHA256 Access=AK")], "three fields"),
        ([("authorization", SIGNATURE[:-1] + "g")], "hex digits"),
    ],
)
async def test_anything_else_is_refused_in_the_same_words(
    headers: list[tuple[str, str]], reason: str
) -> None:
    with pytest.raises(Unauthenticated, match=r"^Authorization failed\.$") as refused:
        await authenticate(request(*headers))
    assert reason in refused.value.reason
    assert "t0ken" not in refused.value.reason


async def test_the_longest_token_is_still_looked_up() -> None:
    caller = await authenticate(request(("x-auth-token", "t" * MAX_TOKEN)))
    assert caller.user.name == "of-token"


def test_a_request_does_not_print_its_headers_or_body() -> None:
    assert "t0ken" not in repr(request(TOKEN))


class Prefixed:
    """Accepts tokens with its prefix, and knows one of them."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.asked: list[str] = []

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.text.startswith(self.prefix)

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        self.asked.append(credential.text)
        if credential.text != f"{self.prefix}-known":
            raise Unauthenticated(f"unknown to {self.prefix}")
        return Caller(User("a" * 32, self.prefix, Domain("d" * 32, "acme")), {}, "token", request.origin)


async def test_the_first_authenticator_that_accepts_a_credential_decides_alone() -> None:
    first, second, other = Prefixed("xy"), Prefixed("x"), Prefixed("z")
    # A list of authenticators is an authenticator.
    nested = Authenticators((first, Authenticators((other, second))))

    async def name(token: str) -> str:
        sent = request(("x-auth-token", token))
        return (await nested.authenticate(only_credential(sent.headers), sent)).user.name

    assert [await name(token) for token in ("x-known", "xy-known", "z-known")] == ["x", "xy", "z"]
    assert (first.asked, second.asked, other.asked) == (["xy-known"], ["x-known"], ["z-known"])
    for token, reason in {"xy-other": "unknown to xy", "nobody": "unknown scheme"}.items():
        with pytest.raises(Unauthenticated) as refused:
            await name(token)
        assert reason in refused.value.reason


class AnySession:
    """Sessions in which every cookie stands for a user."""

    async def caller_of_session(self, cookie: str, origin: Origin) -> Caller:
        return Caller(User("a" * 32, cookie, Domain("d" * 32, "acme")), {}, "token", origin)


@pytest.mark.parametrize("name", [b"authorization", b"x-auth-token"])
@given(
    text=st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda before, space, after: before + CONSOLE_SCHEME.encode().replace(b" ", space) + after,
            st.sampled_from([b"", b" ", b"\t", b"Bearer "]),
            st.sampled_from([b" ", b"\t", b"  ", b"%20", b"\xa0"]),
            st.sampled_from([b"", b" ", b"\t", b" cookie", b"\tcookie"]),
        ),
    )
)
def test_no_header_is_a_session_of_the_console(name: bytes, text: bytes) -> None:
    authenticator = SessionAuthenticator(AnySession())
    try:
        credential = only_credential([(name, text)])
    except Unauthenticated:
        return
    assert not authenticator.accepts(credential)


async def test_the_credential_of_a_session_is_its_cookie() -> None:
    authenticator = SessionAuthenticator(AnySession())
    credential = session_credential("cookie")
    assert authenticator.accepts(credential)
    assert (await authenticator.authenticate(credential, request())).user.name == "cookie"
    assert "cookie" not in repr(credential)
