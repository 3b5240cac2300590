"""Messages about access requests, and the webhook receiver that gets these messages.

Source of the headers, the signature and the form of the body: the Standard Webhooks specification, version 1.0.0.
"""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from clustercert.http_client import ConnectionFailed, ServerConnection, UnreadableResponse
from clustercert.observability import canonical_json
from clustercert.secure_file import PrivateFileError, read_private_file
from clustercert.store.audit.log import StoredEvent

MAX_CONNECTIONS = 8
# Time limit for one request, including the time to connect.
SEND_SECONDS = 5.0
SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
MAX_SECRET_FILE = 4096


class NotDelivered(Exception):
    """The receiver did not confirm a message. The exception's message says why, for the log."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message about one step of an access request.

    Attributes:
        id: the commitment of the audit event in hex; the same in each attempt.
        place: the leaf index of the audit event.
        kind: the kind of the audit event.
        access_request: the id of the access request.
        at: when the step was made.
        body: JSON.
    """

    id: str
    place: int
    kind: str
    access_request: str
    at: datetime
    body: bytes = field(repr=False)


def message(event: StoredEvent) -> Message:
    """Return the message about an audit event, which must be sealed. Raises ValueError if the event is damaged."""
    stored = json.loads(event.body)
    if event.leaf_index is None or not isinstance(stored, dict) or not isinstance(stored.get("detail"), dict):
        raise ValueError("not an audit event about an access request")
    data = {
        "event": event.leaf_index,
        "access_request": event.subject,
        "project_id": event.project_id,
        "actor": event.actor,
        **stored["detail"],
    }
    body = {"type": event.kind, "timestamp": event.at.isoformat(), "data": data}
    return Message(
        id=event.commitment.hex(),
        place=event.leaf_index,
        kind=event.kind,
        access_request=event.subject,
        at=event.at,
        body=canonical_json.dumps(body),
    )


def parse_secrets(content: bytes) -> tuple[bytes, ...]:
    """Parse the content of a file with one secret on each line. Raises ValueError."""
    secrets = []
    for line in content.decode("ascii", "replace").split():
        try:
            secret = base64.b64decode(line.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:
            secret = b""
        if not line.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
            raise ValueError(
                f"each line must be {SECRET_PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64"
            )
        secrets.append(secret)
    if not secrets:
        raise ValueError("the file is empty")
    return tuple(secrets)


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """Read the secrets in a file. Raises NotDelivered with the reason if the file can't be used."""
    try:
        return parse_secrets(read_private_file(path, MAX_SECRET_FILE))
    except PrivateFileError as error:
        raise NotDelivered(str(error)) from None
    except OSError as error:
        raise NotDelivered(f"The file {path} can't be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise NotDelivered(f"The file {path} has no valid secret: {error}.") from None


def signatures(message_id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> str:
    """Return the value of the header `webhook-signature`: a signature with each secret."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    made = (hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(each).decode()}" for each in made)


class WebhookReceiver:
    """Sends messages to the URL in the settings. Redirects are not followed."""

    def __init__(
        self,
        url: str,
        secret_file: Path,
        ca_file: Path | None,
        now: Callable[[], datetime],
        seconds: float = SEND_SECONDS,
    ) -> None:
        """Connect later, at the first message.

        Args:
            secret_file: read for each message, so that a new secret needs no restart.
            seconds: time limit for one message.
        """
        self._server = ServerConnection(url, ca_file, MAX_CONNECTIONS, seconds)
        self._secret_file = secret_file
        self._now = now

    async def send(self, sent: Message) -> None:
        """Send a message. Raises NotDelivered, unless the receiver answers with a status from 200 to 299."""
        secrets = await asyncio.to_thread(read_secrets, self._secret_file)
        timestamp = int(self._now().timestamp())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": sent.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(sent.id, timestamp, sent.body, secrets),
        }
        try:
            response = await self._server.send("POST", "", headers, sent.body)
        except ConnectionFailed as failure:
            raise NotDelivered(str(failure)) from None
        except UnreadableResponse as error:
            raise NotDelivered(f"the receiver sent {error}") from None
        if not 200 <= response.status < 300:  # noqa: PLR2004 - RFC 9110: success
            raise NotDelivered(f"the receiver responded with status {response.status}")

    async def close(self) -> None:
        """Close all connections."""
        await self._server.close()
