"""The messages about access requests: their signature, the file with the secrets, and answers of receivers."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from clustercert.model import Actor, utc_now
from clustercert.requests import steps
from clustercert.requests.receiver import (
    Message,
    NotDelivered,
    WebhookReceiver,
    message,
    parse_secrets,
    signatures,
)
from clustercert.settings import SettingsError, load
from clustercert.store.audit.events import event_row
from clustercert.store.audit.log import StoredEvent
from support.access_requests import access_request
from support.message_receiver import SECRET, Received, message_receiver
from support.stores import NOW, ORIGIN
from support.wait import SECONDS

SENT = Message("a" * 64, 7, "access_request.created", "b" * 32, NOW, b'{"data":{"access_request":"b"}}')


def secret_file(folder: Path, content: str = SECRET) -> Path:
    file = folder / "secret"
    file.write_text(content)
    file.chmod(0o600)
    return file


def receiver(url: str, folder: Path, seconds: float = SECONDS) -> WebhookReceiver:
    return WebhookReceiver(url, secret_file(folder), None, utc_now, seconds)


def test_a_signature_is_that_of_the_reference_implementations() -> None:
    """Source: the tests of the libraries of Standard Webhooks."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signatures("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [secret])
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_secret_makes_a_signature() -> None:
    one, other = bytes(32), bytes(range(32))
    both = signatures("m", 1, b"x", [one, other])
    assert both.split(" ") == [signatures("m", 1, b"x", [each]) for each in (one, other)]


def encoded(size: int) -> str:
    return f"whsec_{base64.b64encode(bytes(range(7, size + 7))).decode()}"


def test_secrets_have_24_to_64_bytes() -> None:
    assert [len(each) for each in parse_secrets(f"{encoded(24)}\n\n{encoded(64)}\n".encode())] == [24, 64]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the file is empty"),
        (encoded(23), "24 to 64 bytes in base64"),
        (encoded(65), "24 to 64 bytes in base64"),
        (encoded(32).removeprefix("whsec_"), "each line must be whsec_"),
        (f"{encoded(32)}\nwhsec_?", "each line must be whsec_"),
        ("whsec_Ünicode", "each line must be whsec_"),
    ],
)
def test_other_secrets_are_refused(content: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as raised:
        parse_secrets(content.encode())
    assert not content or content[:12] not in str(raised.value)


def test_a_message_has_the_fields_of_the_event() -> None:
    request = access_request()
    event = steps.event(
        request, "access_request.created", NOW, Actor(request.user_id, ORIGIN), request.reason
    )
    row = event_row(event)
    stored = StoredEvent(id=3, leaf_index=12, place_project_id=request.project_id, **row)  # type: ignore[arg-type] # a row
    made = message(stored)
    assert made.id == stored.commitment.hex()
    assert (made.place, made.access_request, made.at) == (12, request.id, NOW)
    assert json.loads(made.body) == {
        "type": "access_request.created",
        "timestamp": "2026-03-14T15:09:26+00:00",
        "data": {
            "event": 12,
            "access_request": request.id,
            "project_id": request.project_id,
            "actor": request.user_id,
            "actor_name": "alice",
            "state": "pending",
            "cluster_id": request.cluster_id,
            "cluster_name": "prod",
            "project_name": "Default/eu-de",
            "user_id": request.user_id,
            "user_name": "alice",
            "groups": ["sre"],
            "rule": "on-call",
            "duration": 3600,
            "is_approved": False,
            "until": "2026-03-14T16:09:26Z",
            "reason": "repair the ingress",
            "conditions": ["role is admin"],
        },
    }
    for body in (b"[]", b'{"detail": 1}', b"{}", b"\xff"):
        with pytest.raises(ValueError):
            message(replace(stored, body=body))


async def test_a_message_is_signed_and_confirmed(tmp_path: Path) -> None:
    with message_receiver() as there:
        sender = receiver(f"{there.url}/hook?team=sre", tmp_path)
        await sender.send(SENT)
        await sender.close()
        [received] = there.received
    assert (received.id, received.path, received.body) == (SENT.id, "/hook?team=sre", json.loads(SENT.body))
    assert there.refused == []


async def test_a_new_secret_needs_no_restart(tmp_path: Path) -> None:
    with message_receiver() as there:
        sender = receiver(there.url, tmp_path)
        secret_file(tmp_path, encoded(32))
        with pytest.raises(NotDelivered, match="status 400"):
            await sender.send(SENT)
        secret_file(tmp_path, f"{encoded(32)}\n{SECRET}\n")
        await sender.send(SENT)
        await sender.close()
    assert len(there.confirmed) == 1


@pytest.mark.parametrize(
    ("break_file", "fault"),
    [
        (lambda file: file.unlink(), "can't be read: No such file or directory"),
        (lambda file: file.chmod(0o644), "is accessible by other users"),
        (lambda file: file.write_text("secret"), "has no valid secret: each line must be whsec_"),
    ],
)
async def test_a_message_without_a_usable_secret_is_not_sent(
    tmp_path: Path, break_file: Callable[[Path], object], fault: str
) -> None:
    with message_receiver() as there:
        sender = receiver(there.url, tmp_path)
        break_file(tmp_path / "secret")
        with pytest.raises(NotDelivered, match=fault):
            await sender.send(SENT)
    assert (there.received, there.refused) == ([], [])


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 410, 429, 500, 503])
async def test_any_other_answer_is_a_failure_and_redirects_are_not_followed(
    tmp_path: Path, status: int
) -> None:
    with message_receiver() as there:
        there.answer = lambda received: (
            (status, {"Location": f"{there.url}/elsewhere"}) if received.path == "/" else (204, {})
        )
        sender = receiver(there.url, tmp_path)
        with pytest.raises(NotDelivered, match=f"the receiver responded with status {status}"):
            await sender.send(SENT)
        await sender.close()
    assert [each.path for each in there.received] == ["/"]


async def test_a_dead_receiver_is_a_failure(tmp_path: Path) -> None:
    with message_receiver() as there:
        pass
    with pytest.raises(NotDelivered, match="ConnectError"):
        await receiver(there.url, tmp_path).send(SENT)


async def test_a_receiver_that_does_not_answer_is_left(tmp_path: Path) -> None:
    over = Event()

    def wait(_: Received) -> tuple[int, dict[str, str]]:
        over.wait(SECONDS)
        return 204, {}

    with message_receiver(wait) as there:
        sender = receiver(there.url, tmp_path, 0.5)
        with pytest.raises(NotDelivered, match=r"no complete response within 0\.5 seconds"):
            await sender.send(SENT)
        over.set()
        await sender.close()


async def test_an_answer_without_an_end_is_refused(tmp_path: Path) -> None:
    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    sender = receiver(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", tmp_path)
    with pytest.raises(NotDelivered, match="the receiver sent more than 524288 bytes"):
        await sender.send(SENT)
    await sender.close()
    server.close()


def settings_file(folder: Path, **fields: str) -> Path:
    file = folder / "clustercert.toml"
    lines = (f'{name} = "{value}"' for name, value in fields.items())
    file.write_text("\n".join(("[requests]", *lines)))
    return file


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com/services/T0/B0?x=1", "http://127.0.0.1:9/x", "http://localhost/"]
)
def test_the_settings_name_the_receiver(tmp_path: Path, url: str) -> None:
    file = settings_file(tmp_path, webhook_url=url, webhook_secret_file="s")
    assert load(file).requests.webhook_url == url


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (
            {"webhook_url": "http://hooks.example.com", "webhook_secret_file": "s"},
            "http:// only for loopback",
        ),
        ({"webhook_url": "https://user:word@hooks.example.com", "webhook_secret_file": "s"}, "without user"),
        ({"webhook_url": "hooks.example.com", "webhook_secret_file": "s"}, "expected a URL"),
        ({"webhook_url": "https://hooks.example.com/#x", "webhook_secret_file": "s"}, "expected a URL"),
        ({"webhook_url": "https://hooks.example.com"}, "set both webhook_url and webhook_secret_file"),
        ({"webhook_secret_file": "s"}, "set both webhook_url and webhook_secret_file"),
    ],
)
def test_other_receivers_are_refused(tmp_path: Path, fields: dict[str, str], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        load(settings_file(tmp_path, **fields))
