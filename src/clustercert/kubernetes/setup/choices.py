"""An operator's choices for the files of a cluster, and `setup.toml`, which stores them for the next run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

from clustercert.client.connection import ClientError, service_url
from clustercert.kubernetes.setup.distributions import DISTRIBUTIONS, Distribution
from clustercert.model.choices import (
    MAX_TTL_SECONDS,
    DistributionName,
    FailurePolicy,
    ServiceAccountAccess,
    WebhookMode,
)
from clustercert.model.errors import ClustercertError
from clustercert.pki.certificates import chain_pem, parse_certificates
from clustercert.policy.setting_types import Section
from clustercert.policy.toml_tables import UnreadableFile, fault_lines, read_tables

# Kubernetes's limit. Source: kubernetes/staging/src/k8s.io/apiserver/pkg/apis/apiserver/validation.
MAX_TIMEOUT_SECONDS = 30

# Go's format for durations. Kubernetes replaces the duration 0 with 30 seconds, so 0 is rejected here.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
FIRST_WITH_CONFIGURATION, FIRST_WITH_V1, FIRST_WITH_HASHES = 30, 32, 32
"""The first minor versions of Kubernetes with AuthorizationConfiguration, its version v1, and credential ids."""
_FOLDER = re.compile(r"/[A-Za-z0-9._/-]+")
_VERSION = re.compile(r"1\.(2[4-9]|[3-9][0-9])")

_COMMENT = """\
# The options given for the files in this folder. `clustercert kubernetes setup --force` reads the options from
# this file, replaces the options that you give on the command line, and writes this file again. You can also edit this
# file. Options that were never given are not in this file: they follow the settings, the cluster and the defaults.
"""
_TABLE_COMMENTS = {
    "bind": "# The ClusterRole of each group in rbac.yaml. A group without a line is not bound.",
    "written": "# The SHA-256 of the content that was written into each file. These hashes reveal changes "
    "by hand.",
}


class SetupError(ClustercertError):
    """The files can't be written with these choices, or the folder can't be used."""


def duration_seconds(text: str) -> float:
    """Convert a duration in Go's format, such as 1m30s, to seconds."""
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def _checked_duration(text: str, max_seconds: int) -> str:
    whole = "".join(number + unit for number, unit in _DURATION.findall(text))
    if whole != text or not 0 < duration_seconds(text) <= max_seconds:
        raise ValueError(
            f"{text!r} is not valid. Write it like 2s or 500ms, greater than 0 and at most {max_seconds}s."
        )
    return text


def _checked_version(text: str) -> str:
    if _VERSION.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not valid. Write it like 1.29, at least 1.24.")
    return text


def _checked_folder(text: str) -> str:
    # The steps in README.md and REMOVE.md have the path in shell commands, without quotation marks.
    path = PurePosixPath(text)
    if _FOLDER.fullmatch(text) is None or ".." in path.parts or not path.name:
        raise ValueError(
            f"{text!r} is not valid. Write an absolute path of letters, digits, '.', '_', '-' and '/', without '..', "
            "like /etc/kubernetes/clustercert."
        )
    return text


def checked_service_url(url: str) -> str:
    """Check the address at which API servers call this service, and return it without a trailing slash.

    Raises ValueError.
    """
    try:
        base = service_url(url, plain_http=True)
    except ClientError as error:
        raise ValueError(
            "This is not the address of a service. Write it like https://clustercert.example.com, without a path."
        ) from error
    if urlsplit(base).scheme == "http":
        # Source: kubernetes/client-go, tools/clientcmd/client_config.go: IsConfigTransportTLS.
        raise ValueError(
            f"an API server can't use {base}. An API server sends its token only over https, even on "
            "loopback: over http, every request would be rejected and revoked certificates would keep "
            "working unnoticed. Serve TLS (server.tls_certificate and server.tls_key, or `clustercert demo "
            "--tls`), and give the https address with --webhook-url."
        )
    return base


def certificates_only(pem: str | bytes) -> str:
    """Return only the certificates of a PEM file. Raises InvalidRequest if the file is not PEM."""
    return chain_pem(parse_certificates(pem.encode() if isinstance(pem, str) else pem)).decode()


def _checked_pem(pem: str) -> str:
    try:
        return certificates_only(pem)
    except ClustercertError as error:
        raise ValueError(error.message) from error


ServiceUrl = Annotated[str, AfterValidator(checked_service_url)]
CacheTtl = Annotated[str, AfterValidator(lambda text: _checked_duration(text, MAX_TTL_SECONDS))]


class GivenChoices(Section):
    """The choices that an operator gave for one folder: the content of `setup.toml`.

    The fields are named like the options of `kubernetes setup`. A field is unset if its option was not given.

    Attributes:
        kubernetes_version: `None` for 1.32 or newer.
        control_plane_dir: `None` for the distribution's default. See `folder`.
        webhook_ca: the CAs of this service's certificate, in PEM.
        bind: the ClusterRole for each group to bind, including default bindings. A new group of the policy gets no
            rights in the cluster unless the operator gives them.
        written: the digest of the content that was written into each file. See `folder`.
    """

    cluster_id: str
    distribution: DistributionName = "kubeadm"
    mode: WebhookMode | None = None
    kubernetes_version: Annotated[str, AfterValidator(_checked_version)] | None = None
    failure_policy: FailurePolicy = "NoOpinion"
    authorized_ttl: CacheTtl = "5s"
    unauthorized_ttl: CacheTtl | None = None
    timeout: Annotated[str, AfterValidator(lambda text: _checked_duration(text, MAX_TIMEOUT_SECONDS))] = "3s"
    webhook_url: ServiceUrl | None = None
    webhook_ca: Annotated[str, AfterValidator(_checked_pem)] | None = None
    audit: bool = True
    certificate_requests: bool = True
    service_accounts: ServiceAccountAccess = "none"
    control_plane_dir: Annotated[str, AfterValidator(_checked_folder)] | None = None
    bind: Mapping[str, str]
    written: Mapping[str, str] = Field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Return the values that were given, by field."""
        return self.model_dump(exclude_unset=True, exclude_none=True)

    @property
    def traits(self) -> Distribution:
        """The distribution's properties."""
        return DISTRIBUTIONS[self.distribution]

    @property
    def folder(self) -> str:
        """The folder of the files on the control plane."""
        return self.control_plane_dir or self.traits.folder

    def require_cluster(self, cluster_id: str, folder: Path) -> None:
        """Raise SetupError if the folder was written for a different cluster."""
        if self.cluster_id != cluster_id:
            raise SetupError(
                f"{folder} was written for another cluster ({self.cluster_id}), with that cluster's values. Name "
                "another folder."
            )

    @property
    def minor(self) -> int | None:
        """The minor version of Kubernetes; `None` for 1.32 or newer."""
        return None if self.kubernetes_version is None else int(self.kubernetes_version.partition(".")[2])

    @property
    def uses_flags(self) -> bool:
        """Whether the API server is configured by flags instead of an AuthorizationConfiguration."""
        return self.minor is not None and self.minor < FIRST_WITH_CONFIGURATION

    def toml(self) -> str:
        """Return the content of `setup.toml`."""
        lines = [_COMMENT]
        tables = []
        for name, value in self.given().items():
            if isinstance(value, Mapping):
                tables += ["", _TABLE_COMMENTS[name], f"[{name}]"]
                tables += [f"{_toml(key)} = {_toml(each)}" for key, each in value.items()]
            elif name == "webhook_ca" and value is not None:
                # A PEM file has no quotation marks and no backslashes to escape.
                lines.append(f'{name} = """\n{value}"""')
            else:
                lines.append(f"{name} = {_toml(value)}")
        return "\n".join([*lines, *tables, ""])


class SetupChoices(GivenChoices):
    """The choices for one folder: the given choices, and defaults for all other choices.

    Attributes:
        webhook_ca: `None` if the control plane already trusts this service's certificate.
    """

    mode: WebhookMode
    unauthorized_ttl: CacheTtl
    webhook_url: ServiceUrl


def read_choices(path: Path) -> GivenChoices | None:
    """Read `setup.toml`, or return `None` if the file does not exist. Raises SetupError if the file is not valid."""
    if not path.exists():
        return None
    try:
        tables = read_tables(path, "setup")
    except UnreadableFile as error:
        raise SetupError(str(error)) from error
    try:
        return GivenChoices.model_validate(tables.values)
    except ValidationError as error:
        faults = "\n".join(fault_lines(error, GivenChoices, tables, None))
        raise SetupError(
            f"{path} is not valid. Correct the file, or name another folder.\n{faults}"
        ) from error


def _toml(value: object) -> str:
    # A JSON string is also a TOML string, except for the character DEL, which TOML requires to be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
