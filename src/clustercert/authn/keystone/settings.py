"""The settings of a trusted Keystone."""

import ipaddress
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from clustercert.model import Domain, FederatedDomain, JsonObject
from clustercert.model.ids import id_of
from clustercert.policy.setting_types import Lifetime, Name, NameList, RuleFault, Section, TrueOrFalse

ProjectIds = Annotated[frozenset[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]], Field(max_length=1000)]
RoleNames = Annotated[dict[Name, Name], Field(max_length=500)]


def _keystone_url(value: str) -> str:
    parts = urlsplit(value)
    plain = value.isascii() and value.isprintable() and not set(" @?#") & set(value)
    if not (plain and parts.hostname and parts.path.endswith("/v3")):
        raise ValueError("expected a URL like https://keystone.example.com/v3")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ValueError("tokens and secrets must be encrypted on their way: use https, except on loopback")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


MAX_SECRET = 4096


class UnreadableSecret(Exception):
    """The file with the service's secret can't be read. The message says why."""


class ServiceCredential(Section):
    """`[identity.keystone.service]`: the credential with which the service logs in to Keystone.

    Give a user with a password, or an application credential. Keep secrets in files, which are read for each login, or
    in environment variables.

    Attributes:
        username: name of the service's user.
        user_id: id of the service's user, instead of `username`.
        user_domain: name of the user's domain.
        password: the password. Set this field with the variable `CLUSTERCERT_IDENTITY__KEYSTONE__SERVICE__PASSWORD`.
        password_file: file whose first line is the password.
        application_credential_id: id of an application credential, instead of a user.
        application_credential_secret: secret of the application credential.
        application_credential_secret_file: file whose first line is the secret.
        project: name of the project to which the service's token is scoped. By default, the token has the scope
            `system`.
        project_domain: name of the project's domain.
        project_id: id of the project, instead of `project`.
        domain: name of a domain to which the service's token is scoped, instead of a project.
    """

    username: Name | None = None
    user_id: Name | None = None
    user_domain: Name = "Default"
    password: SecretStr | None = None
    password_file: Path | None = None
    application_credential_id: Name | None = None
    application_credential_secret: SecretStr | None = None
    application_credential_secret_file: Path | None = None
    project: Name | None = None
    project_domain: Name = "Default"
    project_id: Name | None = None
    domain: Name | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        users = [self.username, self.user_id, self.application_credential_id]
        if sum(each is not None for each in users) != 1:
            raise RuleFault("give one of username, user_id and application_credential_id")
        scopes = [self.project, self.project_id, self.domain]
        if sum(each is not None for each in scopes) > 1:
            raise RuleFault("give at most one of project, project_id and domain", "project")
        passwords = [self.password, self.password_file]
        secrets = [self.application_credential_secret, self.application_credential_secret_file]
        if self.application_credential_id is None:
            self._require_one(passwords, secrets, "password or password_file")
        else:
            self._require_one(secrets, passwords, "application_credential_secret or …_secret_file")
            if any(each is not None for each in scopes):
                raise RuleFault(
                    "an application credential has its own scope: remove project, project_id and domain",
                    "application_credential_id",
                )
        return self

    @staticmethod
    def _require_one(
        required: list[SecretStr | Path | None], others: list[SecretStr | Path | None], names: str
    ) -> None:
        if sum(each is not None for each in required) != 1 or any(each is not None for each in others):
            raise RuleFault(f"give either {names}")

    def request(self) -> JsonObject:
        """Return the body of a login request. Reads the secret from its file. Raises UnreadableSecret."""
        if self.application_credential_id is not None:
            secret = self.application_credential_secret or self.application_credential_secret_file
            credential = {"id": self.application_credential_id, "secret": _text(secret)}
            return {
                "auth": {
                    "identity": {
                        "methods": ["application_credential"],
                        "application_credential": credential,
                    }
                }
            }
        user: JsonObject = {"name": self.username, "domain": {"name": self.user_domain}}
        if self.user_id is not None:
            user = {"id": self.user_id}
        user |= {"password": _text(self.password or self.password_file)}
        return {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": self._scope(),
            }
        }

    def _scope(self) -> Mapping[str, object]:
        if self.project_id is not None:
            return {"project": {"id": self.project_id}}
        if self.project is not None:
            return {"project": {"name": self.project, "domain": {"name": self.project_domain}}}
        if self.domain is not None:
            return {"domain": {"name": self.domain}}
        return {"system": {"all": True}}


def _text(secret: SecretStr | Path | None) -> str:
    """Return the secret, or the first line of the file with the secret."""
    if isinstance(secret, SecretStr):
        return secret.get_secret_value()
    assert secret is not None  # noqa: S101 - `_is_complete` requires a secret
    try:
        with secret.open(encoding="utf-8") as file:
            line = file.readline(MAX_SECRET + 1).rstrip("\r\n")
    except UnicodeDecodeError:
        raise UnreadableSecret(f"{secret}: is not text in UTF-8") from None
    except OSError as error:
        raise UnreadableSecret(f"{secret}: {error.strerror}") from None
    if not 1 <= len(line) <= MAX_SECRET:
        raise UnreadableSecret(f"{secret}: the first line is empty or longer than {MAX_SECRET} characters")
    return line


class Keystone(Section):
    """`[identity.keystone]`: a Keystone whose tokens and EC2 credentials are accepted.

    Attributes:
        url: address of Keystone, such as `https://keystone.example.com/v3`.
        name: prefix of the names of Keystone's users and groups: `NAME/DOMAIN/alice`. No domain of this service may
            have this name.
        prefix_names: if false, users and groups have the same names as in Keystone, without a prefix. Policy rules then
            can't distinguish Keystone's users and groups from users and groups of the built-in identity service.
        ca_file: PEM file with the trusted CAs for Keystone's certificate. By default, the system's CAs.
        timeout: longest time for one request to Keystone, 1s to 20s.
        cache: how long Keystone's answers about tokens, users and access keys are reused, 1s to 60s.
        projects: ids of the only projects in which Keystone's users can have roles.
        domain: name or id of a domain of this service. Keystone's users can have roles only in the domain's projects.
        user_domains: ids of domains in Keystone. Only users of these domains are accepted. By default, users of all
            domains are accepted.
        roles: a table that maps role names in Keystone to role names in this service. Roles that are not in the table
            are ignored. Without the table, roles keep their names.
        system_roles: a table that maps role names in Keystone's scope `system` to roles in the whole service, such as
            `admin = "operator"`.
        groups: whether to read the groups of users. If false, users have no groups, and the service's user in Keystone
            needs fewer rights.
        access_keys: whether to accept requests that are signed with EC2 credentials. Keystone shows EC2 credentials to
            users only, so false is required if `service` has an application credential.
    """

    url: Annotated[str, Field(max_length=512), AfterValidator(_keystone_url)]
    name: str = Field(default="keystone", pattern="^[a-z0-9]([a-z0-9.-]{0,30}[a-z0-9])?$")
    prefix_names: TrueOrFalse = True
    ca_file: Path | None = None
    timeout: Lifetime = Field(default=timedelta(seconds=5), ge=timedelta(seconds=1), le=timedelta(seconds=20))
    cache: Lifetime = Field(default=timedelta(seconds=60), ge=timedelta(seconds=1), le=timedelta(seconds=60))
    projects: ProjectIds = frozenset()
    domain: Name | None = None
    user_domains: NameList | None = None
    roles: RoleNames | None = None
    system_roles: RoleNames = Field(default={})
    groups: TrueOrFalse = True
    access_keys: TrueOrFalse = True
    service: ServiceCredential

    @model_validator(mode="after")
    def _is_bound(self) -> Self:
        if not self.projects and self.domain is None:
            raise RuleFault(
                "name the projects or the domain in which Keystone's users can have roles", "projects"
            )
        if self.access_keys and self.service.application_credential_id is not None:
            # With an application credential, Keystone answers "Delegated tokens cannot access credentials directly."
            raise RuleFault(
                "an application credential can't read EC2 credentials: set access_keys = false, or log in as a user",
                "access_keys",
            )
        return self

    @property
    def named_projects(self) -> frozenset[str]:
        return self.projects

    @property
    def role_names(self) -> frozenset[str]:
        """The names that Keystone's roles have in this service: the values of `roles` and `system_roles`."""
        return frozenset((*(self.roles or {}).values(), *self.system_roles.values()))

    @property
    def prefix_domain(self) -> Domain:
        """The domain of Keystone's users and groups if names are prefixed. This domain is not in the database."""
        return FederatedDomain(id_of(self.url), self.name)
