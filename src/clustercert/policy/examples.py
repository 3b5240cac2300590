"""Examples of decisions that a policy must make: their settings, and a check that the policy makes the decisions."""

import functools
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from clustercert.model import (
    Caller,
    ClientCA,
    Cluster,
    Domain,
    Grant,
    Group,
    IssueRequest,
    KeyType,
    Origin,
    PublicKey,
    User,
)
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.errors import ClustercertError, NotFound
from clustercert.model.identity import BUILT_IN, DEFAULT_DOMAIN, ProjectName, domain_by_issuer
from clustercert.model.ids import id_of, is_user_id
from clustercert.model.requests import AUTH_METHODS
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import RSA_EXPONENT, new_key
from clustercert.policy.decision import Policy
from clustercert.policy.lifetime import LONGEST, MOST_DAYS, lifetime_text
from clustercert.policy.setting_types import (
    AuthMethodName,
    Name,
    RequestLifetime,
    RuleFault,
    RuleLifetime,
    Section,
    TrueOrFalse,
)
from clustercert.policy.templates import MAX_REASON

# The default time of a decision is a Monday at noon.
DEFAULT_NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
DEFAULT_PROJECT = "0123456789abcdef0123456789abcdef"
DEFAULT_CLUSTER = "01234567-89ab-cdef-0123-456789abcdef"
# RFC 5737: an address for documentation.
DEFAULT_SOURCE = "192.0.2.1"
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
        groups: the user's groups, written in the same form as `user`.
        domain: the domain of the user and the groups. If `domain` is given, write the names of the user and the groups
            without a domain. Examples for an issuer with `prefix_names = false` need the issuer's name as `domain`.
        roles: the caller's roles in the cluster's project. Without a role, every request is refused.
        service_roles: the caller's roles in the whole service, such as `operator`.
        auth_method: how the caller authenticated: `token`, `access_key`, `oidc`, `keystone`, `keystone_app` for an
            application credential, `keystone_key` for an access key of Keystone.
        issuer: who authenticated the caller: `built-in`, or the URL of an OIDC issuer or of Keystone. With a URL, give
            `user` and `auth_method` too, and write names as `ISSUER/NAME` or `keystone/DOMAIN/NAME`.
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
        project: the project's id (32 hexadecimal digits), its name, or its domain and name such as `Default/eu-de`. The
            example assumes that no other project has this name.
        labels: the cluster's labels, as a table.
    """

    name: Name = "example"
    id: ClusterId = DEFAULT_CLUSTER
    project: Name = DEFAULT_PROJECT
    labels: dict[str, str] = Field(default={})


class ExampleAccess(Section):
    """`request.access` in `[[policy.examples]]`: the access request whose groups the caller asks for.

    The access begins at the time of the decision and lasts as long as the rule allows.

    Attributes:
        rule: name of the rule that offers the groups.
        groups: the requested Kubernetes groups.
        approved: whether all approvals were given.
    """

    rule: Name
    groups: Annotated[Names, Field(min_length=1)]
    approved: TrueOrFalse = True


class ExampleRequest(Section):
    """`request` in `[[policy.examples]]`: what the caller requests.

    Attributes:
        duration: days, or -1 for the default lifetime of the matching rules. If the matching rules have no default
            lifetime, -1 stands for the longest lifetime allowed. By default, -1.
        expires_in: lifetime, 5m to 1825d, instead of `duration`.
        shorten: whether to shorten an `expires_in` that exceeds the limit, as for kubectl, instead of refusing the
            request.
        csr: whether the request has a CSR. By default, true if `key_type` is given.
        key_type: type of the key in the CSR. By default `ec-p256`.
        reason: the reason for the request.
        access: the caller's access request. By default, the caller has none, and gets only groups of rules with
            `grant`.
    """

    duration: int | None = Field(default=None, ge=LONGEST, le=MOST_DAYS)
    expires_in: RequestLifetime | None = None
    shorten: TrueOrFalse | None = None
    csr: TrueOrFalse | None = None
    key_type: KeyType | None = None
    reason: str | None = Field(default=None, max_length=MAX_REASON)
    access: ExampleAccess | None = None

    @model_validator(mode="after")
    def _can_be_sent(self) -> Self:
        if self.duration == 0:
            raise RuleFault("duration must be -1 or at least 1", "duration")
        if self.duration is not None and self.expires_in is not None:
            raise RuleFault("write duration or expires_in, not both", "duration")
        if self.shorten and self.expires_in is None:
            raise RuleFault("shorten needs expires_in", "shorten")
        if self.key_type is not None and self.csr is False:
            raise RuleFault("key_type is the type of a CSR's key, so it needs csr = true", "key_type")
        return self


class Expectation(Section):
    """`expects` in `[[policy.examples]]`: the decision. Fields that are not given are not checked.

    Attributes:
        refused: whether the request is refused. By default, true if `refused_by` or `message` is given.
        refused_by: name of the rule that denies the request.
        message: a part of the message that the caller gets.
        groups: exactly these Kubernetes groups, in any order.
        username: the certificate's user name.
        lifetime: the certificate's lifetime.
        max_lifetime: the longest lifetime that the caller could request.
        offers: exactly these rules, in any order, offer groups that the caller can request. If only `offers` is given,
            the request may be allowed or refused.
    """

    refused: TrueOrFalse | None = None
    refused_by: Name | None = None
    message: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    groups: Annotated[Names, Field(min_length=1)] | None = None
    username: Name | None = None
    lifetime: RuleLifetime | None = None
    max_lifetime: RuleLifetime | None = None
    offers: Names | None = None

    @property
    def is_refusal(self) -> bool:
        return bool(self.refused or self.refused_by or self.message)

    @property
    def is_only_of_offers(self) -> bool:
        """Whether the request may be allowed or refused."""
        return self.model_fields_set == {"offers"}

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        given = self.model_fields_set
        if not given:
            raise RuleFault("write what is expected, such as refused = true")
        refusal, grant = sorted(given & {"refused_by", "message"}), sorted(given - _OF_REFUSALS - {"offers"})
        if refusal and self.refused is False:
            raise RuleFault(f"refused = false contradicts {refusal[0]}; remove one of the two", refusal[0])
        if grant and self.is_refusal:
            raise RuleFault(f"a request that is refused has no {grant[0]}; remove {grant[0]}", grant[0])
        return self


_OF_REFUSALS = frozenset({"refused", "refused_by", "message"})


class ExampleSettings(Section):
    """`[[policy.examples]]`: decisions that the policy must make.

    The service rejects a policy that decides an example differently. The tables `caller`, `cluster`, `request` and
    `expects` are described below. All tables except `expects` have defaults.

    Attributes:
        name: unique name, shown if the policy decides the example differently.
        now: the time of the decision.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    caller: ExampleCaller = ExampleCaller()
    cluster: ExampleCluster = ExampleCluster()
    request: ExampleRequest = ExampleRequest()
    now: Time = DEFAULT_NOW
    expects: Expectation


NO_ROLE = "The caller has no role in the project."
# The maximum number of failed examples in a message.
MAX_FAILED = 3
# Longer than any certificate's lifetime, so that the end of the CA does not shorten certificates in examples.
_CA_LIFETIME = timedelta(days=36500)


@dataclass(frozen=True, slots=True)
class ExampleOutcome:
    """What the policy decided about an example.

    Attributes:
        grant: `None` if the request is refused.
        message: why the request is refused; empty if the request is allowed.
        refused_by: the rule that denies the request, or None.
        lifetime, max_lifetime: the granted lifetime, and the longest lifetime allowed; None if the request is refused.
        offers: the names of the rules whose groups the caller can request, in order.
    """

    grant: Grant | None = None
    message: str = ""
    refused_by: str | None = None
    lifetime: timedelta | None = None
    max_lifetime: timedelta | None = None
    offers: tuple[str, ...] = ()

    def meets(self, expected: Expectation) -> bool:
        """Whether this outcome meets the expectation."""
        if expected.offers is not None and set(expected.offers) != set(self.offers):
            return False
        if expected.is_only_of_offers:
            return True
        if (self.grant is None) != expected.is_refusal:
            return False
        if self.grant is None:
            return expected.refused_by in {None, self.refused_by} and (expected.message or "") in self.message
        return (
            (expected.groups is None or set(expected.groups) == set(self.grant.groups))
            and expected.username in {None, self.grant.username}
            and expected.lifetime in {None, self.lifetime}
            and expected.max_lifetime in {None, self.max_lifetime}
        )

    def description(self, expected: Expectation) -> str:
        """Describe the outcome for people. Names the offers if the example expects certain offers."""
        offers = self.offers if expected.offers is not None else None
        if self.grant is None:
            return _with_offers(_refusal(self.refused_by, self.message), offers)
        longest = self.max_lifetime if self.max_lifetime != self.lifetime else None
        # Leave out a user id: examples rarely contain ids, so a reader would not recognize the id.
        username = None if is_user_id(self.grant.username) else self.grant.username
        return _with_offers(_allowance(self.grant.groups, username, self.lifetime, longest), offers)


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """The result of checking the policy against an example. `expected` and `decided` are descriptions for people."""

    name: str
    passed: bool
    expected: str
    decided: str


def run_examples(policy: Policy, examples: Iterable[ExampleSettings]) -> Iterator[ExampleResult]:
    """Let the policy decide each example, and yield the results."""
    for example in examples:
        expected, outcome = example.expects, decide_example(policy, example)
        decided = outcome.description(expected)
        yield ExampleResult(example.name, outcome.meets(expected), _expectation(expected), decided)


def example_failures(policy: Policy, examples: Iterable[ExampleSettings]) -> str | None:
    """Return a message that lists the first failed examples, or None if all examples pass."""
    failed = [each for each in run_examples(policy, examples) if not each.passed]
    if not failed:
        return None
    lines = [f"  {each.name}: expected {each.expected}; got {each.decided}" for each in failed[:MAX_FAILED]]
    more = [f"  and {len(failed) - MAX_FAILED} more"] if len(failed) > MAX_FAILED else []
    heading = "The policy decides these examples differently. `clustercert policy test` runs all examples:"
    return "\n".join([heading, *lines, *more])


def decide_example(policy: Policy, example: ExampleSettings) -> ExampleOutcome:
    """Return what the policy decides about an example."""
    now = example.now.replace(microsecond=0)
    cluster = _cluster(example.cluster, now)
    caller = _caller(example.caller, cluster.project_id)
    request, access = _request(example.request), None
    if example.request.access is not None:
        access = _access(policy, example.request.access, now)
    try:
        offers = tuple(rule.name for rule in policy.offers(caller, cluster, now))
        grant = policy.decide(caller, cluster, request, now, access)
    except NotFound:
        return ExampleOutcome(message=NO_ROLE)
    except ClustercertError as refused:
        denied_by = refused.trace.get("denied_by")
        rule = str(denied_by) if denied_by is not None else None
        return ExampleOutcome(message=refused.message, refused_by=rule, offers=offers)
    longest = datetime.fromisoformat(str(grant.trace["allowed_until"]))
    return ExampleOutcome(grant, lifetime=grant.not_after - now, max_lifetime=longest - now, offers=offers)


def _access(policy: Policy, example: ExampleAccess, now: datetime) -> RequestedAccess:
    """Return the access of an example. If the access is approved, a different approver met each condition."""
    rule = policy.offering_rule(example.rule)
    offer = rule.offer if rule is not None else None
    clauses = offer.clauses if offer is not None and example.approved else ()
    lifetime = offer.max_lifetime if offer is not None else timedelta()
    met = tuple(frozenset({clause}) for clause in clauses)
    return RequestedAccess("0" * 32, example.rule, example.groups, now + lifetime, example.approved, met)


def _expectation(expected: Expectation) -> str:
    if expected.is_only_of_offers:
        return _with_offers("", expected.offers)
    if expected.is_refusal:
        return _with_offers(_refusal(expected.refused_by, expected.message or ""), expected.offers)
    allowance = _allowance(expected.groups, expected.username, expected.lifetime, expected.max_lifetime)
    return _with_offers(allowance, expected.offers)


def _with_offers(text: str, offers: Iterable[str] | None) -> str:
    listed = f"offers {', '.join(offers) or 'nothing'}" if offers is not None else ""
    return "; ".join(filter(None, (text, listed)))


def _refusal(rule: str | None, message: str) -> str:
    return f"refused{f' by rule {rule}' if rule else ''}{f': {message}' if message else ''}"


def _allowance(
    groups: Iterable[str] | None, username: str | None, lifetime: timedelta | None, longest: timedelta | None
) -> str:
    parts = [
        f"groups {', '.join(groups)}" if groups is not None else "",
        f"user name {username}" if username is not None else "",
        f"lifetime {lifetime_text(lifetime)}" if lifetime is not None else "",
        f"longest lifetime {lifetime_text(longest)}" if longest is not None else "",
    ]
    return "; ".join(["allowed", *filter(None, parts)])


def _caller(example: ExampleCaller, project_id: str) -> Caller:
    return Caller(
        user=User(*_identity(example.user, example)),
        roles={project_id: example.roles},
        method=example.auth_method,
        origin=Origin(example.source, request_id="0" * 32),
        service_roles=example.service_roles,
        groups=tuple(Group(*_identity(group, example)) for group in example.groups),
        issuer=example.issuer,
    )


def _identity(text: str, example: ExampleCaller) -> tuple[str, str, Domain]:
    """Return the id, name and domain of a user or group given by id, by name, or by domain and name.

    For OIDC issuers and Keystone, names contain the domain (`ISSUER/NAME`), unless the example has a field `domain`.
    """
    first, slash, rest = text.partition("/")
    if example.domain is not None:
        domain, name = example.domain, text
    elif slash:
        domain, name = first, rest if example.issuer == BUILT_IN else text
    else:
        domain, name = DEFAULT_DOMAIN, text
    own_id = text if is_user_id(text) else id_of(f"{domain}/{name.removeprefix(f'{domain}/')}")
    return own_id, name, domain_by_issuer(example.issuer, id_of(domain), domain)


def _cluster(example: ExampleCluster, now: datetime) -> Cluster:
    domain, slash, name = example.project.partition("/")
    if not slash:
        domain, name = DEFAULT_DOMAIN, example.project
    has_id = is_user_id(example.project)
    project = None if has_id else ProjectName(name, Domain(id_of(domain), domain), is_unique=True)
    return Cluster(
        id=example.id,
        project_id=example.project if has_id else id_of(f"{domain}/{name}"),
        name=example.name,
        internal_url="https://cluster.example:6443",
        server_ca_pem=b"",
        labels=example.labels,
        created_at=now,
        updated_at=now,
        client_ca=_client_ca(now, example.id),
        project_name=project,
    )


@functools.lru_cache(maxsize=16)
def _client_ca(now: datetime, cluster_id: str) -> ClientCA:
    certificate = new_client_ca("example", new_key("ec-p256"), now - timedelta(days=1), _CA_LIFETIME)
    return ClientCA(id="0" * 32, cluster_id=cluster_id, certificate=certificate, sealed_key=None)


def _request(example: ExampleRequest) -> IssueRequest:
    has_csr = example.csr or example.key_type is not None
    return IssueRequest(
        duration=None if example.expires_in else example.duration or LONGEST,
        expires_in=example.expires_in,
        shorten=example.shorten is True,
        public_key=_public_key(example.key_type or "ec-p256") if has_csr else None,
        reason=example.reason,
    )


@functools.cache
def _public_key(key_type: KeyType) -> PublicKey:
    if key_type.startswith("rsa-"):
        # Only the key's size matters, and generating a real RSA key takes up to a second.
        modulus = (1 << int(key_type.removeprefix("rsa-"))) - 1
        return rsa.RSAPublicNumbers(RSA_EXPONENT, modulus).public_key()
    return new_key(key_type).public_key()
