"""TLS as it is served: the pair made at the first start, given files, and what is refused."""

import hashlib
import re
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from ipaddress import ip_address
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from clustercert.settings import DATABASE_FILE
from support.certificate_authority import Authority
from support.command_line import Operator, new_operator
from support.demo_process import COMMAND
from support.wait import SECONDS, eventually


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return new_operator(tmp_path)


@contextmanager
def served(
    operator: Operator, *options: str, self_signed: bool = True
) -> Iterator[tuple[int, str, "subprocess.Popen[str]"]]:
    """A service on all addresses of this machine: its port, what it said when it listened, and its process."""
    serve = ["serve", "--host", "0.0.0.0", "--port", "0", *options]
    process = subprocess.Popen(
        [*COMMAND, "--config", str(operator.config), *serve],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said, listening = "", None
    while listening is None:
        line = process.stderr.readline()
        assert line, said
        said += line
        listening = re.search(r"Listening on https://0\.0\.0\.0:(\d+)", line)
    for _ in range(2 if self_signed else 1):
        said += process.stderr.readline()
    try:
        yield int(listening[1]), said, process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        process.stderr.close()


def shown(port: int) -> bytes:
    """The certificate that the server shows, DER."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


@pytest.mark.full
def test_the_pairs_folder_is_made_where_the_database_lies_elsewhere(
    operator: Operator, tmp_path: Path
) -> None:
    elsewhere = (tmp_path / "data" / DATABASE_FILE).rename(tmp_path / "elsewhere.db")
    (tmp_path / "data").rename(tmp_path / "former")
    settings = operator.config.read_text()
    operator.config.write_text(f"database_url = 'sqlite+aiosqlite:///{elsewhere}'\n{settings}")
    with served(operator) as (port, _, _):
        assert shown(port)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def refused(operator: Operator, **environment: str) -> str:
    done = subprocess.run(
        [*COMMAND, "--config", str(operator.config), "serve", "--port", "0"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_off_loopback_a_pair_is_made_once_and_its_ca_is_what_clients_need(operator: Operator) -> None:
    with served(operator) as (port, said, _):
        ca = Path(re.search(r"Give its CA to clients: (.+)", said)[1])  # type: ignore[index] # a failure says so
        assert hashlib.sha256(shown(port)).hexdigest() in said
        for host in ("localhost", "127.0.0.1"):
            with httpx2.Client(
                verify=ssl.create_default_context(cafile=ca), trust_env=False, timeout=SECONDS
            ) as client:
                assert client.get(f"https://{host}:{port}/healthz").text == "ok\n"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"https://127.0.0.1:{port}/healthz", trust_env=False, timeout=SECONDS)
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=SECONDS)
        first = shown(port)
    assert [stat.S_IMODE(path.stat().st_mode) for path in ca.parent.glob("tls-*")] == [0o600] * 3
    with served(operator) as (port, _, _):
        assert shown(port) == first


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(operator: Operator) -> None:
    with served(operator) as (port, _, _):
        spoken = []
        for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as plain:
                try:
                    with context.wrap_socket(plain) as connection:
                        spoken.append(connection.version())
                except (ssl.SSLError, ConnectionError):
                    spoken.append(None)
    assert spoken == [None, "TLSv1.2", "TLSv1.3"]


def new_pair() -> tuple[x509.Certificate, bytes, bytes]:
    """A certificate, its PEM with the CA's, and its key's PEM."""
    key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=2))
    return leaf, chain_pem((leaf, ca)), key_pem(key)


def given(operator: Operator, folder: Path) -> x509.Certificate:
    """Configure files in a folder; what is in them."""
    leaf, certificate, key = new_pair()
    (folder / "tls.pem").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    with operator.config.open("a") as config:
        config.write(f'\n[server]\ntls_certificate = "{folder}/tls.pem"\ntls_key = "{folder}/tls.key"\n')
    return leaf


def test_given_files_are_served(operator: Operator, tmp_path: Path) -> None:
    leaf = given(operator, tmp_path)
    with served(operator, self_signed=False) as (port, _, _):
        assert x509.load_der_x509_certificate(shown(port)) == leaf


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_renewed_tls_files_need_no_restart_and_keep_connections(
    operator: Operator, tmp_path: Path, workers: str
) -> None:
    given(operator, tmp_path)
    leaf, certificate, key = new_pair()
    with (
        served(operator, "--workers", workers, self_signed=False) as (port, _, _),
        httpx2.Client(
            base_url=f"https://127.0.0.1:{port}",
            verify=False,
            trust_env=False,
            timeout=SECONDS,
        ) as client,
    ):
        assert client.get("/healthz").text == "ok\n"
        # Half of a pair is not taken up, and the former one is served until the other half comes.
        (tmp_path / "tls.pem").write_bytes(certificate)
        former = shown(port)
        (tmp_path / "tls.key").write_bytes(key)
        der = leaf.public_bytes(Encoding.DER)
        eventually(lambda: {shown(port) for _ in range(4 * int(workers))} == {der})
        assert former != der
        assert client.get("/healthz").text == "ok\n"


def client(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "CLUSTERCERT_PASSWORD": "correct horse"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def renew(folder: Path, authority: Authority, *, with_ca: bool) -> None:
    pair = authority.server_identity_pem("clustercert", [x509.IPAddress(ip_address("127.0.0.1"))])
    (folder / "tls.key").write_bytes(pair)
    (folder / "tls.pem").write_bytes(pair + (authority.certificate_pem if with_ca else b""))


@pytest.mark.full
def test_who_trusts_the_ca_need_not_log_in_again_after_a_renewal(operator: Operator, tmp_path: Path) -> None:
    authority, home = Authority("Example CA"), tmp_path / "home"
    home.mkdir()
    given(operator, tmp_path)
    renew(tmp_path, authority, with_ca=True)
    (tmp_path / "password").write_text("correct horse")
    operator.output("user", "create", "alice", "--password-file", tmp_path / "password")
    printed = operator.output("fingerprint", "-o", "name").strip()
    assert printed == hashlib.sha256(authority.certificate.public_bytes(Encoding.DER)).hexdigest()
    with served(operator, self_signed=False) as (port, said, _):
        assert re.findall(r"\b[0-9a-f]{64}\b", said) == [printed]
        login = ("login", f"https://127.0.0.1:{port}", "--user", "alice")
        assert f"add --ca-fingerprint {printed} after you compared it" in client(home, *login).stderr
        mistaken = client(home, *login, "--ca-fingerprint", hashlib.sha256(shown(port)).hexdigest())
        assert (mistaken.returncode, mistaken.stdout) == (1, "")
        assert f"fingerprint of its issuer, {printed}," in mistaken.stderr
        assert client(home, "status").returncode == 3
        done = client(home, *login, "--ca-fingerprint", printed)
        assert done.returncode == 0, done.stderr

        former = shown(port)
        renew(tmp_path, authority, with_ca=True)
        eventually(lambda: shown(port) != former)
        assert client(home, "status").returncode == 0

        former = shown(port)
        renew(tmp_path, Authority("Another CA"), with_ca=False)
        eventually(lambda: shown(port) != former)
        refused = client(home, "status")
        assert refused.returncode == 6
        assert "If the service has a new certificate, run `clustercert login`" in refused.stderr
        assert refused.stderr.count("(unable to get local issuer certificate)") == 1
        asked = client(home, "login")
        assert "is not the certificate of the last login." in asked.stderr
        printed = operator.output("fingerprint", "-o", "name").strip()
        assert client(home, "login", "--ca-fingerprint", printed).returncode == 0


@pytest.mark.full
def test_sighup_loads_the_files_and_the_policy_and_keeps_connections(
    operator: Operator, tmp_path: Path
) -> None:
    leaf = given(operator, tmp_path)
    log = tmp_path / "service.log"
    with operator.config.open("a") as config:
        config.write(f'[log]\nfile = "{log}"\n')
    with (
        served(operator, "--workers", "2", self_signed=False) as (port, _, process),
        closing(HTTPSConnection("127.0.0.1", port, context=trusting(tmp_path / "tls.pem"))) as kept,
    ):
        assert healthy(kept)
        connection = kept.sock
        # A worker that starts after the other one has reloaded starts with the new policy.
        eventually(lambda: log.read_text().count('"policy loaded"') == 2)
        with operator.config.open("a") as config:
            config.write(
                '[[policy.rules]]\nname = "admin"\nwhen.roles = ["admin"]\ngrant.groups = ["others"]\n'
            )
        process.send_signal(signal.SIGHUP)
        eventually(lambda: log.read_text().count('"TLS files reloaded"') == 2)
        # Once in each worker. It may have noticed the change before the signal came, and then reloads once more.
        eventually(lambda: log.read_text().count('"changed":["policy.rules"]') == 2)
        assert healthy(kept)
        assert kept.sock is connection
        assert x509.load_der_x509_certificate(shown(port)) == leaf


def trusting(chain: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=chain)


def healthy(connection: HTTPSConnection) -> bool:
    connection.request("GET", "/healthz")
    return connection.getresponse().read() == b"ok\n"


@pytest.mark.full
def test_files_that_can_not_be_used_leave_the_former_ones_in_place(
    operator: Operator, tmp_path: Path
) -> None:
    leaf = given(operator, tmp_path)
    log = tmp_path / "service.log"
    with operator.config.open("a") as config:
        config.write(f'[log]\nfile = "{log}"\n')
    with served(operator, self_signed=False) as (port, _, _):
        (tmp_path / "tls.key").write_bytes(new_pair()[2])
        eventually(lambda: "renewed TLS files not usable" in log.read_text())
        assert x509.load_der_x509_certificate(shown(port)) == leaf


def test_files_that_do_not_belong_together_are_refused(operator: Operator, tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    leaf, _ = new_server_certificate(new_key("ec-p256"), ["127.0.0.1"], now, timedelta(days=2))
    (tmp_path / "tls.pem").write_bytes(chain_pem((leaf,)))
    (tmp_path / "tls.key").write_bytes(key_pem(new_key("ec-p256")))
    files = {
        "CLUSTERCERT_SERVER__TLS_CERTIFICATE": f"{tmp_path}/tls.pem",
        "CLUSTERCERT_SERVER__TLS_KEY": f"{tmp_path}/tls.key",
    }
    assert "Can't use the TLS files" in refused(operator, **files)
    (tmp_path / "tls.key").unlink()
    assert f"Can't read the TLS file {tmp_path}/tls.key: No such file or directory." in refused(
        operator, **files
    )
    assert "set both tls_certificate and tls_key" in refused(
        operator, CLUSTERCERT_SERVER__TLS_KEY=f"{tmp_path}/tls.key"
    )
