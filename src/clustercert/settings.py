"""Settings from a TOML file and from `CLUSTERCERT_…` environment variables, which take precedence.

The settings are read once, in `cli`, and passed to constructors. The tables in docs/configuration.md are generated from
the docstrings here: run `make docs` after a change.
"""

import contextlib
import hashlib
import os
import re
from datetime import timedelta
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from clustercert.audit.publish_targets import PublishTarget, parse_target
from clustercert.authn.identity_settings import IdentitySettings
from clustercert.clusters.registration import ClusterLimits
from clustercert.limits.rates import (
    PROJECT_REVOCATIONS,
    REVOCATIONS,
    TEMPORARY_KEYS,
    TOKENS,
    Kind,
    Rate,
    parse_rate,
)
from clustercert.model import KeyType
from clustercert.model.choices import ServerRole
from clustercert.model.errors import ClustercertError
from clustercert.model.name_patterns import Names
from clustercert.model.requests import is_protected_url, is_service_url
from clustercert.model.wheel import wheel_file
from clustercert.observability import canonical_json
from clustercert.pki.openbao_settings import OpenBaoSettings
from clustercert.policy.decision import Policy
from clustercert.policy.examples import example_failures
from clustercert.policy.lifetime import MAX_DAYS, MOST_DAYS
from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.setting_types import Lifetime, RuleFault, Section, TrueOrFalse
from clustercert.policy.toml_tables import (
    Tables,
    UnreadableFile,
    fault_lines,
    merged,
    read_policy_file,
    read_tables,
)

if TYPE_CHECKING:
    from clustercert.custody.sources import KekSource

# This file marks a folder as the data folder of `clustercert demo`. The file also contains the demo's secrets.
DEMO_FILE = "demo.json"
DATABASE_FILE = "clustercert.db"


class SettingsError(ClustercertError):
    """The settings are invalid. The message names the field and the values that the field accepts."""


def _base_url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or value.endswith("/"):
        raise ValueError("expected a URL like https://clustercert.example.com, without a slash at the end")
    return value


def _service_url(value: str) -> str:
    if not is_service_url(value):
        raise ValueError(f"{value}: expected a URL like https://clustercert.example.com, without a path")
    return value


# Source: sslmode in the documentation of libpq. asyncpg accepts the same modes in `ssl`.
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_MAX_PORT = 65535


def _database_url(value: str) -> str:
    if not value.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite:///")):
        raise ValueError(
            "expected a URL like postgresql+asyncpg://user@host/database or sqlite+aiosqlite:////path/to/file.db"
        )
    if "sslmode=" in value:
        raise ValueError("sslmode is not supported: use ?ssl=require or ?ssl=verify-full")
    ssl = re.search(r"[?&]ssl=([^&]*)", value)
    if ssl is not None and ssl[1] not in _SSL_MODES:
        raise ValueError(f"ssl must be one of {', '.join(_SSL_MODES)}")
    target = re.search(r"[?&]target_session_attrs=([^&]*)", value)
    if target is not None and target[1] not in ("primary", "read-write"):
        raise ValueError(
            f"target_session_attrs={target[1]} would read from a standby, which may lag behind: leave this "
            "parameter out"
        )
    # SQLAlchemy is slow to import, and a service without this setting needs it only later.
    from sqlalchemy.engine import make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        url = make_url(value)
    except (ValueError, ArgumentError):
        # The exception's message is not shown, because it may contain a part of the password.
        raise ValueError("the port must be a number, and an IPv6 address needs brackets") from None
    if url.port is not None and not 0 < url.port <= _MAX_PORT:
        raise ValueError(f"the port must be between 1 and {_MAX_PORT}")
    if value.startswith("sqlite") and not url.database:
        raise ValueError("the path of the file is missing")
    return value


def _webhook_url(value: str) -> str:
    if not is_protected_url(value):
        raise ValueError(
            "expected a URL like https://tickets.example.com/hook, without user and fragment; http:// only for loopback"
        )
    return value


def _collector_url(value: str) -> str:
    """Check the URL of a collector. Returns it without a slash at the end."""
    if not value:
        return ""
    parts = urlsplit(value)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or set("?#") & set(value)
    ):
        raise ValueError(
            "expected a URL like http://collector.example.com:4318, without user, query and fragment"
        )
    if not _is_installed("opentelemetry.sdk"):
        raise ValueError(f"traces need further packages: run pip install {wheel_file(extra='otel')}")
    return value.rstrip("/")


def _is_installed(module: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return find_spec(module) is not None
    return False


def _check_pair(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("set both tls_certificate and tls_key, or neither")


AuditTarget = Annotated[PublishTarget, PlainValidator(parse_target, json_schema_input_type=str)]
IssuingRate = Annotated[Rate, PlainValidator(parse_rate, json_schema_input_type=str)]
ServiceUrl = Annotated[str, AfterValidator(_service_url)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]


class ServerSettings(Section):
    """`[server]`: address, workers, TLS and time limits.

    Attributes:
        host, port: address to listen on. Port 0 takes any free port.
        workers: number of processes; use one per core.
        tls_certificate, tls_key: PEM files; the chain begins with the leaf. By default, the service creates both, and
            a CA, in the data folder, unless it listens on loopback.
        plain_http: serve without TLS on addresses other than loopback, behind a proxy that terminates TLS.
        public_url: URL of the service for its clients, shown in the catalog. By default, the service takes the URL from
            each request.
        other_urls: further URLs of the service. A user who has allowed one URL to receive an issuer's tokens is not
            asked again for the other URLs.
        trusted_proxies: networks of proxies, such as `10.0.0.0/8`. For requests from these networks, the source address
            is taken from `X-Forwarded-For`. Other requests have the address of their connection as source address.
        body_timeout: longest time in seconds for receiving a request body.
        request_timeout: longest time in seconds for processing a request.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    plain_http: TrueOrFalse = False
    public_url: BaseUrl | None = None
    other_urls: Annotated[tuple[ServiceUrl, ...], Field(max_length=16)] = ()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(default=(), max_length=64)
    body_timeout: float = Field(default=10, gt=0)
    request_timeout: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def _both_or_none(self) -> "ServerSettings":
        _check_pair(self.tls_certificate, self.tls_key)
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs of the service in `public_url` and `other_urls`, except a `public_url` with a path or query."""
        public = (self.public_url,) if is_service_url(self.public_url) and self.public_url is not None else ()
        return tuple(dict.fromkeys((*public, *self.other_urls)))


class WebhookSettings(Section):
    """`[webhook]`: the webhook for API servers as a separate process, `serve --role webhook`.

    Attributes:
        host, port: address to listen on. Port 0 takes any free port.
        workers: number of processes.
        tls_certificate, tls_key: PEM files; the chain begins with the leaf. By default, the files of `[server]`.
        plain_http: serve without TLS on addresses other than loopback, behind a proxy that terminates TLS.
        client_ca: PEM file with CAs. Only clients with a certificate from one of these CAs can connect.
        public_url: URL at which API servers reach the webhook, for `kubernetes setup`. By default, `public_url` of
            `[server]`.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8081, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    plain_http: TrueOrFalse = False
    client_ca: Path | None = None
    public_url: BaseUrl | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> "WebhookSettings":
        _check_pair(self.tls_certificate, self.tls_key)
        return self


class ApiSettings(Section):
    """`[api]`: variants of the CCE API.

    Attributes:
        insecure_external: the kubeconfig's cluster entry `externalCluster` does not verify the API server's
            certificate, as in CCE. If false, the entry contains the API server's CA.
        max_duration: longest `duration` of a request in days, 1825 to 1827. Some of Huawei's clouds allow 1826 or 1827.
            A certificate is valid for more than 1825 days only if `policy.max_lifetime` allows this.
        recommended_client: version of the command line that users should have at least, such as `0.2.0`. An older
            command line prints a recommendation once a day, at a terminal. By default, no version is recommended.
        documentation: serve `/openapi.json`, and `/docs`, which needs the extra `docs`.
    """

    insecure_external: TrueOrFalse = True
    max_duration: int = Field(default=MAX_DAYS, ge=MAX_DAYS, le=MOST_DAYS)
    recommended_client: str | None = Field(default=None, pattern=r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$")
    documentation: TrueOrFalse = True


class IssuingSettings(Section):
    """`[issuing]`: generated keys, and disk space.

    Attributes:
        key_type: key type of leaf certificates that are requested without a CSR.
        ca_key_type: key type of the client CAs of new clusters.
        disk_reserve_mib: free disk space in MiB for the SQLite file. With less free space, requests for certificates
            get status 503, but revocations continue. 0 disables the check.
    """

    key_type: KeyType = "ec-p256"
    ca_key_type: KeyType = "ec-p256"
    disk_reserve_mib: int = Field(default=64, ge=0)


class LimitSettings(Section):
    """`[limits]`: failed authentications, issued certificates, revocations, tokens, keys and clusters.

    See [Limits](operations.md#limits).

    Attributes:
        failures_per_minute: maximum number of failed authentications from one source address in a minute, per worker; 0
            means no limit.
        rates: maximum rates of issued certificates, such as `caller = "20/1h"` in `[limits.rates]`. By default, there
            is no limit.
        live_certificates: maximum number of live certificates of a user for a cluster. By default, there is no limit.
        tokens: maximum rate at which a user of the built-in identity service can get tokens, per worker.
        temporary_keys: maximum rate at which a user of the built-in identity service can get temporary access keys,
            per worker.
        revocations: maximum rate at which a caller can revoke certificates, per worker. Operators have no limit.
        project_revocations: maximum rate at which all admins of a project together can revoke certificates of other
            users, per worker. Operators have no limit.
        clusters_per_project: maximum number of clusters in a project.
        cas_per_cluster: maximum number of CAs that a cluster's API server may have.
        ca_kib_per_cluster: maximum total size of the CAs of a cluster's API server, in KiB of PEM.
        page_kib: approximate maximum size of a page of a list, in KiB. While a worker renders a page, the worker's
            other requests wait.
    """

    failures_per_minute: int = Field(default=60, ge=0)
    rates: dict[Kind, IssuingRate] = Field(default={})
    live_certificates: int | None = Field(default=None, ge=1)
    tokens: IssuingRate = TOKENS
    temporary_keys: IssuingRate = TEMPORARY_KEYS
    revocations: IssuingRate = REVOCATIONS
    project_revocations: IssuingRate = PROJECT_REVOCATIONS
    clusters_per_project: int = Field(default=ClusterLimits().clusters, ge=1)
    cas_per_cluster: int = Field(default=ClusterLimits().cas, ge=1)
    ca_kib_per_cluster: int = Field(default=ClusterLimits().ca_kib, ge=1, le=64)
    page_kib: int = Field(default=1024, ge=64, le=65_536)

    @property
    def clusters(self) -> ClusterLimits:
        return ClusterLimits(self.clusters_per_project, self.cas_per_cluster, self.ca_kib_per_cluster)


class RevocationSettings(Section):
    """`[revocation]`: undoing revocations.

    Attributes:
        undo_window: how long an operator can undo a revocation, 0s to 30d. Revocations because of a compromised key,
            and revocations by proof of possession of the certificate's key, can't be undone.
    """

    undo_window: Lifetime = Field(default=timedelta(hours=1), ge=timedelta(0), le=timedelta(days=30))


class AuditSettings(Section):
    """`[audit]`: publishing, retention and checks of the audit log.

    See [The audit log](audit.md).

    Attributes:
        publish: targets for checkpoints: `file:/path`, `https://…`, `syslog:/dev/log`, `syslog://host:port`.
        publish_every: interval between publications. If the log has not grown, nothing is published.
        refusals_per_minute: maximum number of denied requests of one caller in a minute that a worker records
            individually. Further denied requests are only counted, in one event a minute.
        retention: how long events are stored. The commitments of deleted events stay in the log. By default, events are
            stored forever.
        check_every: pause between two checks of all stored certificates.
    """

    publish: tuple[AuditTarget, ...] = Field(default=(), max_length=16)
    publish_every: Lifetime = Field(default=timedelta(minutes=1), ge=timedelta(seconds=1))
    refusals_per_minute: int = Field(default=10, ge=1)
    retention: Lifetime | None = Field(default=None, ge=timedelta(days=1))
    check_every: Lifetime = Field(default=timedelta(hours=24), ge=timedelta(minutes=1))


class RequestSettings(Section):
    """`[requests]`: a webhook that tells another system of access requests.

    See [Tell other systems](access-requests.md#tell-other-systems).

    Attributes:
        webhook_url: URL that gets a message about each step of an access request; http only for loopback.
        webhook_secret_file: file with the secrets that sign the messages, one on each line: `whsec_` and 24 to 64
            bytes in base64. Each message has a signature with each secret. The file must have mode 0600.
        webhook_ca: PEM file with the trusted CAs for the receiver's certificate. By default, the system's CAs.
    """

    webhook_url: Annotated[str, Field(max_length=2048), AfterValidator(_webhook_url)] | None = None
    webhook_secret_file: Path | None = None
    webhook_ca: Path | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> "RequestSettings":
        if (self.webhook_url is None) != (self.webhook_secret_file is None):
            raise ValueError("set both webhook_url and webhook_secret_file, or neither")
        return self


class ConsoleSettings(Section):
    """`[console]`: the web console at `/console`.

    See [Web console](console.md).

    Attributes:
        enabled: serve the console. If false, the service loads no part of the console.
    """

    enabled: TrueOrFalse = False


class MetricsSettings(Section):
    """`[metrics]`: access to `/metrics`, which is denied by default.

    Attributes:
        public: allow all requests.
        loopback: allow requests from loopback without a token. Set this only if no proxy runs on this machine: all
            requests through such a proxy come from loopback.
        token: allow requests with this bearer token.
    """

    public: TrueOrFalse = False
    loopback: TrueOrFalse = False
    token: SecretStr | None = None


class TracingSettings(Section):
    """`[tracing]`: traces of requests and jobs, sent to an OpenTelemetry collector.

    Needs `clustercert[otel]`; see [Traces](tracing.md).

    Attributes:
        endpoint: URL of the collector (OTLP over HTTP), such as `http://127.0.0.1:4318`. By default, there are no
            traces.
        sample_ratio: share of the traces that is recorded, 0 to 1. If a trusted proxy sends `traceparent`, the proxy
            decides.
    """

    endpoint: Annotated[str, AfterValidator(_collector_url)] = ""
    sample_ratio: float = Field(default=0.01, ge=0, le=1)


class LogSettings(Section):
    """`[log]`: the service's log, one line per event.

    Attributes:
        file: append to this file instead of standard output.
        format: by default, `console` on a terminal, otherwise `json`.
        level: lowest level to log.
    """

    file: Path | None = None
    format: Literal["json", "console"] | None = None
    level: Literal["debug", "info", "warning", "error"] = "info"


class TransitKekSettings(OpenBaoSettings, Section):
    """`[kek_transit]`: a key-encryption key in OpenBao or HashiCorp Vault.

    The key never leaves the server: its transit secrets engine encrypts and decrypts the data keys. If `kek_file` is
    set too, both keys encrypt each data key, and each of them can decrypt it. See [Key-encryption keys](keys.md).

    Attributes:
        key: name of the key in the transit secrets engine.
    """

    key: str = Field(default="clustercert", max_length=64, pattern=r"^[A-Za-z0-9_-]+$")


class Settings(BaseSettings):
    """Data, database, keys and name.

    Write these fields at the top of the file, before the first table.

    Attributes:
        data_dir: folder for data on disk; created with mode 0700.
        database_url: SQLAlchemy URL, `postgresql+asyncpg://user@host/database` or `sqlite+aiosqlite:////path`. By
            default, an SQLite file in the data folder.
        kek_file: file with key-encryption keys, one on each line: 32 bytes in base64. The first key encrypts, the
            others only decrypt. Keep the file outside the data folder, with mode 0600.
        kek: key-encryption keys, separated by commas; used instead of `kek_file`. Set the keys with the variable
            `CLUSTERCERT_KEK`.
        kek_transit: a key-encryption key in OpenBao or Vault, in a table `[kek_transit]`.
        service_name: name of this service in requests that certificate holders sign, such as revocations. Each service
            needs a different name.
        signers: settings of each signer in a table `[signers.NAME]`, where NAME is the signer's entry point.
    """

    model_config = SettingsConfigDict(
        env_prefix="CLUSTERCERT_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Path("clustercert-data")
    database_url: DatabaseUrl | None = None
    kek_file: Path | None = None
    kek: SecretStr | None = None
    kek_transit: TransitKekSettings | None = None
    service_name: str = Field(
        default="clustercert", pattern=r"^[A-Za-z0-9]([A-Za-z0-9./-]{0,126}[A-Za-z0-9])?$"
    )
    server: ServerSettings = ServerSettings()
    webhook: WebhookSettings = WebhookSettings()
    api: ApiSettings = ApiSettings()
    identity: IdentitySettings = IdentitySettings()
    issuing: IssuingSettings = IssuingSettings()
    signers: dict[str, dict[str, Any]] = Field(default={}, repr=False)
    limits: LimitSettings = LimitSettings()
    policy: PolicySettings = PolicySettings()
    revocation: RevocationSettings = RevocationSettings()
    audit: AuditSettings = AuditSettings()
    requests: RequestSettings = RequestSettings()
    console: ConsoleSettings = ConsoleSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()

    @property
    def demo(self) -> bool:
        """Whether the data folder belongs to `clustercert demo`."""
        # Return False if the folder can't be read, because opening the database later reports the reason.
        return os.path.exists(self.data_dir / DEMO_FILE)  # noqa: PTH110 - `Path.exists` raises an error

    @property
    def store_url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.resolve() / DATABASE_FILE}"

    def kek_sources(self) -> "tuple[KekSource, ...]":
        """Return the sources of key-encryption keys, those that need no network first.

        Raises SettingsError if no source is set, or if the file with the keys is in the data folder.
        """
        # `custody` imports the store, which is not needed for reading the settings.
        from clustercert.custody.keks import KekFile, KekVariable  # noqa: PLC0415
        from clustercert.custody.transit import TransitSource  # noqa: PLC0415

        sources: list[KekSource] = []
        if self.kek is not None:
            keys = self.kek.get_secret_value().replace(",", "\n")
            sources.append(KekVariable("CLUSTERCERT_KEK", keys))
        elif self.kek_file is not None:
            if self.kek_file.resolve().is_relative_to(self.data_dir.resolve()) and not self.demo:
                raise SettingsError(
                    f"The key-encryption key {self.kek_file} is in the data folder, so a copy of the data "
                    "includes the key. Move the key to another folder and set kek_file."
                )
            sources.append(KekFile(self.kek_file))
        if self.kek_transit is not None:
            sources.append(TransitSource(self.kek_transit, self.kek_transit.key))
        if not sources:
            raise SettingsError(
                "There is no key-encryption key. Create one with `clustercert keys generate --out FILE` outside the"
                " data folder and set kek_file, or set CLUSTERCERT_KEK or [kek_transit]."
            )
        return tuple(sources)

    def for_role(self, role: ServerRole) -> "Settings":
        """Return the settings for a process with this role.

        For the role `webhook`, `server` contains the listener of `[webhook]` instead of the listener of `[server]`.
        """
        if role != "webhook":
            return self
        webhook = self.webhook
        files = webhook if webhook.tls_certificate is not None else self.server
        server = self.server.model_copy(
            update={
                "host": webhook.host,
                "port": webhook.port,
                "workers": webhook.workers,
                "plain_http": webhook.plain_http,
                "tls_certificate": files.tls_certificate,
                "tls_key": files.tls_key,
            }
        )
        return self.model_copy(update={"server": server})

    @model_validator(mode="after")
    def _issuers_in_rules_exist(self) -> Self:
        known = self.identity.urls
        for number, rule in enumerate(self.policy.rules or ()):
            for name in rule.when.issuers or ():
                if not Names((name,)).match(tuple(known)):
                    raise RuleFault(
                        f"no issuer has the URL {name}; the issuers are {', '.join(sorted(known))}",
                        *("policy", "rules", number, "when", "issuers"),
                    )
        return self

    @model_validator(mode="after")
    def _examples_have_possible_callers(self) -> Self:
        for number, example in enumerate(self.policy.examples):
            if (fault := self.identity.example_fault(example.caller)) is not None:
                field, problem = fault
                raise RuleFault(problem, "policy", "examples", number, "caller", field)
        return self

    def loaded_policy(self) -> Policy:
        """Return the policy, combined with the other settings that affect policy decisions."""
        return self.policy.policy(self.issuing.key_type, self.identity.authority_names)

    def check_examples(self) -> None:
        """Run the policy's examples. Raises SettingsError with the first examples that fail."""
        if failures := example_failures(self.loaded_policy(), self.policy.examples):
            raise SettingsError(failures)

    @property
    def shared_database(self) -> bool:
        """Whether other machines may use the same database."""
        return not self.store_url.startswith("sqlite")


def load(config: Path | None, policy_file: Path | None = None, /, **overrides: object) -> Settings:
    """Load the settings.

    Overrides from the command line take precedence over the environment, which takes precedence over the settings file.
    Raises SettingsError with one line for each wrong field.

    Args:
        config: the settings file.
        policy_file: takes the place of the whole table `[policy]`.
        overrides: tables and fields from the command line.
    """
    try:
        values, from_file = _values(config, overrides)
        if policy_file is not None:
            values["policy"] = {"file": policy_file}
        from_policy_file = read_policy_file(values.get("policy"))
        if from_policy_file is not None:
            values |= {"policy": values["policy"] | from_policy_file.values}
        return Settings(**values)
    except UnreadableFile as error:
        raise SettingsError(str(error)) from error
    except UnreadableVariable as error:
        raise SettingsError(f"Can't parse an environment variable CLUSTERCERT_…: {error}.") from error
    except ValidationError as error:
        raise SettingsError(_faults(error, config or policy_file, from_file, from_policy_file)) from error


def settings_digest(settings: Settings) -> str:
    """Return the SHA-256 of the settings, in hex, by which replicas can be compared.

    Nobody can guess a secret from the digest: it covers no passwords, no values of type secret, and of the signers
    only their names.
    """
    # See `_database_url`.
    from sqlalchemy.engine import make_url  # noqa: PLC0415

    database = make_url(settings.store_url).set(password=None).difference_update_query(["password"])
    values = settings.model_dump(
        mode="json", exclude={"database_url", "signers"}, fallback=str, warnings=False
    )
    values |= {"database_url": str(database), "signers": sorted(settings.signers)}
    return hashlib.sha256(canonical_json.dumps(values, sort_names=True)).hexdigest()


def named_policy_file(config: Path | None) -> Path | None:
    """Return the path of the policy file that the settings name.

    Returns None if the settings name no policy file, or if the settings can't be read.
    """
    try:
        policy = _values(config, {})[0].get("policy")
    except (UnreadableFile, UnreadableVariable, RecursionError, ValueError):
        return None
    file = policy.get("file") if isinstance(policy, dict) else None
    return Path(str(file)) if file else None


def _values(config: Path | None, overrides: dict[str, Any]) -> tuple[dict[str, Any], Tables]:
    """Read the settings file and the environment. Raises UnreadableFile or UnreadableVariable."""
    from_file = read_tables(config) if config is not None else Tables({}, "")
    return merged(merged(from_file.values, EnvSettingsSource(Settings)()), overrides), from_file


def _faults(
    error: ValidationError, config: Path | None, from_file: Tables, from_policy_file: Tables | None
) -> str:
    where = f"{config} and the environment" if config else "the environment (CLUSTERCERT_…)"
    lines = fault_lines(error, Settings, from_file, from_policy_file)
    return "\n".join([f"Invalid settings in {where}:", *lines])
