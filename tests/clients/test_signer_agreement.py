"""What the vendor's own signer signs, our arithmetic verifies, in the form that goes over the wire."""

import sys
from pathlib import Path
from random import Random
from urllib.parse import quote

import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import DerivationAKSKSigner, Signer

# The service is not installed beside the vendors' SDKs; this module of it needs the standard library alone.
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from clustercert.pki import request_signature as signature

requests = pytest.importorskip("requests")

ACCESS_KEY = "AKEXAMPLE00000000001"
SECRET = "SKEXAMPLE000000000000000000000000000001"
ALPHABET = "abcXYZ019-._~ !\"#$%&'()*+,/:;<=>?@[\\]^`{|}éßЖ中🙂"
HEADERS = ("Content-Type", "User-Agent", "X-Project-Id", "X-Security-Token", "Accept-Language", "X_Skipped")


def text(random: Random, length: int, alphabet: str = ALPHABET) -> str:
    return "".join(random.choices(alphabet, k=random.randint(0, length)))


def query_value(random: Random) -> object:
    return random.choice(
        [
            text(random, 8),
            random.randint(0, 20),
            random.random() < 0.5,
            [text(random, 4) for _ in range(3)],
            [random.randint(0, 20) for _ in range(3)],
        ]
    )


def unsigned_request(random: Random) -> SdkRequest:
    # No segment of dots alone: the HTTP library resolves those after the signer has signed them.
    segments = ["v3", *(f"{text(random, 8)}x" for _ in range(random.randint(0, 4)))]
    headers = {name: text(random, 16) for name in random.sample(HEADERS, k=random.randint(0, len(HEADERS)))}
    if "Content-Type" in headers:
        headers["Content-Type"] = random.choice(["application/json", "application/json;charset=utf-8"])
    query = {text(random, 5): query_value(random) for _ in range(random.randint(0, 4))}
    return SdkRequest(
        method=random.choice(["GET", "POST", "PUT", "DELETE"]),
        schema="https",
        host=random.choice(["cce.example.test", "127.0.0.1:8443"]),
        resource_path="/" + "/".join(quote(segment, safe="") for segment in segments),
        query_params=list(query.items()),
        header_params=headers,
        body=random.choice(["", "{}", '{"duration": 30}\n', text(random, 30)]),
    )


def verified(request: SdkRequest, secret: str = SECRET) -> bool:
    """What the service would say to the bytes that the vendor's HTTP library would send."""
    url = f"{request.schema}://{request.host}{request.uri}"
    sent = requests.Request(request.method, url, request.header_params, data=request.body).prepare()
    raw_path, _, raw_query = sent.path_url.partition("?")
    headers = {name.lower(): value.encode("latin-1") for name, value in sent.headers.items()}
    unverified = signature.parse_authorization(headers["authorization"].decode())
    parts = signature.SignedParts(
        sent.method,
        raw_path,
        raw_query,
        tuple((name.encode(), headers[name].strip()) for name in unverified.signed_headers),
        signature.payload_hash(sent.body or b""),
    )
    return signature.verify(unverified, parts, secret.encode())


@pytest.mark.parametrize("seed", range(300))
def test_the_python_sdks_signatures_verify(seed: int) -> None:
    random = Random(seed)
    request = unsigned_request(random)
    credentials = BasicCredentials(ACCESS_KEY, SECRET, "0c97ac3cb280f4d91fa7c0096739e1f8")
    if seed % 2:
        Signer(credentials).sign(request)
    else:
        DerivationAKSKSigner(credentials).sign(request, "cce", "eu-de")
    assert verified(request)
    assert not verified(request, SECRET[:-1])
    request.body = (request.body or b"") + b" "
    assert not verified(request)


def test_our_signatures_are_those_of_the_python_sdk() -> None:
    request = SdkRequest(
        method="POST",
        schema="https",
        host="cce.example.test",
        resource_path="/v3/a~b c",
        query_params=[("b", "2"), ("a", "ü &")],
        header_params={"Content-Type": "application/json", "X-Sdk-Date": "20260115T103000Z"},
        body="{}",
    )
    Signer(BasicCredentials(ACCESS_KEY, SECRET, "p")).sign(request)
    parts = signature.SignedParts(
        "POST",
        "/v3/a~b%20c",
        "a=%C3%BC%20%26&b=2",
        (
            (b"content-type", b"application/json"),
            (b"host", b"cce.example.test"),
            (b"x-sdk-date", b"20260115T103000Z"),
        ),
        signature.payload_hash(b"{}"),
    )
    ours = signature.sign(parts, signature.SignatureCredential("flat", ACCESS_KEY), SECRET.encode())
    assert request.header_params["Authorization"] == ours
