"""Parses endless strings and large batches of audit events. Arguments: each a string's filler in hex, or `batch`.

Prints, for each argument, the largest size of the traced memory in bytes, and what the parser found.

A separate process, because the memory of a process with services of other tests grows by what they do.
"""

import json
import sys
import tracemalloc

from clustercert.kubernetes.webhook.audit_events import EventListParser
from support.kubernetes_messages import audit_event, credential_id, event_list

EVENT = audit_event(credential_id(bytes(range(32))))
PIECE = 256 * 1024


def parse_string(parser: EventListParser, filler: bytes) -> None:
    piece = filler * (PIECE // len(filler))
    parser.feed(event_list(EVENT)[:-2] + b',{"requestURI":"')
    tracemalloc.start()
    for _ in range(64):
        parser.feed(piece)


def parse_batch(parser: EventListParser) -> None:
    event = json.dumps(EVENT | {"requestURI": "/" + "x" * 1024 * 1024}).encode()
    parser.feed(event_list()[:-2])
    tracemalloc.start()
    for number in range(100):
        raw = (b"," if number else b"") + event
        for start in range(0, len(raw), PIECE):
            parser.feed(raw[start : start + PIECE])
        assert len(parser.take_requests()) == 1


def measured(what: str) -> dict[str, int]:
    parser = EventListParser()
    if what == "batch":
        parse_batch(parser)
    else:
        parse_string(parser, bytes.fromhex(what))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    parser.feed(b"]}" if what == "batch" else b'"}]}')
    parser.close()
    requests = len(parser.take_requests())
    return {
        "peak": peak,
        "requests": requests,
        "readable": parser.readable,
        "unreadable": parser.unreadable,
    }


if __name__ == "__main__":
    print(json.dumps([measured(what) for what in sys.argv[1:]]))
