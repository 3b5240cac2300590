"""The demo as its own first client: a kubeconfig for each tenant, and what there is to try."""

import base64
import contextlib
import json
import os
import shlex
import signal
import ssl
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.certificate import certificates, fingerprint
from clustercert.demo.tenants import DemoError, Say, Tenant
from clustercert.errors import ClustercertError
from clustercert.private_file import write_private
from clustercert.settings import DEMO_FILE

SERVER_LOG = "server.log"
# A worker that has not answered after this long will not.
START_SECONDS = 60


class Guide:
    """The demo's first client, in a thread of the server's main process."""

    def __init__(
        self,
        url: str,
        tls_ca: Path | None,
        folder: Path,
        tenants: tuple[Tenant, ...],
        *,
        as_json: bool,
        say: Say,
    ) -> None:
        """`tls_ca` is the CA file of the server's certificate; None for plain HTTP."""
        self._url = url
        self._tls_ca = tls_ca
        self._folder = folder
        self._tenants = tenants
        self._as_json = as_json
        self._say = say
        self.failure: ClustercertError | None = None

    def show(self) -> None:
        """Wait for the server, get a kubeconfig for each tenant, print what there is to see."""
        try:
            verify = ssl.create_default_context(cafile=self._tls_ca)
            with httpx.Client(base_url=self._url, verify=verify, timeout=30, trust_env=False) as client:
                obtained = self._obtained(client)
        except (httpx.HTTPError, OSError, ValueError, ClustercertError) as error:
            self.failure = DemoError(
                f"The demo could not get its kubeconfig: {error}. See {self._folder / SERVER_LOG}."
            )
            os.kill(os.getpid(), signal.SIGINT)
            return
        if self._as_json:
            first, *others = [one.summary(self._url, self._tls_ca) for one in obtained]
            print(json.dumps(first | {"tenants": others}), flush=True)  # noqa: T201 - the answer
        else:
            _tell(obtained[0], self._url, self._tls_ca, self._folder, self._say)

    def _obtained(self, client: httpx.Client) -> list["_Obtained"]:
        """What all tenants got. Tries again where the server can't be reached: it starts, or has been told to stop."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
                if client.get("/readyz").is_success:
                    return [_Obtained.over(client, tenant, self._folder) for tenant in self._tenants]
            time.sleep(0.05)
        raise DemoError(f"the server did not become ready within {START_SECONDS} seconds")


@dataclass(frozen=True, slots=True)
class _Obtained:
    """What a tenant got over HTTP.

    Attributes:
        files: name -> path of what was written, all of mode 0600.
    """

    tenant: Tenant
    token: str
    leaf: x509.Certificate
    issuer: x509.Certificate
    files: Mapping[str, Path]

    @classmethod
    def over(cls, client: httpx.Client, tenant: Tenant, folder: Path) -> "_Obtained":
        """Log in, ask for a kubeconfig of a day, check it against the client CA, write it down."""
        token = _token(client, tenant)
        answer = client.post(
            f"/api/v3/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/clustercert",
            headers={"X-Auth-Token": token, "Accept": "application/yaml"},
            json={"duration": 1, "reason": "clustercert demo"},
        ).raise_for_status()
        leaf_pem = base64.b64decode(
            yaml.safe_load(answer.text)["users"][0]["user"]["client-certificate-data"]
        )
        leaf = x509.load_pem_x509_certificate(leaf_pem)
        ca_path = folder / f"client-ca-{tenant.user_name}.pem"
        (issuer,) = certificates(ca_path.read_bytes())
        leaf.verify_directly_issued_by(issuer)
        files = {
            "kubeconfig": folder / f"kubeconfig-{tenant.user_name}.yaml",
            "certificate": folder / f"certificate-{tenant.user_name}.pem",
            "header": folder / f"token-{tenant.user_name}.header",
            "client_ca": ca_path,
        }
        write_private(files["kubeconfig"], answer.text)
        write_private(files["certificate"], leaf_pem.decode())
        write_private(files["header"], f"X-Auth-Token: {token}\n")
        return cls(tenant, token, leaf, issuer, files)

    def summary(self, url: str, tls_ca: Path | None) -> dict[str, object]:
        """What scripts get."""
        return {
            "url": url,
            **({"tls_ca": str(tls_ca)} if tls_ca is not None else {}),
            **asdict(self.tenant),
            "token": self.token,
            "kubeconfig": str(self.files["kubeconfig"]),
            "client_ca": str(self.files["client_ca"]),
            "pid": os.getpid(),
        }


def _token(client: httpx.Client, tenant: Tenant) -> str:
    body = {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"id": tenant.user_id, "password": tenant.password}},
            },
            "scope": {"project": {"id": tenant.project_id}},
        }
    }
    return client.post("/v3/auth/tokens", json=body).raise_for_status().headers["X-Subject-Token"]


def _tell(obtained: _Obtained, url: str, tls_ca: Path | None, folder: Path, say: Say) -> None:
    """What was issued, and lines to copy."""
    leaf, tenant, files = obtained.leaf, obtained.tenant, obtained.files
    groups = [
        str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    ]
    say(
        f"""
Issued through POST clustercert:
  subject      {leaf.subject.rfc4514_string()}
  groups       {", ".join(groups)}
  valid        {leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%S} to {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC
  fingerprint  {fingerprint(leaf).hex()} (SHA-256)
  chain        verified against {obtained.issuer.subject.rfc4514_string()}
  kubeconfig   {files["kubeconfig"]}
{f"  CA file      {tls_ca}, of the certificate of {url}{chr(10)}" if tls_ca else ""}
Try it from another terminal:
{_lines_to_copy(tenant, files, url, tls_ca, folder)}
Ctrl-C stops the server; the next run uses the same data."""
    )


def _lines_to_copy(
    tenant: Tenant, files: Mapping[str, Path], url: str, tls_ca: Path | None, folder: Path
) -> str:
    """For curl, openssl and the vendor's SDK."""
    path = f"{url}/api/v3/projects/{tenant.project_id}/clusters/{tenant.cluster_id}/clustercert"
    cacert = f" --cacert {_quote(tls_ca)}" if tls_ca else ""
    imported = "  from huaweicloudsdkcore.http.http_config import HttpConfig\n" if tls_ca else ""
    trusting = f"      .with_http_config(HttpConfig(ssl_ca_cert={str(tls_ca)!r}))\n" if tls_ca else ""
    return f"""
  curl -sS{cacert} -X POST -H @{_quote(files["header"])} -H 'Content-Type: application/json' \\
    -d '{{"duration": 1}}' {path}

  openssl x509 -in {_quote(files["certificate"])} -noout -text

  pip install huaweicloudsdkcce && python3 - <<'END'
  import json
  from huaweicloudsdkcore.auth.credentials import BasicCredentials
{imported}  from huaweicloudsdkcce.v3 import CceClient, ClusterCertDuration, CreateKubernetesClusterCertRequest
  me = json.load(open({str(folder / DEMO_FILE)!r}))["tenants"][0]
  client = (
      CceClient.new_builder()
{trusting}      .with_credentials(BasicCredentials(me["access_key"], me["secret_key"], me["project_id"]))
      .with_endpoint({url!r})
      .build()
  )
  wish = CreateKubernetesClusterCertRequest(me["cluster_id"], body=ClusterCertDuration(duration=1))
  print(client.create_kubernetes_cluster_cert(wish))
  END
"""


def _quote(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))
