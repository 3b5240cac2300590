"""Examples as written in TOML: a caller, a cluster, a request, and the decision that the policy must make."""

import ipaddress
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from clustercert.model import KeyType
from clustercert.model.identity import BUILT_IN
from clustercert.model.requests import AUTH_METHODS
from clustercert.policy.lifetime import LONGEST, MOST_DAYS
from clustercert.policy.setting_types import (
    AuthMethodName,
    Name,
    RequestLifetime,
    RuleFault,
    RuleLifetime,
    Section,
    TrueOrFalse,
)

# The default time of a decision is a Monday at noon.
DEFAULT_NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
DEFAULT_PROJECT = "0123456789abcdef0123456789abcdef"
DEFAULT_CLUSTER = "01234567-89ab-cdef-0123-456789abcdef"
# RFC 5737: an address for documentation.
DEFAULT_SOURCE = "192.0.2.1"
MAX_REASON = 512
YEARS = range(2000, 2101)


def _address(text: str) -> str:
    if text != "local":
        ipaddress.ip_address(text)
    return text


def _method(name: str) -> str:
    if name not in AUTH_METHODS:
        raise ValueError(f"{name}: unknown authentication method; write {', '.join(AUTH_METHODS)}")
    return name


def _in_range(time: datetime) -> datetime:
    if time.year not in YEARS:
        raise ValueError(f"the year must be from {YEARS[0]} to {YEARS[-1]}")
    return time.astimezone(UTC)


Names = Annotated[tuple[Name, ...], Field(max_length=1000)]
Address = Annotated[str, AfterValidator(_address)]
Method = Annotated[AuthMethodName, AfterValidator(_method)]
Time = Annotated[AwareDatetime, AfterValidator(_in_range)]
ClusterId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class ExampleCaller(Section):
    """`caller` in `[[policy.examples]]`: who sends the request.

    Attributes:
        user: name, name with its domain such as `Default/alice`, or id (32 or 64 hexadecimal digits). Without a domain,
            the user is in the domain `Default`.
        groups: the user's groups, in the same form.
        domain: the domain of the user and the groups, which are then given by their names alone. Examples about an
            issuer with `prefix_names = false` need it: it is the issuer's name.
        roles: the caller's roles in the cluster's project. Without a role, every request is refused.
        service_roles: the caller's roles in the whole service, such as `operator`.
        auth_method: how the caller authenticated: `token`, `access_key`, `oidc`, `keystone`, `keystone_app` for an
            application credential, `keystone_key` for an access key of Keystone.
        issuer: who authenticated the caller: `built-in`, or the URL of an OIDC issuer or of Keystone, which needs
            `user` and `auth_method`. Names are then `ISSUER/NAME`, or `keystone/DOMAIN/NAME`.
        source: the address that the request comes from.
    """

    user: Name = "alice"
    groups: Names = ()
    domain: Name | None = None
    roles: Names = ("member",)
    service_roles: Names = ()
    auth_method: Method = "token"
    issuer: Name = BUILT_IN
    source: Address = DEFAULT_SOURCE


class ExampleCluster(Section):
    """`cluster` in `[[policy.examples]]`: the cluster that the certificate is for.

    Attributes:
        name: the cluster's name.
        id: the cluster's id, a UUID.
        project: the project's id (32 hexadecimal digits), its name, or its domain and name such as `Default/eu-de`. No
            other project has the name.
        labels: a table of labels.
    """

    name: Name = "example"
    id: ClusterId = DEFAULT_CLUSTER
    project: Name = DEFAULT_PROJECT
    labels: dict[str, str] = Field(default={})


class ExampleRequest(Section):
    """`request` in `[[policy.examples]]`: what the caller requests.

    Attributes:
        duration: days, or -1 for the default lifetime, or else the longest; -1 by default.
        expires_in: lifetime, 15m to 1825d, instead of `duration`.
        csr: whether the request has a CSR. By default true if there is a `key_type`.
        key_type: type of the key in the CSR. By default `ec-p256`.
        reason: the reason for the request.
    """

    duration: int | None = Field(default=None, ge=LONGEST, le=MOST_DAYS)
    expires_in: RequestLifetime | None = None
    csr: TrueOrFalse | None = None
    key_type: KeyType | None = None
    reason: str | None = Field(default=None, max_length=MAX_REASON)

    @model_validator(mode="after")
    def _can_be_sent(self) -> Self:
        if self.duration == 0:
            raise RuleFault("duration must be -1 or at least 1", "duration")
        if self.duration is not None and self.expires_in is not None:
            raise RuleFault("write duration or expires_in, not both", "duration")
        if self.key_type is not None and self.csr is False:
            raise RuleFault("key_type is the type of a CSR's key, so it needs csr = true", "key_type")
        return self


class Expectation(Section):
    """`expects` in `[[policy.examples]]`: the decision. Fields that are not given may have any value.

    Attributes:
        refused: whether the request is refused. By default true if there is `refused_by` or `message`.
        refused_by: name of the rule that denies it.
        message: a part of the message that the caller gets.
        groups: exactly these Kubernetes groups, in any order.
        username: the certificate's user name.
        lifetime: the certificate's lifetime.
        max_lifetime: the longest lifetime that the caller could request.
    """

    refused: TrueOrFalse | None = None
    refused_by: Name | None = None
    message: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    groups: Annotated[Names, Field(min_length=1)] | None = None
    username: Name | None = None
    lifetime: RuleLifetime | None = None
    max_lifetime: RuleLifetime | None = None

    @property
    def is_refusal(self) -> bool:
        return bool(self.refused or self.refused_by or self.message)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        given = self.model_fields_set
        if not given:
            raise RuleFault("write what is expected, such as refused = true")
        refusal, grant = sorted(given & {"refused_by", "message"}), sorted(given - _OF_REFUSALS)
        if refusal and self.refused is False:
            raise RuleFault(f"refused = false can't have {refusal[0]}", refusal[0])
        if grant and self.is_refusal:
            raise RuleFault(f"a request that is refused has no {grant[0]}", grant[0])
        return self


_OF_REFUSALS = frozenset({"refused", "refused_by", "message"})


class ExampleSettings(Section):
    """`[[policy.examples]]`: decisions that the policy must make, or else it is not used.

    The tables `caller`, `cluster`, `request` and `expects` are below. All but `expects` have defaults.

    Attributes:
        name: unique name, shown if the policy decides otherwise.
        now: the time of the decision.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    caller: ExampleCaller = ExampleCaller()
    cluster: ExampleCluster = ExampleCluster()
    request: ExampleRequest = ExampleRequest()
    now: Time = DEFAULT_NOW
    expects: Expectation
