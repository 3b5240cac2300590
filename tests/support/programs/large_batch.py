"""Sends a large batch of audit events to a service. Arguments: FOLDER FILLER EVENTS FINGERPRINT.

Prints the status of the response, by how many bytes the process grew, and the kinds of the events that were recorded
about the certificate with this fingerprint, which is in the batch's last event.

A separate process, because the largest size of a process never falls.
"""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path

from support import world as worlds
from support.audit_batches import Sender, batch, master, webhook_token
from support.kubernetes_messages import audit_event, credential_id, event_list
from support.service import Service


def largest_size() -> int:
    """The largest size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path, filler: bytes, events: int, fingerprint: bytes) -> None:
    world = worlds.make(folder)
    token = asyncio.run(webhook_token(world))
    # Alerts are recorded at the end at the latest.
    with Service(world.settings(log={"file": folder / "log"})).running() as service:
        sender = Sender(service, world, world.clusters["plain"].id, token)
        sender.post(event_list(audit_event(credential_id(os.urandom(32)))))
        before = largest_size()
        answer = sender.stream_all(batch(events, filler, master(fingerprint)))
        grown = largest_size() - before
    kinds = [event["kind"] for event in sender.events(fingerprint.hex())]
    print(json.dumps({"status": answer.status_code, "grown": grown, "kinds": kinds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3]), bytes.fromhex(sys.argv[4]))
