"""Use case: register clusters, show them, look after their client CAs."""

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from clustercert.certificate import certificates, chain_pem, new_client_ca
from clustercert.errors import InvalidRequest, NotFound
from clustercert.keypair import key_der, new_key
from clustercert.model import AuditEvent, Caller, ClientCA, Cluster, ClusterOptions, KeyType, Origin
from clustercert.policy import BACKDATE, is_plain_text, member_roles
from clustercert.sealing import Sealer
from clustercert.store.clusters import ClusterRows, existing

# A client CA outlives every certificate it signs; ten years is kubeadm's choice too.
CA_LIFETIME = timedelta(days=3650)
MAX_SAN_URLS = 16
MAX_CA_BYTES = 64 * 1024
MAX_URL = 512
MAX_VERSION = 64
MAX_EXEMPTIONS = 64
MAX_LISTED_MASTERS = 64
MAX_CREDENTIAL_ROLES = 64

# CCE API reference, "Creating a Cluster": a lower-case letter first, 4 to 128 lower-case letters, digits, hyphens.
# Ours is wider, since clusters that exist already have names already.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# Kubernetes: a role's name is any path segment.
_CLUSTER_ROLE = re.compile(r"(?!\.{1,2}$)[^/%]{1,253}")
_PATTERN = re.compile(r"[^*]{1,252}\*?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True)
class Registration:
    """What an operator says of a cluster; checked by `Clusters`. Field meanings as in `Cluster`."""

    name: str
    internal_url: str
    server_ca_pem: bytes
    external_url: str | None = None
    san_urls: tuple[str, ...] = ()
    version: str = "v1.32"
    labels: Mapping[str, str] = field(default_factory=dict)
    signer: str = "local"
    options: ClusterOptions = field(default_factory=ClusterOptions)

    @classmethod
    def of(cls, cluster: Cluster) -> "Registration":
        """What was said of a registered cluster, to say it again with changes."""
        return cls(**{each.name: getattr(cluster, each.name) for each in fields(cls)})

    def checked(self) -> "Registration":
        """The same, with bounds on everything that will stand in a kubeconfig. Raises InvalidRequest."""
        _check(self)
        # Whatever text stands between the blocks of the file is not for kubeconfigs.
        return replace(self, server_ca_pem=chain_pem(certificates(self.server_ca_pem)))


@dataclass(frozen=True, slots=True)
class Clusters:
    """Registers and shows clusters.

    Attributes:
        ca_key_type: of the client CAs made from now on.
    """

    rows: ClusterRows
    custody: Sealer
    now: Callable[[], datetime]
    ca_key_type: KeyType = "ec-p256"

    async def of_project(self, caller: Caller, project_id: str) -> tuple[Cluster, ...]:
        """The project's clusters. Raises NotFound where the caller has no role in it."""
        member_roles(caller, project_id)
        return await self.rows.in_project(project_id)

    async def show(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        """One cluster. Raises NotFound where it is missing, another project's, or the caller has no role."""
        member_roles(caller, project_id)
        return await existing(self.rows, project_id, cluster_id)

    async def add(self, project_id: str, wanted: Registration, *, actor: str, origin: Origin) -> Cluster:
        """Register a cluster with a client CA of its own. Raises InvalidRequest or Conflict."""
        now = self.now().replace(microsecond=0)
        cluster_id = str(uuid.uuid4())
        cluster = Cluster(
            **_said(wanted),
            id=cluster_id,
            project_id=project_id,
            created_at=now,
            updated_at=now,
            client_ca=await self._new_client_ca(cluster_id, now),
        )
        await self.rows.add(cluster, self._event("cluster.added", cluster, actor, origin))
        return cluster

    async def update(self, cluster: Cluster, wanted: Registration, *, actor: str, origin: Origin) -> Cluster:
        """Change what is said of a cluster; its id and client CA stay. Raises InvalidRequest or Conflict."""
        return await self._replace(replace(cluster, **_said(wanted)), actor, origin)

    async def note_admission_by_number(self, cluster: Cluster, *, actor: str, origin: Origin) -> None:
        """Write no hashes of certificates with a credential number into a cluster any more.

        Whatever else was said of the cluster meanwhile stays. Raises NotFound where it was removed.
        """
        found = next(iter(await self.rows.some([cluster.id])), None)
        if found is None:
            raise NotFound
        options = replace(found.options, admission_by_number=True)
        await self._replace(replace(found, options=options), actor, origin)

    async def _replace(self, wanted: Cluster, actor: str, origin: Origin) -> Cluster:
        changed = replace(wanted, updated_at=self.now().replace(microsecond=0))
        await self.rows.replace(changed, self._event("cluster.updated", changed, actor, origin))
        return changed

    async def remove(self, cluster: Cluster, *, actor: str, origin: Origin) -> None:
        """Forget a cluster and its CA's key. Its API server goes on trusting what is in its own bundle."""
        await self.rows.remove(cluster.id, self._event("cluster.removed", cluster, actor, origin))

    async def _new_client_ca(self, cluster_id: str, now: datetime) -> ClientCA:
        ca_id = uuid.uuid4().hex
        key = new_key(self.ca_key_type)
        # Two CAs of one cluster must not share a name: a verifier finds the issuer by it.
        certificate = new_client_ca(f"clustercert {cluster_id} {ca_id[:8]}", key, now - BACKDATE, CA_LIFETIME)
        sealed_key = await self.custody.seal(key_der(key), f"client_ca:{ca_id}")
        return ClientCA(id=ca_id, cluster_id=cluster_id, certificate=certificate, sealed_key=sealed_key)

    def _event(self, kind: str, cluster: Cluster, actor: str, origin: Origin) -> AuditEvent:
        return AuditEvent(
            at=self.now(),
            kind=kind,
            project_id=cluster.project_id,
            actor=actor,
            subject=cluster.id,
            origin=origin,
            detail={
                "name": cluster.name,
                "internal_url": cluster.internal_url,
                "external_url": cluster.external_url,
                "san_urls": list(cluster.san_urls),
                "signer": cluster.signer,
                "version": cluster.version,
                "labels": dict(cluster.labels),
                "options": asdict(cluster.options),
                "client_ca_id": cluster.client_ca.id,
            },
        )


def _said(wanted: Registration) -> dict[str, Any]:
    """The fields of a cluster that its registration says."""
    checked = wanted.checked()
    return {each.name: getattr(checked, each.name) for each in fields(checked)}


def _check(wanted: Registration) -> None:
    """Bounds on everything that will stand in a kubeconfig. Raises InvalidRequest."""
    if not _NAME.fullmatch(wanted.name):
        raise InvalidRequest("A cluster's name has 1 to 128 letters, digits, dots, hyphens or underscores.")
    if len(wanted.san_urls) > MAX_SAN_URLS:
        raise InvalidRequest(f"A cluster has at most {MAX_SAN_URLS} further addresses.")
    for url in (wanted.internal_url, *filter(None, [wanted.external_url]), *wanted.san_urls):
        check_url(url)
    if len(wanted.server_ca_pem) > MAX_CA_BYTES or b"PRIVATE KEY" in wanted.server_ca_pem:
        raise InvalidRequest("The server CA is a PEM file of certificates only, at most 64 KiB.")
    certificates(wanted.server_ca_pem)
    if not is_plain_text(wanted.version) or not 1 <= len(wanted.version) <= MAX_VERSION:
        raise InvalidRequest("Write the Kubernetes version like v1.32.")
    for key, value in wanted.labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise InvalidRequest(f"{key!r}={value!r} is no Kubernetes label.")
    _check_options(wanted.options)


def _check_options(options: ClusterOptions) -> None:
    """Raises InvalidRequest."""
    if options.mode not in ("default", "known-only"):
        raise InvalidRequest("The webhook's mode is default or known-only.")
    if len(options.exemptions) > MAX_EXEMPTIONS:
        raise InvalidRequest(f"A cluster has at most {MAX_EXEMPTIONS} exemptions.")
    for pattern in options.exemptions:
        if not _PATTERN.fullmatch(pattern) or not is_plain_text(pattern):
            raise InvalidRequest(
                f"{pattern!r} is no exemption; write a user or group, with an asterisk at most at the end,"
                " as in system:*."
            )
    if len(options.listed_masters) > MAX_LISTED_MASTERS:
        raise InvalidRequest(f"A cluster lists at most {MAX_LISTED_MASTERS} certificates of system:masters.")
    for listed in options.listed_masters:
        if not _FINGERPRINT.fullmatch(listed):
            raise InvalidRequest(
                f"{listed!r} is no fingerprint; write the SHA-256 of the certificate's DER in 64 lower-case hex digits."
            )
    _check_roles(options.credential_roles or {})


def _check_roles(roles: Mapping[str, str]) -> None:
    """Raises InvalidRequest."""
    if len(roles) > MAX_CREDENTIAL_ROLES:
        raise InvalidRequest(f"A cluster has at most {MAX_CREDENTIAL_ROLES} ClusterRoles for credentials.")
    for rule, role in roles.items():
        if not _CLUSTER_ROLE.fullmatch(role) or not is_plain_text(role) or not is_plain_text(rule):
            raise InvalidRequest(f"{rule!r}={role!r} names no ClusterRole.")


def check_url(url: str) -> None:
    """Raises InvalidRequest where this is no address of an API server."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if (
        not port_is_fine
        or not url.isascii()
        or not is_plain_text(url)
        or len(url) > MAX_URL
        or parts.scheme != "https"
        or not parts.hostname
        or parts.username is not None
        or parts.query
        or parts.fragment
        or " " in url
    ):
        raise InvalidRequest(f"{url!r} is no address of an API server; write it like https://10.0.0.5:6443.")
