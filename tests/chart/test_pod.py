"""The program runs with what the Helm chart renders."""

import contextlib
import hashlib
import io
import re
import ssl
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support import chart_pod, helm_chart, postgres
from support.certificate_authority import Authority
from support.chart_pod import Pod, Running
from support.helm_chart import CHART, Release, rendered
from support.page_steps import PASSWORD, Reader, blocks_with_output, compare
from support.terminal import in_a_terminal
from support.wait import SECONDS, eventually

pytestmark = [
    pytest.mark.full,
    pytest.mark.slow,
    pytest.mark.skipif(not helm_chart.is_installed(), reason="Helm is not in .venvs/chart: run `make chart`"),
]
EXEC = re.compile(r"\$ kubectl exec (?:-it )?statefulset/clustercert -c (\w+) -- clustercert (.+)")


def probe(release: Release, name: str, running: Running) -> str:
    """The answer to the readiness probe. Kubelets do not verify the certificate."""
    request = release.container(name)["readinessProbe"]["httpGet"]
    url = f"{request['scheme'].lower()}://127.0.0.1:{running.port}{request['path']}"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return httpx2.get(url, verify=context, trust_env=False, timeout=SECONDS).raise_for_status().text


def certificate(running: Running) -> bytes:
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", running.port)))


def test_a_release_with_only_a_name_and_a_key_is_a_working_service(tmp_path: Path) -> None:
    """From the first start, by the commands in the chart's README, to a changed policy and a changed key."""
    if reason := chart_pod.missing():
        pytest.skip(reason)
    release, changed, broken = rendered(
        {},
        {"config": {"policy": {"max_lifetime": "8h"}}},
        {"config": {"policy": {"username": "{nobody}"}}},
    )
    keys = {"kek": chart_pod.new_kek()}
    pod = Pod(release, "api", tmp_path, {"clustercert-kek": keys})
    first, login = blocks_with_output("deploy/chart/README.md", "Install")
    create, assign, fingerprint, set_up, rotate = EXEC.findall((CHART / "README.md").read_text())
    pod.initialise()
    with pod.running("api") as api, pod.running("webhook") as webhook:
        for name, running in (("api", api), ("webhook", webhook)):
            assert probe(release, name, running) == '{"status": "ready"}'
        assert certificate(api) == certificate(webhook)

        typed = {"Password (at least": f"{PASSWORD}\n", "Repeat": f"{PASSWORD}\n"}
        code, screen = in_a_terminal(create[1].split(), typed, {}, program=pod.exec_command(create[0]))
        assert code == 0, screen
        compare(first.steps[0], screen)
        code, screen = in_a_terminal(assign[1].split(), {}, {}, program=pod.exec_command(assign[0]))
        assert code == 0, screen
        compare(first.steps[1], screen)
        printed = run(*pod.exec_command(fingerprint[0]), *fingerprint[1].split()).strip()
        assert printed == hashlib.sha256(certificate(api)).hexdigest()
        compare(first.steps[2], printed)
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        words = {
            "https://localhost:8443": f"https://localhost:{api.port}",
            first.steps[2].printed[0]: printed,
        }
        olga = Reader(tmp_path, words, {"HOME": str(tmp_path), "PATH": path})
        # The port is on this machine already.
        olga.special[login.steps[0].command] = lambda _: None
        olga.follow_steps(login.steps)
        client = (sys.executable, "-m", "clustercert")
        run(*client, "project", "create", "eu-de", home=tmp_path)
        ca = tmp_path / "ca.pem"
        ca.write_bytes(Authority("kube-apiserver-ca").certificate_pem)
        added = ("cluster", "add", "prod", "--project", "eu-de", "--internal-url", "https://127.0.0.1:1")
        run(*client, *added, "--server-ca", str(ca), home=tmp_path)
        archive = run(*pod.exec_command(set_up[0]), *set_up[1].partition(" | ")[0].split())
        with tarfile.open(fileobj=io.BytesIO(archive.encode())) as files:
            kubeconfig = files.extractfile("webhook.kubeconfig")
            assert kubeconfig is not None
            assert b"https://clustercert-webhook.prod.svc:8444/" in kubeconfig.read()

        for update, said in (
            (broken, "settings not reloaded"),
            (changed, '"changed":["policy.max_lifetime"]'),
        ):
            pod.update(update)
            for running in (api, webhook):
                eventually(lambda log=running.log, text=said: text in log.read_text())  # type: ignore[misc]

        keys["kek"] = chart_pod.new_kek() + keys["kek"]
        pod.update(changed)
        assert (
            run(*pod.exec_command(rotate[0]), *rotate[1].split(), "-o", "json").count('"rewrapped": 1') == 1
        )


def test_several_pods_share_a_database(server: postgres.Server, tmp_path: Path) -> None:
    """On PostgreSQL: both Deployments, which all upgrade the schema at the same time."""
    if reason := chart_pod.missing():
        pytest.skip(reason)
    key = new_key("ec-p256")
    chain = new_server_certificate(key, ["localhost"], datetime.now(UTC), timedelta(days=1))
    policy = {"policy.toml": b'max_lifetime = "8h"\nrole_groups = true\n'}
    objects = {
        "clustercert-kek": {"kek": chart_pod.new_kek()},
        "database": {"url": server.create().encode()},
        "tls": {"tls.crt": chain_pem(chain), "tls.key": key_pem(key)},
        "metrics": {"token": b"a-token-for-prometheus"},
        "policy": policy,
    }
    named = {each: {"existingSecret": each} for each in ("database", "tls", "metrics")}
    [release] = rendered({**named, "policyConfigMap": "policy"})
    roles = ("api", "webhook", "api", "webhook")
    pods = [Pod(release, role, tmp_path / str(number), objects) for number, role in enumerate(roles)]
    with ThreadPoolExecutor(len(pods)) as threads:
        list(threads.map(Pod.initialise, pods))
    with contextlib.ExitStack() as stack:
        all_running = [
            stack.enter_context(pod.running(role)) for pod, role in zip(pods[:2], roles[:2], strict=True)
        ]
        for role, running in zip(roles, all_running, strict=False):
            assert probe(release, role, running) == '{"status": "ready"}'
            assert certificate(running) == chain[0].public_bytes(Encoding.DER)
            context = ssl.create_default_context(cadata=chain_pem(chain[1:]).decode())
            url = f"https://localhost:{running.port}/metrics"
            with httpx2.Client(verify=context, trust_env=False, timeout=SECONDS) as client:
                assert client.get(url).status_code == 403
                token = {"Authorization": "Bearer a-token-for-prometheus"}
                assert "clustercert_requests_total" in client.get(url, headers=token).text

        policy["policy.toml"] = policy["policy.toml"].replace(b"8h", b"4h")
        for pod, running in zip(pods, all_running, strict=False):
            pod.update(release)
            eventually(lambda log=running.log: '"changed":["policy.max_lifetime"]' in log.read_text())  # type: ignore[misc]


def run(*command: str, home: Path | None = None) -> str:
    environment = {"PATH": "/usr/bin:/bin"} | ({"HOME": str(home)} if home is not None else {})
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
