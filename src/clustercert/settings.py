"""One tree of settings: a TOML file, then `CLUSTERCERT_…` from the environment, which wins.

Read once, in `cli`, and passed on by constructor. Every field has a default that works or says in one line what is
missing. `CLUSTERCERT_SERVER__PORT=8443` sets `port` in `[server]`.
"""

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from clustercert.audit.addresses import Address, parsed_address
from clustercert.errors import ClustercertError
from clustercert.manifests.access import SERVICE
from clustercert.model import KeyType, PolicyRule
from clustercert.policy import MAX_LIFETIME, Policy, parse_lifetime

# A data folder with this file in it belongs to `clustercert demo`: its secrets lie beside its database.
DEMO_FILE = "demo.json"
DATABASE_FILE = "clustercert.db"


class SettingsError(ClustercertError):
    """The settings can't be used; the message names the field and what it wants."""


def _lifetime(value: object) -> object:
    return parse_lifetime(value) if isinstance(value, str) else value


def _base_url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or value.endswith("/"):
        raise ValueError("write it like https://clustercert.example.com, with no slash at the end")
    return value


def _database_url(value: str) -> str:
    if not value.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite:///")):
        raise ValueError(
            "write it like postgresql+asyncpg://user@host/database or sqlite+aiosqlite:////path/to/file.db"
        )
    if "sslmode=" in value:
        raise ValueError("the driver calls sslmode ssl: write ?ssl=require or ?ssl=verify-full")
    return value


Lifetime = Annotated[timedelta, BeforeValidator(_lifetime)]
AuditAddress = Annotated[Address, BeforeValidator(parsed_address)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]


class Section(BaseModel):
    """A table of the file; an unknown field is an error, not a typo that does nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    """`[server]`: where to listen, and how.

    Attributes:
        workers: processes; one per core is right.
        tls_certificate, tls_key: PEM files, chain leaf first. Without them and off loopback a self-signed pair is
            made in the data folder.
        plain_http: serve without TLS on an address other than loopback; for a proxy that ends TLS.
        public_url: how clients reach the service; in the catalog. Derived from each request where it is None.
        body_timeout, request_timeout: seconds until a request is given up.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    plain_http: bool = False
    public_url: BaseUrl | None = None
    body_timeout: float = Field(default=10, gt=0)
    request_timeout: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def _both_or_none(self) -> "ServerSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both or none")
        return self


class ApiSettings(Section):
    """`[api]`: the CCE surface.

    Attributes:
        insecure_external: `externalCluster` skips the check of the server's certificate, as CCE's own does; false
            gives it the CA instead and keeps its name.
        get_clustercert: answer the deprecated GET form, which issues a certificate without a request body.
        endpoints: the shape of a cluster's `status.endpoints`: an object (Open Telekom Cloud) or a list of
            url and type (Huawei Cloud).
    """

    insecure_external: bool = True
    get_clustercert: bool = True
    endpoints: Literal["object", "list"] = "object"


class IdentitySettings(Section):
    """`[identity]`: the built-in identity.

    Attributes:
        region: the region in the catalog; projects are conventionally named like it.
    """

    region: str = Field(default="eu-de", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    token_lifetime: Lifetime = timedelta(hours=24)


class IssuingSettings(Section):
    """`[issuing]`: the keys that the service makes.

    Attributes:
        key_type: of leaves where no CSR is sent.
        ca_key_type: of client CAs of clusters added from now on.
    """

    key_type: KeyType = "ec-p256"
    ca_key_type: KeyType = "ec-p256"


class RuleSettings(Section):
    """`[[policy.rules]]`: what the members of a role get."""

    role: str = Field(min_length=1, max_length=64)
    groups: tuple[str, ...] = Field(min_length=1, max_length=32)
    max_lifetime: Lifetime = MAX_LIFETIME

    @model_validator(mode="after")
    def _within_the_contract(self) -> "RuleSettings":
        if not timedelta(minutes=15) <= self.max_lifetime <= MAX_LIFETIME:
            raise ValueError("max_lifetime must be 15m to 1825d")
        return self


class PolicySettings(Section):
    """`[policy]`: the first rule whose role the caller has in the project wins.

    Attributes:
        allow_system: names beginning with `system:` that may be issued. A member of `system:masters` passes every
            authorizer of a cluster and can't be revoked.
    """

    rules: tuple[RuleSettings, ...] = (
        RuleSettings(role="admin", groups=("clustercert:admins",)),
        RuleSettings(role="member", groups=("clustercert:editors",)),
        RuleSettings(role="reader", groups=("clustercert:viewers",)),
    )
    allow_system: frozenset[str] = frozenset()

    @model_validator(mode="after")
    def _names_can_be_issued(self) -> "PolicySettings":
        policy = self.policy()
        for rule in self.rules:
            for group in rule.groups:
                if problem := policy.name_problem(group):
                    raise ValueError(f"rule for role {rule.role}: {problem}")
                # Its members would be this service itself.
                if group == SERVICE:
                    raise ValueError(
                        f"rule for role {rule.role}: {group} is a name that this service uses itself."
                    )
        return self

    def policy(self) -> Policy:
        """The rules as the policy has them."""
        rules = tuple(
            PolicyRule(role=rule.role, groups=rule.groups, max_lifetime=rule.max_lifetime)
            for rule in self.rules
        )
        return Policy(rules=rules, allowed_system_names=self.allow_system)


class RevocationSettings(Section):
    """`[revocation]`: taking certificates back.

    Attributes:
        undo_window: for how long an operator can undo a revocation; never that of a compromised key or its holder.
    """

    undo_window: Lifetime = Field(default=timedelta(hours=1), ge=timedelta(0), le=timedelta(days=30))


class AuditSettings(Section):
    """`[audit]`: what is done with the audit log beside keeping it.

    Attributes:
        publish: where checkpoints are handed on to: file:/path, https://…, syslog:/dev/log, syslog://host:port.
        publish_every: how often, if the log has grown.
        retention: for how long events are kept; their commitments stay in the log. For ever where it is None.
        check_certificates: look over the stored certificates in the background.
        check_every: how long the next round waits behind the end of the last one.
    """

    publish: tuple[AuditAddress, ...] = Field(default=(), max_length=16)
    publish_every: Lifetime = Field(default=timedelta(minutes=1), ge=timedelta(seconds=1))
    retention: Lifetime | None = Field(default=None, ge=timedelta(days=1))
    check_certificates: bool = True
    check_every: Lifetime = Field(default=timedelta(hours=24), ge=timedelta(minutes=1))


class MetricsSettings(Section):
    """`[metrics]`: who may read `/metrics`: loopback and whoever has the token, or everybody."""

    public: bool = False
    token: SecretStr | None = None


class LogSettings(Section):
    """`[log]`: one line an event.

    Attributes:
        format: where it is None: JSON, unless a terminal reads.
        file: appended to, instead of standard output.
    """

    file: Path | None = None
    format: Literal["json", "console"] | None = None
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """All settings.

    Attributes:
        data_dir: what the service keeps on disk; made with mode 0700.
        database_url: an SQLAlchemy URL of PostgreSQL or SQLite; an SQLite file in the data folder where it is None.
        kek_file: key-encryption keys, base64, one a line, the first one wraps; mode 0600, outside the data folder.
        kek: the same from the environment (`CLUSTERCERT_KEK`), separated by commas.
        service_name: what the service is called where something is signed for it; a holder's revocation names it.
            Give each service its own.
    """

    model_config = SettingsConfigDict(
        env_prefix="CLUSTERCERT_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Path("clustercert-data")
    database_url: DatabaseUrl | None = None
    kek_file: Path | None = None
    kek: SecretStr | None = None
    service_name: str = Field(
        default="clustercert", pattern=r"^[A-Za-z0-9]([A-Za-z0-9./-]{0,126}[A-Za-z0-9])?$"
    )
    server: ServerSettings = ServerSettings()
    api: ApiSettings = ApiSettings()
    identity: IdentitySettings = IdentitySettings()
    issuing: IssuingSettings = IssuingSettings()
    policy: PolicySettings = PolicySettings()
    revocation: RevocationSettings = RevocationSettings()
    audit: AuditSettings = AuditSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @property
    def demo(self) -> bool:
        """Whether the data folder is the demo's."""
        return (self.data_dir / DEMO_FILE).exists()

    @property
    def store_url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.resolve() / DATABASE_FILE}"

    @property
    def shared_database(self) -> bool:
        """Whether other machines may use the database as well."""
        return not self.store_url.startswith("sqlite")


def load(config: Path | None, **overrides: object) -> Settings:
    """The settings: overrides (the command line) win over the environment, which wins over the TOML file.

    Raises SettingsError with one line for each wrong field.
    """
    try:
        from_file = tomllib.loads(config.read_text(encoding="utf-8")) if config is not None else {}
        from_environment = EnvSettingsSource(Settings)()
        return Settings(**_merged(_merged(from_file, from_environment), overrides))
    except OSError as error:
        raise SettingsError(f"The configuration file {config} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The configuration file {config} is not TOML: {error}.") from error
    except UnreadableVariable as error:
        raise SettingsError(f"An environment variable CLUSTERCERT_… can't be read: {error}.") from error
    except ValidationError as error:
        raise SettingsError(_sentences(error, config)) from error


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, table by table; what stands above wins."""
    merged = below | above
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = _merged(below[name], above[name])
    return merged


def _sentences(error: ValidationError, config: Path | None) -> str:
    where = f"{config} and the environment" if config else "the environment (CLUSTERCERT_…)"
    lines = [
        f"  {'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    ]
    return "\n".join([f"The settings from {where} can't be used:", *lines])
