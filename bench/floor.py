"""Measures the minimum that any issuer needs on this machine: a key and a signature."""

import re
import subprocess
import time
from collections.abc import Callable

from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

_TBS = bytes(500)
_PER_SECOND = re.compile(r"ecdsa \(nistp256\)\s+\S+\s+\S+\s+([\d.]+)")


def measure(seconds: float) -> dict[str, float | str]:
    """Return microseconds on one core. `openssl_sign_us` comes from the system's `openssl speed`."""
    key = ec.generate_private_key(ec.SECP256R1())
    return {
        "openssl": backend.openssl_version_text(),
        "keygen_us": _each(lambda: ec.generate_private_key(ec.SECP256R1()), seconds),
        "sign_us": _each(lambda: key.sign(_TBS, ec.ECDSA(hashes.SHA256())), seconds),
        "rsa_keygen_us": _each(lambda: rsa.generate_private_key(65537, 2048), seconds),
        "openssl_sign_us": _openssl_speed(seconds),
    }


def _each(work: Callable[[], object], seconds: float) -> float:
    work()
    times, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        work()
        times += 1
    return (time.process_time() - started) / times * 1e6


def _openssl_speed(seconds: float) -> float:
    command = ["openssl", "speed", "-seconds", str(max(1, round(seconds))), "ecdsap256"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _PER_SECOND.search(said)
    if found is None:
        raise RuntimeError(f"openssl speed printed an unexpected result: {said}")
    return 1e6 / float(found[1])
