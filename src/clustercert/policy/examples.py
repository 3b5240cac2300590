"""Runs the examples beside a policy's rules. They are decided like requests, by `Policy.decide`."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import rsa

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
from clustercert.model.errors import ClustercertError, NotFound
from clustercert.model.identity import BUILT_IN, ProjectName, domain_by_issuer
from clustercert.model.ids import id_of, is_user_id
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import RSA_EXPONENT, new_key
from clustercert.policy.decision import Policy
from clustercert.policy.example_settings import (
    ExampleCaller,
    ExampleCluster,
    ExampleRequest,
    ExampleSettings,
    Expectation,
)
from clustercert.policy.lifetime import LONGEST, lifetime_text

DEFAULT_DOMAIN = "Default"
NO_ROLE = "The caller has no role in the project."
# The maximum number of failed examples in a message.
MAX_FAILED = 3
# Longer than any certificate's lifetime, so that the CA does not limit the decisions of the rules.
_CA_LIFETIME = timedelta(days=36500)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the policy decided about an example.

    Attributes:
        grant: `None` if the request is refused.
        message: why the request is refused; empty if it is not.
        refused_by: the rule that denies the request, or None.
        lifetime, max_lifetime: the granted and the longest lifetime; None if the request is refused.
    """

    grant: Grant | None = None
    message: str = ""
    refused_by: str | None = None
    lifetime: timedelta | None = None
    max_lifetime: timedelta | None = None

    def meets(self, expected: Expectation) -> bool:
        """Whether this outcome meets the expectation."""
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

    def __str__(self) -> str:
        if self.grant is None:
            return _refusal(self.refused_by, self.message)
        longest = self.max_lifetime if self.max_lifetime != self.lifetime else None
        # Leave out a user id: examples rarely name ids, so a reader would not recognize it.
        username = None if is_user_id(self.grant.username) else self.grant.username
        return _allowance(self.grant.groups, username, self.lifetime, longest)


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """The result of an example. `expected` and `decided` are for people."""

    name: str
    passed: bool
    expected: str
    decided: str


def run_examples(policy: Policy, examples: Iterable[ExampleSettings]) -> Iterator[ExampleResult]:
    """Decide each example, and yield its result."""
    for example in examples:
        expected, outcome = example.expects, decide_example(policy, example)
        yield ExampleResult(example.name, outcome.meets(expected), _expectation(expected), str(outcome))


def example_failures(policy: Policy, examples: Iterable[ExampleSettings]) -> str | None:
    """Return a message that names the first examples that the policy decides otherwise, or None if all pass."""
    failed = [each for each in run_examples(policy, examples) if not each.passed]
    if not failed:
        return None
    lines = [f"  {each.name}: expected {each.expected}; got {each.decided}" for each in failed[:MAX_FAILED]]
    more = [f"  and {len(failed) - MAX_FAILED} more"] if len(failed) > MAX_FAILED else []
    heading = "The policy decides these examples otherwise. `clustercert policy test` runs them all:"
    return "\n".join([heading, *lines, *more])


def decide_example(policy: Policy, example: ExampleSettings) -> Outcome:
    """Return what the policy decides about an example."""
    now = example.now.replace(microsecond=0)
    cluster = _cluster(example.cluster, now)
    caller = _caller(example.caller, cluster.project_id)
    try:
        grant = policy.decide(caller, cluster, _request(example.request, now), now)
    except NotFound:
        return Outcome(message=NO_ROLE)
    except ClustercertError as refused:
        rule = refused.trace.get("denied_by")
        return Outcome(message=refused.message, refused_by=str(rule) if rule is not None else None)
    longest = datetime.fromisoformat(str(grant.trace["allowed_until"]))
    return Outcome(grant, lifetime=grant.not_after - now, max_lifetime=longest - now)


def _expectation(expected: Expectation) -> str:
    if expected.is_refusal:
        return _refusal(expected.refused_by, expected.message or "")
    return _allowance(expected.groups, expected.username, expected.lifetime, expected.max_lifetime)


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


def _caller(said: ExampleCaller, project_id: str) -> Caller:
    return Caller(
        user=User(*_identity(said.user, said)),
        roles={project_id: said.roles},
        method=said.auth_method,
        origin=Origin(said.source, request_id="0" * 32),
        service_roles=said.service_roles,
        groups=tuple(Group(*_identity(group, said)) for group in said.groups),
        issuer=said.issuer,
    )


def _identity(text: str, said: ExampleCaller) -> tuple[str, str, Domain]:
    """Return the id, name and domain of a user or group given by id, by name, or by domain and name.

    The name of an OIDC issuer's user or group contains its domain, unless the example gives the domain by itself.
    """
    first, slash, rest = text.partition("/")
    if said.domain is not None:
        domain, name = said.domain, text
    elif slash:
        domain, name = first, rest if said.issuer == BUILT_IN else text
    else:
        domain, name = DEFAULT_DOMAIN, text
    own_id = text if is_user_id(text) else id_of(f"{domain}/{name.removeprefix(f'{domain}/')}")
    return own_id, name, domain_by_issuer(said.issuer, id_of(domain), domain)


def _cluster(said: ExampleCluster, now: datetime) -> Cluster:
    domain, slash, name = said.project.partition("/")
    if not slash:
        domain, name = DEFAULT_DOMAIN, said.project
    has_id = is_user_id(said.project)
    project = None if has_id else ProjectName(name, Domain(id_of(domain), domain), is_unique=True)
    return Cluster(
        id=said.id,
        project_id=said.project if has_id else id_of(f"{domain}/{name}"),
        name=said.name,
        internal_url="https://cluster.example:6443",
        external_url=None,
        san_urls=(),
        server_ca_pem=b"",
        signer="local",
        version="",
        labels=said.labels,
        created_at=now,
        updated_at=now,
        client_ca=_client_ca(now, said.id),
        project_name=project,
    )


@functools.lru_cache(maxsize=16)
def _client_ca(now: datetime, cluster_id: str) -> ClientCA:
    certificate = new_client_ca("example", new_key("ec-p256"), now - timedelta(days=1), _CA_LIFETIME)
    return ClientCA(id="0" * 32, cluster_id=cluster_id, certificate=certificate, sealed_key=None)


def _request(said: ExampleRequest, now: datetime) -> IssueRequest:
    has_csr = said.csr or said.key_type is not None
    return IssueRequest(
        duration=None if said.expires_in else said.duration or LONGEST,
        expire_at=now + said.expires_in if said.expires_in else None,
        public_key=_public_key(said.key_type or "ec-p256") if has_csr else None,
        reason=said.reason,
    )


@functools.cache
def _public_key(key_type: KeyType) -> PublicKey:
    if key_type.startswith("rsa-"):
        # Only the key's size matters, and generating a real RSA key takes up to a second.
        modulus = (1 << int(key_type.removeprefix("rsa-"))) - 1
        return rsa.RSAPublicNumbers(RSA_EXPONENT, modulus).public_key()
    return new_key(key_type).public_key()
