"""Measures signers: the cost of a signature, many signatures without a pause, and a token that fails under load.

Another signer needs an entry in `PLACES`.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from bench import processes, relay
from clustercert.issuance.signers.local import local_signer
from clustercert.issuance.signers.pkcs11 import pkcs11_signer
from clustercert.issuance.signers.transit import transit_signer
from clustercert.model import ClientCA, Grant
from clustercert.model.clusters import Registration
from clustercert.model.errors import Unavailable
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import check_leaf, new_signing_request
from clustercert.pki.signer import CaRequest, Signer, SignerContext
from support import openbao
from support.ring_sealer import RingSealer

T = TypeVar("T")

SIGNATURES = 5_000
AT_ONCE = 8
IN_A_ROW, OF_EACH = 100_000, 10_000
OUTAGES = 20
STOPPED_SECONDS = 2.0

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
PROXY = Path("/usr/lib/libpkcs11-proxy.so.0")
PIN = "1234"
MISSING = "softhsm2, pkcs11-daemon or libpkcs11-proxy0 is not installed: PKCS#11 is not measured"


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a signature by a signer.

    Attributes:
        p50_us: median time of a signature, one after the other.
        cpu_us: processor time of this process for a signature, one after the other. A signer's server is not included.
        rate: signatures a second, with AT_ONCE at once.
        cpu_at_once_us: processor time of this process for a signature, with AT_ONCE at once.
    """

    signer: str
    p50_us: float
    cpu_us: float
    rate: float
    cpu_at_once_us: float


@dataclass(frozen=True, slots=True)
class Endurance:
    """Many signatures without a pause.

    Attributes:
        files_more, threads_more, memory_mb_more: how many more open files, threads and MB the process has after the
            second half of the signatures than after the first half.
    """

    signer: str
    at_once: int
    signatures: int
    errors: int
    seconds: float
    files_more: int
    threads_more: int
    memory_mb_more: float


@dataclass(frozen=True, slots=True)
class Outage:
    """A token behind a daemon that is killed and started again under load.

    Attributes:
        refused_ms: longest time from the kill to the first answer that says that the signer is unavailable.
        back_ms: longest time from the moment when the new daemon listens to the next signature.
    """

    kills: int
    refused_ms: float
    back_ms: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The local signer while a token behind a daemon is idle, while it works, and while its calls hang."""

    state: str
    local_p50_us: float
    local_p99_us: float


@contextlib.asynccontextmanager
async def _local(_folder: Path) -> AsyncIterator[Signer]:
    yield local_signer(SignerContext({}, RingSealer()))


@contextlib.asynccontextmanager
async def _softhsm(folder: Path) -> AsyncIterator[Signer]:
    _new_token(folder)
    async with _pkcs11(folder, SOFTHSM) as signer:
        yield signer


@contextlib.asynccontextmanager
async def _network_hsm(folder: Path) -> AsyncIterator[Signer]:
    with _daemon(folder):
        async with _pkcs11(folder, PROXY) as signer:
            yield signer


@contextlib.asynccontextmanager
async def _openbao(folder: Path) -> AsyncIterator[Signer]:
    with openbao.running(folder / "openbao") as server:
        signer = transit_signer(SignerContext(server.new_signer(), RingSealer()))
        try:
            yield signer
        finally:
            await signer.close()


PLACES: dict[str, Callable[[Path], AbstractAsyncContextManager[Signer]]] = {
    "local": _local,
    "pkcs11: SoftHSM": _softhsm,
    "pkcs11: SoftHSM behind a daemon": _network_hsm,
    "transit: OpenBao": _openbao,
}


def measure(folder: Path) -> dict[str, object]:
    """Measure every signer that can be measured here."""
    names = list(PLACES)
    has_tokens = SOFTHSM.exists() and PROXY.exists() and shutil.which("pkcs11-daemon") is not None
    if not has_tokens:
        print(MISSING, flush=True)
        names = [name for name in names if not name.startswith("pkcs11")]
    if openbao.program() is None:
        print("OpenBao is not installed: the signer transit is not measured", flush=True)
        names.remove("transit: OpenBao")
    costs: list[Cost] = []
    endured: list[Endurance] = []
    for name in names:
        _run(_measured(_emptied(folder), name, costs, endured))
    measured: dict[str, object] = {
        "costs": [asdict(cost) for cost in costs],
        "endurance": [asdict(row) for row in endured],
    }
    if has_tokens:
        outage, stopped = _run(_failing(_emptied(folder)))
        measured |= {"outage": asdict(outage), "stopped": [asdict(row) for row in stopped]}
    return measured


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run in an event loop like that of the service."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def _measured(folder: Path, name: str, costs: list[Cost], endured: list[Endurance]) -> None:
    async with PLACES[name](folder) as signer:
        ca = await _new_ca(signer)
        for _ in range(AT_ONCE * 50):
            await _sign(signer, ca)
        costs.append(await _cost(name, signer, ca))
        if name.startswith("pkcs11"):
            endured.extend(
                [
                    await _endurance(name, signer, ca, at_once, each)
                    for at_once, each in ((1, IN_A_ROW), (AT_ONCE, OF_EACH))
                ]
            )


async def _cost(name: str, signer: Signer, ca: ClientCA) -> Cost:
    times, cpu = [], time.process_time()
    for _ in range(SIGNATURES):
        started = time.perf_counter()
        await _sign(signer, ca)
        times.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    started, cpu_at_once = time.perf_counter(), time.process_time()
    await _many(signer, ca, AT_ONCE, SIGNATURES // AT_ONCE)
    return Cost(
        name,
        p50_us=_percentile(times, 50) * 1e6,
        cpu_us=cpu / SIGNATURES * 1e6,
        rate=SIGNATURES / (time.perf_counter() - started),
        cpu_at_once_us=(time.process_time() - cpu_at_once) / SIGNATURES * 1e6,
    )


async def _endurance(name: str, signer: Signer, ca: ClientCA, at_once: int, each: int) -> Endurance:
    started = time.perf_counter()
    errors = await _many(signer, ca, at_once, each // 2)
    files, threads, memory = _used()
    errors += await _many(signer, ca, at_once, each // 2)
    seconds = time.perf_counter() - started
    files_after, threads_after, memory_after = _used()
    return Endurance(
        name,
        at_once,
        at_once * each,
        errors,
        seconds,
        files_after - files,
        threads_after - threads,
        (memory_after - memory) / 1e6,
    )


def _used() -> tuple[int, int, int]:
    """Return the numbers of open files and of threads, and the resident bytes of this process."""
    own = Path("/proc/self")
    count = (len(list((own / kind).iterdir())) for kind in ("fd", "task"))
    return (*count, processes.resident_bytes(os.getpid())[os.getpid()])  # type: ignore[return-value] # two counts


async def _failing(folder: Path) -> tuple[Outage, list[Stopped]]:
    """Measure a token behind a daemon that is killed, and then stopped, under load."""
    with _daemon(folder, relayed=True) as daemon:
        async with _pkcs11(folder, PROXY) as signer, _local(folder) as other:
            ca, other_ca = await _new_ca(signer), await _new_ca(other)
            refused, back = [], []
            for _ in range(OUTAGES):
                with _load(signer, ca):
                    await asyncio.sleep(0.1)
                    daemon.kill()
                    refused.append(await _time_until(signer, ca, is_available=False))
                    daemon.start()
                    back.append(await _time_until(signer, ca, is_available=True))
            rows = [await _local_times("idle", other, other_ca)]
            with _load(signer, ca):
                rows.append(await _local_times("working", other, other_ca))
            daemon.stop()
            with _load(signer, ca):
                rows.append(await _local_times("stopped", other, other_ca))
            daemon.resume()
    return Outage(OUTAGES, max(refused) * 1e3, max(back) * 1e3), rows


@contextlib.contextmanager
def _load(signer: Signer, ca: ClientCA) -> Iterator[None]:
    """Requests for signatures all the time, AT_ONCE at once."""

    async def forever() -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await _sign(signer, ca)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(forever()) for _ in range(AT_ONCE)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _time_until(signer: Signer, ca: ClientCA, *, is_available: bool) -> float:
    started = time.perf_counter()
    while True:
        try:
            await _sign(signer, ca)
        except Unavailable:
            reached = not is_available
        else:
            reached = is_available
        if reached:
            return time.perf_counter() - started
        await asyncio.sleep(0)


async def _local_times(state: str, signer: Signer, ca: ClientCA) -> Stopped:
    times, end = [], time.perf_counter() + STOPPED_SECONDS
    while (started := time.perf_counter()) < end:
        await _sign(signer, ca)
        times.append(time.perf_counter() - started)
        await asyncio.sleep(0)
    return Stopped(state, _percentile(times, 50) * 1e6, _percentile(times, 99) * 1e6)


async def _many(signer: Signer, ca: ClientCA, at_once: int, each: int) -> int:
    """Sign and check. Returns the number of errors."""

    async def some() -> int:
        errors = 0
        for _ in range(each):
            try:
                await _sign(signer, ca)
            except Exception as error:  # noqa: BLE001 - every error counts
                print(f"error: {error}", flush=True)
                errors += 1
        return errors

    return sum(await asyncio.gather(*(some() for _ in range(at_once))))


async def _new_ca(signer: Signer) -> ClientCA:
    return await signer.create_ca(
        CaRequest(
            "00000000-0000-4000-8000-000000000000",
            Registration("bench", "https://10.0.0.5:6443", b""),
            "ec-p256",
            datetime.now(UTC).replace(microsecond=0),
            timedelta(days=3650),
        )
    )


_LEAF_KEY = new_key("ec-p256").public_key()


async def _sign(signer: Signer, ca: ClientCA) -> None:
    """Sign a leaf, and check it as the service does."""
    now = datetime.now(UTC).replace(microsecond=0)
    grant = Grant("rule", "0" * 32, ("clustercert:admins",), now, now + timedelta(hours=8))
    request = new_signing_request(grant, _LEAF_KEY, ca, takes_serial=signer.takes_serial)
    check_leaf(await signer.sign(request), request)


def _percentile(times: list[float], percent: int) -> float:
    return sorted(times)[len(times) * percent // 100]


# Tokens


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _new_token(folder: Path) -> None:
    (folder / "tokens").mkdir(mode=0o700)
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    command = ["softhsm2-util", "--init-token", "--free", "--label", "bench", "--pin", PIN, "--so-pin", PIN]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "pin").touch(mode=0o600)
    (folder / "pin").write_text(PIN)


@contextlib.asynccontextmanager
async def _pkcs11(folder: Path, module: Path) -> AsyncIterator[Signer]:
    settings: dict[str, object] = {
        "module": str(module),
        "token": "bench",
        "pin_file": str(folder / "pin"),
        "threads": AT_ONCE,
        "timeout": 60,
    }
    signer = pkcs11_signer(SignerContext(settings, RingSealer()))
    try:
        yield signer
    finally:
        await signer.close()


class _Daemon:
    """pkcs11-daemon in front of SoftHSM, as a network HSM."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["pkcs11-daemon", SOFTHSM, f"tcp://127.0.0.1:{self._port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not processes.listens(self._port):
            time.sleep(0.005)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _daemon(folder: Path, *, relayed: bool = False) -> Iterator[_Daemon]:
    _new_token(folder)
    with processes.reserved_port() as port, contextlib.ExitStack() as stack:
        address = stack.enter_context(relay.running(port)) if relayed else port
        os.environ["PKCS11_PROXY_SOCKET"] = f"tcp://127.0.0.1:{address}"
        daemon = _Daemon(port)
        stack.callback(daemon.kill)
        yield daemon
