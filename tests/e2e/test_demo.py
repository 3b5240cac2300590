"""The demo as a person and as a script meets it."""

import base64
import contextlib
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml
from cryptography import x509

from support.demo_process import COMMAND, Demo, demo, interrupted, start, uncovered
from support.processes import children, command_line
from support.wait import SECONDS, eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with demo(tmp_path_factory.mktemp("demo") / "data", "--tenants", "2", "--workers", "2") as one:
        yield one


def test_it_says_one_json_object_with_all_it_made(running: Demo) -> None:
    keys = {
        *(
            "url",
            "region",
            "project_id",
            "domain_id",
            "cluster_id",
            "user_id",
            "user_name",
            "password",
            "token",
        ),
        *("access_key", "secret_key", "kubeconfig", "client_ca"),
    }
    assert keys | {"pid", "tenants"} == running.said.keys()
    assert running.said["pid"] == running.process.pid
    assert [tenant.keys() for tenant in running.said["tenants"]] == [keys | {"pid"}] * 2
    everybody = [running.said, *running.said["tenants"]]
    for key in ("project_id", "domain_id", "cluster_id", "user_id", "user_name", "access_key"):
        assert len({tenant[key] for tenant in everybody}) == 3
    assert {tenant["region"] for tenant in everybody} == {"eu-de"}


def test_the_kubeconfig_is_of_the_clusters_client_ca(running: Demo) -> None:
    for tenant in (running.said, *running.said["tenants"]):
        kubeconfig = yaml.safe_load(Path(tenant["kubeconfig"]).read_text())
        assert kubeconfig["current-context"] == "internal"
        leaf = x509.load_pem_x509_certificate(
            base64.b64decode(kubeconfig["users"][0]["user"]["client-certificate-data"], validate=True)
        )
        ca = x509.load_pem_x509_certificate(Path(tenant["client_ca"]).read_bytes())
        leaf.verify_directly_issued_by(ca)
        assert leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == tenant["user_id"]


def test_nobody_else_can_read_the_folder_or_a_file_in_it(running: Demo) -> None:
    assert stat.S_IMODE(running.data_dir.stat().st_mode) == 0o700
    readable_by_others = [
        path.name for path in running.data_dir.iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert readable_by_others == []


def test_no_secret_is_in_the_log_or_on_a_command_line(running: Demo) -> None:
    secrets = [running.said[key] for key in ("password", "token", "secret_key")] + ["PRIVATE KEY"]
    log = (running.data_dir / "server.log").read_text()
    assert "clustercert" in log
    supervisor = running.process.pid
    own = [command_line(pid).decode(errors="replace") for pid in (supervisor, *children(supervisor))]
    command_lines = "".join(own)
    assert "spawn_main" in command_lines
    for secret in secrets:
        assert secret not in log
        assert secret not in command_lines


def test_a_head_has_no_body_on_the_wire(running: Demo) -> None:
    host, port = running.said["url"].removeprefix("http://").split(":")
    head = f"HEAD /readyz HTTP/1.1\r\nHost: {host}\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(head + b"\r\n" + head + b"Connection: close\r\n\r\n")
        answers = b"".join(iter(lambda: connection.recv(4096), b"")).split(b"\r\n\r\n")
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200", b"HTTP/1.1 200", b""]


def test_serve_refuses_the_folder_of_a_demo(running: Demo) -> None:
    refused = running.cli("serve", "--port", "0")
    assert refused.returncode == 1
    assert "demo" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_second_run_uses_what_the_first_one_made(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as first:
        pass
    with demo(tmp_path / "data", "--with-eip", "--tenants", "1") as second:
        kubeconfig = yaml.safe_load(Path(second.said["kubeconfig"]).read_text())
    same = (
        "project_id",
        "domain_id",
        "cluster_id",
        "user_id",
        "user_name",
        "password",
        "access_key",
        "secret_key",
    )
    assert {key: first.said[key] for key in same} == {key: second.said[key] for key in same}
    assert [cluster["name"] for cluster in kubeconfig["clusters"]] == [
        "internalCluster",
        "externalCluster",
        "externalClusterTLSVerify",
    ]
    assert kubeconfig["current-context"] == "external"


def test_with_tls_it_serves_https_with_a_pair_of_its_own(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--tls", "--tenants", "1") as running:
        said = running.said
        assert said["url"].startswith("https://127.0.0.1:")
        assert said["tls_ca"] == str(tmp_path / "data" / "tls-ca.pem")
        assert said["tenants"][0]["tls_ca"] == said["tls_ca"]
        trusting = ssl.create_default_context(cafile=said["tls_ca"])
        for url in (said["url"], said["url"].replace("127.0.0.1", "localhost")):
            assert (
                httpx2.get(f"{url}/healthz", verify=trusting, trust_env=False, timeout=SECONDS).text == "ok\n"
            )
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{said['url']}/healthz", trust_env=False, timeout=SECONDS)
        first = (tmp_path / "data" / "tls-server.pem").read_bytes()
    leaf = x509.load_pem_x509_certificate(first)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    with demo(tmp_path / "data", "--tls"):
        assert (tmp_path / "data" / "tls-server.pem").read_bytes() == first


def test_its_guide_names_the_ca_file_and_logins_that_work(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--tls", "--port", "0", "--data-dir", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C stops" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        commands = said.partition(" login https")[0].rpartition("\n")[2] + " login https"
        commands += said.partition(" login https")[2].partition("\n\n")[0]
        tried = subprocess.run(
            ["sh", "-ec", commands],
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        clusters, requestable = opened_console(said, tmp_path / "data" / "tls-ca.pem")
    finally:
        interrupted(process)
    assert tried.returncode == 0, tried.stderr
    assert "client-certificate-data" in tried.stdout
    assert clusters.status_code == 200
    assert "<bdi>demo</bdi>" in clusters.text
    assert "<bdi>demo:debuggers</bdi>" in requestable.text
    ca = tmp_path / "data" / "tls-ca.pem"
    assert f"curl -sS --cacert {ca} -X POST" in said
    assert f".with_http_config(HttpConfig(ssl_ca_cert='{ca}'))" in said
    assert "http://" not in said


def opened_console(said: str, ca: Path) -> tuple[httpx2.Response, httpx2.Response]:
    """My clusters, and the page that offers access on request, after the login that the guide describes."""
    [(address, user, domain, file)] = re.findall(
        r"\n  (https://\S+/console)\n  user (\S+), domain (\S+), password in (.+)\n", said
    )
    form = {"user": user, "domain": domain, "password": Path(file).read_text().strip()}
    trusting = ssl.create_default_context(cafile=ca)
    with httpx2.Client(verify=trusting, trust_env=False, timeout=SECONDS) as client:
        own_page = {"Origin": address.removesuffix("/console"), "Accept": "text/html"}
        assert client.post(f"{address}/login", data=form, headers=own_page).status_code == 303
        return client.get(f"{address}/clusters"), client.get(f"{address}/requests/new")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path / "data") as running:
        running.process.send_signal(number)
        assert running.process.wait(SECONDS) == 0
        assert running.process.stderr is not None
        said = running.process.stderr.read()
    assert "Traceback" not in said
    assert said.endswith("Stopped.\n")


@pytest.mark.parametrize(
    "moment",
    [0.0, 0.2, *(pytest.param(moment, marks=pytest.mark.long) for moment in (0.05, 0.1, 0.4, 0.8, 1.2))],
)
def test_ctrl_c_before_it_is_ready_ends_it_too(tmp_path: Path, moment: float) -> None:
    with start(tmp_path / "data", env=uncovered()) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            # It may be anywhere in its start; nothing says where it is.
            time.sleep(moment)
            said = interrupted(process)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    # Before the command runs, Python ends itself by the signal; a shell reports 130 for that too.
    assert process.returncode in (0, 130, -signal.SIGINT), said
    assert "Traceback" not in said


def test_a_taken_port_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = subprocess.run(
            [*COMMAND, "demo", "--json", "--port", str(port), "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert f"port {port}" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("obstacle", ["file", "occupied"])
def test_an_unusable_folder_is_one_clear_sentence(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "data"
    if obstacle == "file":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        (folder / "somebody's").write_text("work")
    refused = subprocess.run(
        [*COMMAND, "demo", "--data-dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert refused.returncode == 1
    assert str(folder) in refused.stderr
    assert "Traceback" not in refused.stderr


def test_requests_in_flight_are_finished_when_it_is_told_to_stop(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as running:
        host, port = running.said["url"].removeprefix("http://").split(":")
        body = b'{"duration": 1}'
        head = (
            f"POST {running.clustercert_path} HTTP/1.1\r\nHost: {host}\r\nX-Auth-Token: {running.said['token']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        ).encode()
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall(head)
            # Sent when the body is asked for.
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses_connections(host, int(port)))
            connection.sendall(body)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
                if b'"current-context"' in answer:
                    break
        assert answer.startswith(b"HTTP/1.1 200")
        assert running.process.wait(SECONDS) == 0


def refuses_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except ConnectionError:
        return True
    return False


def test_a_change_by_the_command_line_holds_in_every_worker(running: Demo) -> None:
    tenant = running.said["tenants"][1]
    path = f"/api/v3/projects/{tenant['project_id']}/clusters"

    def statuses() -> set[int]:
        with httpx2.Client(base_url=running.said["url"], trust_env=False, timeout=SECONDS) as client:
            return {
                client.get(path, headers={"X-Auth-Token": tenant["token"], "Connection": "close"}).status_code
                for _ in range(20)
            }

    assert statuses() == {200}
    done = running.cli("user", "disable", tenant["user_id"], "--local", "--yes")
    assert done.returncode == 0, done.stderr
    eventually(lambda: statuses() == {401})
