"""The demo's first client: requests a kubeconfig for each tenant, and prints commands to try."""

import asyncio
import base64
import contextlib
import json
import os
import shlex
import signal
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.demo.tenants import DemoError, Say, Tenant
from clustercert.http_client import (
    CannotConnect,
    ConnectionFailed,
    ConnectionLost,
    HttpClient,
    Response,
    UnreadableResponse,
)
from clustercert.model import rfc3339
from clustercert.model.errors import ClustercertError
from clustercert.pki.certificates import fingerprint, parse_certificates
from clustercert.secure_file import write_private
from clustercert.settings import DEMO_FILE

SERVER_LOG = "server.log"
START_SECONDS = 60
REQUEST_SECONDS = 30


@dataclass(slots=True)
class Guide:
    """The demo's first client, which requests kubeconfigs. Runs in a thread of the server's main process.

    Attributes:
        tls_ca: the CA file for the server's certificate, or `None` for plain HTTP.
        failure: why `show` stopped the server, or `None`.
    """

    url: str
    tls_ca: Path | None
    folder: Path
    tenants: tuple[Tenant, ...]
    as_json: bool
    say: Say
    failure: ClustercertError | None = None

    def show(self) -> None:
        """Wait for the server, get a kubeconfig for each tenant, and print the results. Stops the server on failure."""
        try:
            issued = asyncio.run(self._request_kubeconfigs())
        except (ConnectionFailed, UnreadableResponse, OSError, ValueError, ClustercertError) as error:
            self.failure = DemoError(
                f"The demo could not get a kubeconfig: {error}. See {self.folder / SERVER_LOG}."
            )
            os.kill(os.getpid(), signal.SIGINT)
            return
        if self.as_json:
            first, *others = [summary for _, summary in issued]
            print(json.dumps(first | {"tenants": others}), flush=True)  # noqa: T201 - the command's result
        else:
            self._print_guide(issued[0][0], self.tenants[0])

    async def _request_kubeconfigs(self) -> list[tuple[x509.Certificate, dict[str, object]]]:
        """Wait until the server is ready, and request a kubeconfig for each tenant. Raises DemoError.

        Retries after a lost connection. If the user stops the server, the thread therefore reports no failure, but
        retries until the process exits.
        """
        tls = ssl.create_default_context(cafile=self.tls_ca)
        deadline = time.monotonic() + START_SECONDS
        async with HttpClient(tls, 1, base_url=self.url) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(CannotConnect, ConnectionLost):
                    if (await client.send("GET", "/readyz", REQUEST_SECONDS)).status == HTTPStatus.OK:
                        return [await self._request_kubeconfig(client, tenant) for tenant in self.tenants]
                await asyncio.sleep(0.05)
        raise DemoError(f"the server did not become ready within {START_SECONDS} seconds")

    async def _request_kubeconfig(
        self, client: HttpClient, tenant: Tenant
    ) -> tuple[x509.Certificate, dict[str, object]]:
        """Log in, request a kubeconfig for one day, and check the kubeconfig's certificate against the CA.

        Writes the kubeconfig, the certificate, the token and the password to private files. Returns the certificate,
        and a summary for scripts.
        """
        token = await _token(client, tenant)
        headers = {"X-Auth-Token": token, "Accept": "application/yaml"}
        body = {"duration": 1, "reason": "clustercert demo"}
        response = await _post(client, _clustercert_path(tenant), body, headers)
        user = yaml.safe_load(response.content)["users"][0]["user"]
        leaf_pem = base64.b64decode(user["client-certificate-data"])
        leaf = x509.load_pem_x509_certificate(leaf_pem)
        client_ca, kubeconfig = (
            self._file("client-ca", tenant, "pem"),
            self._file("kubeconfig", tenant, "yaml"),
        )
        (issuer,) = parse_certificates(client_ca.read_bytes())
        leaf.verify_directly_issued_by(issuer)
        write_private(kubeconfig, response.content)
        write_private(self._file("certificate", tenant, "pem"), leaf_pem)
        write_private(self._file("token", tenant, "header"), f"X-Auth-Token: {token}\n")
        write_private(self._file("password", tenant, "txt"), f"{tenant.password}\n")
        return leaf, {
            "url": self.url,
            **({"tls_ca": str(self.tls_ca)} if self.tls_ca is not None else {}),
            **asdict(tenant),
            "token": token,
            "kubeconfig": str(kubeconfig),
            "client_ca": str(client_ca),
            "pid": os.getpid(),
        }

    def _file(self, content: str, tenant: Tenant, suffix: str) -> Path:
        return self.folder / f"{content}-{tenant.user_name}.{suffix}"

    def _print_guide(self, leaf: x509.Certificate, tenant: Tenant) -> None:
        """Print the certificate's properties, and commands to copy."""
        groups = leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        self.say(
            f"""
Issued through POST clustercert:
  subject      {leaf.subject.rfc4514_string()}
  groups       {", ".join(str(group.value) for group in groups)}
  valid        {rfc3339(leaf.not_valid_before_utc)} to {rfc3339(leaf.not_valid_after_utc)}
  fingerprint  {fingerprint(leaf).hex()} (SHA-256)
  chain        verified against {leaf.issuer.rfc4514_string()}
  kubeconfig   {self._file("kubeconfig", tenant, "yaml")}
{f"  CA file      {self.tls_ca}, for the certificate of {self.url}{chr(10)}" if self.tls_ca else ""}
Open the web console in a browser:

  {self.url}/console
  user {tenant.user_name}, domain {tenant.user_name}, password in {self._file("password", tenant, "txt")}

Try it from another terminal:
{self._commands(tenant)}
Ctrl-C stops the server; the next run uses the same data."""
        )

    def _commands(self, tenant: Tenant) -> str:
        """Return commands for clustercert, curl, openssl and the vendor's SDK."""
        header, certificate = self._file("token", tenant, "header"), self._file("certificate", tenant, "pem")
        cacert, ca_file, imported, trusting = "", "", "", ""
        if self.tls_ca:
            ca_file = f" --ca-file {_quote(self.tls_ca)}"
            cacert = f" --cacert {_quote(self.tls_ca)}"
            imported = "  from huaweicloudsdkcore.http.http_config import HttpConfig\n"
            trusting = f"      .with_http_config(HttpConfig(ssl_ca_cert={str(self.tls_ca)!r}))\n"
        # The tenant's domain, user and cluster have the same name.
        return f"""
  {_program()} login {self.url} --user {tenant.user_name} --domain {tenant.user_name} \\
    --password-file {_quote(self._file("password", tenant, "txt"))}{ca_file}
  {_program()} kubeconfig get {tenant.user_name}

  curl -sS{cacert} -X POST -H @{_quote(header)} -H 'Content-Type: application/json' \\
    -d '{{"duration": 1}}' {self.url}{_clustercert_path(tenant)}

  openssl x509 -in {_quote(certificate)} -noout -text

  pip install huaweicloudsdkcce && python3 - <<'END'
  import json
  from huaweicloudsdkcore.auth.credentials import BasicCredentials
{imported}  from huaweicloudsdkcce.v3 import CceClient, ClusterCertDuration, CreateKubernetesClusterCertRequest
  me = json.load(open({str(self.folder / DEMO_FILE)!r}))["tenants"][0]
  client = (
      CceClient.new_builder()
{trusting}      .with_credentials(BasicCredentials(me["access_key"], me["secret_key"], me["project_id"]))
      .with_endpoint({self.url!r})
      .build()
  )
  request = CreateKubernetesClusterCertRequest(me["cluster_id"], body=ClusterCertDuration(duration=1))
  print(client.create_kubernetes_cluster_cert(request))
  END
"""


async def _token(client: HttpClient, tenant: Tenant) -> str:
    user = {"id": tenant.user_id, "password": tenant.password}
    identity = {"methods": ["password"], "password": {"user": user}}
    body = {"auth": {"identity": identity, "scope": {"project": {"id": tenant.project_id}}}}
    return (await _post(client, "/v3/auth/tokens", body, {})).headers["x-subject-token"]


async def _post(
    client: HttpClient, path: str, body: Mapping[str, object], headers: Mapping[str, str]
) -> Response:
    response = await client.send("POST", path, REQUEST_SECONDS, headers=headers, body=body)
    if not 200 <= response.status < 300:  # noqa: PLR2004 - RFC 9110: success
        raise DemoError(f"POST {path} was answered with status {response.status}")
    return response


def _clustercert_path(tenant: Tenant) -> str:
    return f"/api/v3/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/clustercert"


def _program() -> str:
    """Return the command with which the user called this program."""
    called = sys.argv[0]
    return f"{sys.executable} -m clustercert" if called.endswith("__main__.py") else shlex.quote(called)


def _quote(path: Path) -> str:
    return shlex.quote(str(path))
