"""The Keystone that the operator trusts, and the credential with which the service asks it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from clustercert.model import Domain, FederatedDomain, JsonObject
from clustercert.model.ids import id_of

MAX_SECRET = 4096


class UnreadableSecret(Exception):
    """The file with the service's secret can't be read. The message says why."""


@dataclass(frozen=True, slots=True)
class ServiceCredential:
    """The credential with which the service logs in at Keystone.

    Attributes:
        identity: the user or the application credential, in Keystone's form, without the secret.
        scope: the scope of the token in Keystone's form; None for the scope of the application credential.
        secret: the secret, or the file whose first line it is. The file is read for each login.
    """

    identity: Mapping[str, object]
    scope: Mapping[str, object] | None
    secret: SecretStr | Path = field(repr=False)

    @property
    def uses_password(self) -> bool:
        return self.scope is not None

    def request(self) -> JsonObject:
        """Return the body of a request for a token. Reads the secret's file. Raises UnreadableSecret."""
        secret = self._secret()
        if not self.uses_password:
            found = {**self.identity, "secret": secret}
            return {
                "auth": {"identity": {"methods": ["application_credential"], "application_credential": found}}
            }
        user = {**self.identity, "password": secret}
        return {
            "auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": self.scope}
        }

    def _secret(self) -> str:
        if isinstance(self.secret, SecretStr):
            return self.secret.get_secret_value()
        try:
            with self.secret.open(encoding="utf-8") as file:
                line = file.readline(MAX_SECRET + 1).rstrip("\r\n")
        except UnicodeDecodeError:
            raise UnreadableSecret(f"{self.secret}: is not text in UTF-8") from None
        except OSError as error:
            raise UnreadableSecret(f"{self.secret}: {error.strerror}") from None
        if not 1 <= len(line) <= MAX_SECRET:
            raise UnreadableSecret(f"{self.secret}: the first line is empty or longer than {MAX_SECRET}")
        return line


@dataclass(frozen=True, slots=True)
class Keystone:
    """A trusted Keystone.

    Attributes:
        name: begins the names of its users and groups.
        url: its address, with `/v3`.
        ca_file: CAs of its server, in PEM. Without it, those of the system.
        timeout: seconds for one request.
        cache_seconds: how long its answers are used.
        projects, domain: the only projects in which its users can have roles: by id, or all projects of a domain here.
        user_domains: ids of the only domains in Keystone whose users are accepted; None for all.
        roles: local names of its roles in projects; other roles are dropped. None: roles keep their names.
        system_roles: names of roles in the whole service, by the names of its roles in the scope `system`.
        reads_groups: whether the groups of users are read. Otherwise, users have none.
        accepts_access_keys: whether signatures with EC2 credentials are accepted.
        prefixed: whether users and groups are called `NAME/DOMAIN/…`, so that Keystone can't choose other names.
    """

    name: str
    url: str
    service: ServiceCredential
    ca_file: Path | None = None
    timeout: float = 5.0
    cache_seconds: float = 60.0
    projects: frozenset[str] = frozenset()
    domain: str | None = None
    user_domains: frozenset[str] | None = None
    roles: Mapping[str, str] | None = None
    system_roles: Mapping[str, str] = field(default_factory=dict)
    reads_groups: bool = True
    accepts_access_keys: bool = True
    prefixed: bool = True

    @property
    def role_names(self) -> frozenset[str]:
        """The roles to which the settings rename Keystone's."""
        return frozenset((*(self.roles or {}).values(), *self.system_roles.values()))

    @property
    def prefix_domain(self) -> Domain:
        """The domain of all its users and groups, if names are prefixed. It is not in the store."""
        return FederatedDomain(id_of(self.url), self.name)
