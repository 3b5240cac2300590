"""Measures logins by password while attackers try passwords, each time from another /64.

The service trusts this machine as a proxy, so that a header can set the address of each request.
"""

import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address
from pathlib import Path

import httpx2

from bench import world
from bench.report import ROOT
from bench.world import World

# The attackers' addresses are in one /32, or in any network.
ATTACKERS = ((0, 32), (40, 32), (140, 32), (140, 0))
# Logins a second, of one user from several networks in turn.
RATE = 4
KNOWN = tuple(f"192.0.{number}.1" for number in range(8))
LIMIT_SECONDS, MOST_SECONDS = 5.0, 30.0
PREFIX = int(IPv6Address("2001:db8::")) >> 96


@dataclass(frozen=True, slots=True)
class Figures:
    """Logins with the right password during one attack.

    Attributes:
        prefix: length of the prefix that all attackers share.
        networks: whether the user logged in from their networks before.
        in_time: the part of all logins that succeeded within 5 seconds.
        p50_ms, p90_ms: of those that succeeded; None without any.
        refused: the number of logins that were answered 503, or not within 30 seconds.
    """

    attackers: int
    prefix: int
    networks: str
    logins: int
    in_time: float
    p50_ms: float | None
    p90_ms: float | None
    refused: int


def measure(folder: Path, seconds: float) -> list[dict[str, object]]:
    """Return the figures of each attack, for known and for new networks."""
    store = world.prepare(folder)
    with store.config.open("a") as config:
        config.write('[server]\ntrusted_proxies = ["127.0.0.1"]\n')
    rows = []
    new = (f"198.{a}.{b}.1" for a in range(256) for b in range(256))
    with world.served(store, workers=1) as served:
        for attackers, prefix in ATTACKERS:
            for address in KNOWN:
                _, status = asyncio.run(_login(served.url, store, address))
                if status != httpx2.codes.CREATED:
                    raise RuntimeError(f"the login from {address} was answered {status}")
            with _attacked(served.url, attackers, prefix):
                for networks, addresses in (("known", itertools.cycle(KNOWN)), ("new", new)):
                    taken = asyncio.run(_logins(served.url, store, addresses, seconds))
                    rows.append(asdict(_figures(attackers, prefix, networks, taken)))
    return rows


@contextlib.contextmanager
def _attacked(url: str, attackers: int, prefix: int) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.logins", url, str(attackers), str(prefix)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as attack:
        time.sleep(3)
        try:
            yield
        finally:
            attack.kill()


async def _logins(
    url: str, store: World, addresses: Iterator[str], seconds: float
) -> list[tuple[float, int]]:
    logins = []
    for address in itertools.islice(addresses, int(seconds * RATE)):
        logins.append(asyncio.create_task(_login(url, store, address)))
        await asyncio.sleep(1 / RATE)
    return await asyncio.gather(*logins)


async def _login(url: str, store: World, address: str) -> tuple[float, int]:
    """Return the seconds that a login took, and its status; 0 without an answer."""
    user = {"id": store.user_id, "password": store.password}
    begin = time.perf_counter()
    status = 0
    async with httpx2.AsyncClient(base_url=url, timeout=MOST_SECONDS, trust_env=False) as client:
        with contextlib.suppress(httpx2.TransportError):
            answer = await client.post(
                "/v3/auth/tokens", json=_body(user), headers={"X-Forwarded-For": address}
            )
            status = answer.status_code
    return time.perf_counter() - begin, status


def _body(user: Mapping[str, object]) -> dict[str, object]:
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}


def _figures(attackers: int, prefix: int, networks: str, taken: list[tuple[float, int]]) -> Figures:
    times = sorted(seconds for seconds, status in taken if status == httpx2.codes.CREATED)
    in_time = sum(seconds < LIMIT_SECONDS for seconds in times) / len(taken)
    p50, p90 = (times[int(len(times) * part)] * 1000 if times else None for part in (0.5, 0.9))
    return Figures(
        attackers, prefix, networks, len(taken), in_time, p50, p90, refused=len(taken) - len(times)
    )


async def _attack(url: str, attackers: int, prefix: int) -> None:
    """Try passwords of one user without a pause, each time from a new /64, until this process is killed."""
    host, _, port = url.partition("://")[2].partition(":")
    wrong = {"name": "bench", "domain": {"name": "bench"}, "password": "wrong password"}
    body = json.dumps(_body(wrong)).encode()

    async def attacker() -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection(host, int(port))
                while True:
                    network = random.getrandbits(64 - prefix) | (PREFIX << 32 if prefix else 0)
                    head = (
                        f"POST /v3/auth/tokens HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For:"
                        f" {IPv6Address(network << 64 | 1)}\r\nContent-Type: application/json\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n"
                    )
                    writer.write(head.encode() + body)
                    answer = await reader.readuntil(b"\r\n\r\n")
                    length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))

    await asyncio.gather(*(attacker() for _ in range(attackers)))


if __name__ == "__main__":
    asyncio.run(_attack(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
