"""Warnings about risky deployments, which `serve` and `db check` show."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from clustercert.authn.oidc.claims import claim_path
from clustercert.clusters.registration import exempted_templates
from clustercert.identity.directory_reader import DirectoryReader
from clustercert.identity.federation import Federation
from clustercert.model import utc_now
from clustercert.model.choices import ServerRole
from clustercert.model.errors import Conflict, NotFound, Unavailable
from clustercert.model.name_patterns import is_pattern
from clustercert.model.rights import OPERATOR
from clustercert.policy.decision import LONG_LIFETIME, long_lifetimes
from clustercert.policy.lifetime import lifetime_text
from clustercert.policy.rule_settings import positional_names
from clustercert.policy.rules import groups_and_templates
from clustercert.requests.receiver import NotDelivered, read_secrets
from clustercert.secure_file import PrivateFileError
from clustercert.server.tls_files import present_tls, uses_own_pair
from clustercert.settings import Settings, SettingsError
from clustercert.store.certificates.access_controls import AccessQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import MAX_CLOCK_OFFSET
from clustercert.store.identity.roles import RoleQueries

if TYPE_CHECKING:
    from clustercert.store.engine.database import Database

MAX_NAMED = 5
# Stands for all domains.
ANY_DOMAIN = "*"
# At most this many clusters are counted; a service may have a million.
MAX_CLUSTERS = 1000


async def deployment_warnings(
    settings: Settings, database: "Database", role: ServerRole | None = None
) -> AsyncIterator[str]:
    """Yield each warning. Raises Unavailable.

    Args:
        role: which requests the process serves; `None` if this process is not the service.
    """
    stored = ClusterQueries(database)
    from_settings = (
        *(() if role == "webhook" else _trusted_leaf(settings)),
        *_webhook_address(settings, role),
        *(() if role == "webhook" else _webhook_secret(settings)),
        *(() if role == "webhook" else _client_secrets(settings)),
        *_long_lifetimes(settings),
        *_kek_beside_data(settings, database),
        *_changing_subjects(settings),
    )
    for warning in from_settings:
        yield warning
    for warnings in (
        _missing_operator(settings, database),
        _missing_names(settings, database),
        _missing_in_rules(settings, database),
        _templates_without_domain(settings, database),
        _unguarded_clusters(database),
        _roles_without_rules(settings, stored),
        _exempted_templates(settings, stored),
        _wrong_clock(database),
    ):
        async for warning in warnings:
            yield warning


def _long_lifetimes(settings: Settings) -> Iterator[str]:
    found = long_lifetimes(settings.loaded_policy())
    if not found:
        return
    rules = _listed(f"{name} ({lifetime_text(lifetime)})" for name, lifetime in found.items())
    origin = "These policy rules"
    if settings.policy.is_unwritten:
        origin = "The settings have no policy rules, so roles give groups. The rules for these roles"
    yield (
        f"{origin} allow certificates that are valid for more than {LONG_LIFETIME.days} days: {rules}. A stolen"
        " certificate works until it expires or is revoked. Set policy.max_lifetime."
    )


def _kek_beside_data(settings: Settings, database: "Database") -> Iterator[str]:
    if settings.kek is not None or settings.kek_file is None:
        return
    kek, folders = settings.kek_file.resolve(), [settings.data_dir.resolve().parent]
    if database.folder is not None:
        folders += [database.folder.resolve(), database.folder.resolve().parent]
    if kek.parent in folders:
        yield (
            f"The key-encryption key {kek} is in a folder that also contains the data, so a copy of this "
            "folder includes both. Move the key to a different folder, and set kek_file."
        )


def _trusted_leaf(settings: Settings) -> Iterator[str]:
    """Warn of a fingerprint that changes with each renewal, because users trust the certificate instead of its CA."""
    remedy = (
        "Let server.tls_certificate name a file with the certificate, followed by the certificate of its CA."
    )
    if uses_own_pair(settings, settings.server.host):
        yield (
            "The service creates its own certificate. When it creates a new certificate, all users who trust the"
            f" fingerprint must log in again. {remedy}"
        )
        return
    # Ignore TLS files that can't be used: the service reports such files when it starts.
    with contextlib.suppress(SettingsError):
        files = present_tls(settings)
        if files is not None and not files.has_issuer:
            yield (
                f"{files.certificate} has no certificate of a CA. At each renewal, all users who trust the fingerprint"
                f" must log in again. {remedy}"
            )


async def _missing_operator(settings: Settings, database: "Database") -> AsyncIterator[str]:
    identity = settings.identity
    if any(OPERATOR in authority.role_names for authority in identity.authorities):
        return
    if any(each.role.name == OPERATOR for each in await RoleQueries(database).in_service()):
        return
    create = "`clustercert user create NAME --local`, then " if identity.built_in else ""
    yield (
        f"Nobody has the role {OPERATOR}, so nobody can administer the service over its API. Run {create}`clustercert"
        f" role assign {OPERATOR} --user NAME --service --local`."
    )


def _webhook_address(settings: Settings, role: ServerRole | None) -> Iterator[str]:
    """Warn if the webhook is a separate process, as `role` or the table [webhook] shows, but lacks an address."""
    webhook = settings.webhook
    if webhook.public_url is None and (role == "api" or webhook.model_fields_set):
        yield (
            "webhook.public_url is not set, so `clustercert kubernetes setup` writes server.public_url into the files"
            " for API servers. A process with the role api answers 404 there, and revoked certificates keep working."
            " Set webhook.public_url to the address of the processes with the role webhook."
        )


def _webhook_secret(settings: Settings) -> Iterator[str]:
    """Warn if messages about access requests can't be signed. The messages wait until the file is repaired."""
    file = settings.requests.webhook_secret_file
    if file is None:
        return
    try:
        read_secrets(file)
    except NotDelivered as failure:
        yield f"No messages about access requests are sent: {failure} Correct requests.webhook_secret_file."


def _client_secrets(settings: Settings) -> Iterator[str]:
    """Warn if nobody can log in to the console at an issuer, because the secret of the console's client is missing."""
    for issuer in settings.identity.issuers:
        if issuer.console is None:
            continue
        try:
            issuer.console.read_secret()
        except PrivateFileError as failure:
            yield (
                f"Nobody can log in to the console at the issuer {issuer.name}: {failure} Correct client_secret_file in"
                " the issuer's table console."
            )


def _changing_subjects(settings: Settings) -> Iterator[str]:
    for issuer in settings.identity.issuers:
        for claim in issuer.mapping.subject:
            if claim_path(claim)[-1] == "email":
                yield (
                    f"The issuer {issuer.name} identifies its users by the claim {claim}. An e-mail address can change,"
                    " or can later belong to somebody else, who then counts as the same user. Set subject to a claim"
                    " such as sub."
                )


async def _missing_names(settings: Settings, database: "Database") -> AsyncIterator[str]:
    """Warn of missing projects, domains and roles in the settings of issuers."""
    federation = Federation(database, utc_now)
    for authority in settings.identity.authorities:
        if missing := await federation.missing_names(authority):
            yield (
                f"The settings of the issuer {authority.name} name objects that do not exist: {_listed(missing)}. These"
                " names give users nothing. Correct [identity], or create these objects."
            )


async def _missing_in_rules(settings: Settings, database: "Database") -> AsyncIterator[str]:
    """Warn of roles, projects and domains that rules name but that do not exist.

    For example, a rule that denies requests from a missing domain would never apply.
    """
    identity, directory = settings.identity, DirectoryReader(database)
    domains = {domain.name for domain in await directory.queries.domains()} | identity.authority_names
    roles = {role.name for role in await RoleQueries(database).roles()}
    roles |= {role for authority in identity.authorities for role in authority.role_names}
    missing: dict[str, None] = {}
    for rule in settings.policy.named_rules:
        when = rule.when
        # If Keystone is configured, Keystone defines the roles, so the names of roles can't be checked here.
        named_roles = () if identity.keystone is not None else _written_out(rule.named_roles)
        missing |= dict.fromkeys(
            f"role {role} (rule {rule.name})" for role in named_roles if role not in roles
        )
        for name in (*_written_out(when.users), *_written_out(rule.named_groups)):
            domain, slash, _ = name.partition("/")
            if slash and domain not in domains:
                missing[f"domain {domain} (rule {rule.name})"] = None
        for name in _written_out(when.projects):
            domain, slash, rest = name.partition("/")
            try:
                if slash:
                    await directory.find_project(rest, await directory.find_domain(domain))
                else:
                    await directory.find_project(name)
            except NotFound:
                missing[f"project {name} (rule {rule.name})"] = None
            except Conflict:
                yield (
                    f"Several projects are named {name}, so the rule {rule.name} refuses requests for clusters in these"
                    " projects. Write a project's id or DOMAIN/NAME."
                )
    if missing:
        yield (
            f"Rules of the policy name objects that do not exist: {_listed(missing)}. These names match "
            "nothing. Correct the rules, or create these objects."
        )


async def _templates_without_domain(settings: Settings, database: "Database") -> AsyncIterator[str]:
    """Warn if two domains exist, and the policy gives their users or groups the same names in certificates."""
    policy = settings.policy
    domains = [domain.name for domain in await DirectoryReader(database).queries.domains()]
    if domains[1:] == []:
        return
    username = policy.username or "{user.id}"
    if not any(each in username for each in ("{user.domain}", "{user.id}")):
        yield (
            f"policy.username is {username}, but there are several domains: {_listed(domains)}. A name belongs to"
            " the first user who gets a certificate with it. A user of this name in another domain gets no certificate."
            ' Set policy.username = "{user.name}@{user.domain}".'
        )
    # For each template: the rules that use the template, and the domains whose groups each rule inserts.
    sources: dict[str, list[tuple[str, frozenset[str], bool]]] = {}
    for rule in policy.named_rules:
        groups, projects = _domains_of(rule.when.groups), _domains_of(rule.when.projects)
        for template in rule.granted_groups:
            if "{group}" in template and "{group.id}" not in template:
                alone = len(groups) == 1 and groups == projects and ANY_DOMAIN not in groups
                sources.setdefault(template, []).append((rule.name, groups, alone))
    found = [
        f"{template} (rule {name})"
        for template, rules in sources.items()
        for name, groups, alone in rules
        if ANY_DOMAIN in groups or (not alone and len(frozenset().union(*(each[1] for each in rules))) > 1)
    ]
    if found:
        yield (
            f"Groups of several domains get the same name from these templates of the policy: {_listed(found)}. The"
            f" domains are {_listed(domains)}. Write a rule for each domain, such as when.groups ="
            f' ["{domains[0]}/team-*"] with when.projects = ["{domains[0]}/*"].'
        )


def _domains_of(names: Iterable[str] | None) -> frozenset[str]:
    """Return the domains of names like DOMAIN/NAME in a condition. ANY_DOMAIN stands for all domains."""
    parts = [name.partition("/") for name in names or ("*",)]
    return frozenset(domain if slash and not is_pattern(domain) else ANY_DOMAIN for domain, slash, _ in parts)


def _written_out(names: Iterable[str] | None) -> tuple[str, ...]:
    """Return the names without wildcards."""
    return tuple(name for name in names or () if not is_pattern(name))


async def _unguarded_clusters(database: "Database") -> AsyncIterator[str]:
    try:
        unguarded = await AccessQueries(database).unguarded(limit=MAX_CLUSTERS)
    except Unavailable:
        # With very many clusters, the query may time out, which must not prevent the start.
        return
    if unguarded:
        count = f"{len(unguarded)}{' or more' if len(unguarded) == MAX_CLUSTERS else ''}"
        yield (
            "Revoked certificates still work in clusters without revocation: "
            f"{_listed(sorted(unguarded), count)}. Their API servers have never called the webhook. Run `clustercert"
            " kubernetes setup` for each of these clusters."
        )


async def _roles_without_rules(settings: Settings, stored: ClusterQueries) -> AsyncIterator[str]:
    """Warn of ClusterRoles that a change to the policy could give to other users, or that nobody gets."""
    policy = settings.policy
    stable = {rule.name for rule in policy.all_rules} - positional_names(policy)
    try:
        clusters = await stored.enforced("", MAX_CLUSTERS)
    except Unavailable:
        return
    found = [
        f"{cluster.shown_name} ({rule})"
        for cluster in clusters
        for rule in sorted((cluster.options.credential_roles or {}).keys() - stable)
    ]
    if found:
        yield (
            f"These clusters have ClusterRoles for rules that the policy lacks or does not name: {_listed(found)}. Set"
            " name in [[policy.rules]]. Then run `clustercert cluster update` with --no-credential-roles, and again"
            " with --credential-role NAME=CLUSTERROLE for each rule."
        )


async def _exempted_templates(settings: Settings, stored: ClusterQueries) -> AsyncIterator[str]:
    """Warn of older exemptions that could match groups from templates that the policy got later."""
    try:
        found = await exempted_templates(stored, groups_and_templates(settings.loaded_policy().rules))
    except Unavailable:
        return
    if found:
        yield (
            f"These clusters exempt groups that the policy's templates could give: {_listed(map(str, found))}. A"
            " certificate from a different issuer that has such a group is accepted in mode known-only. Let the"
            " template begin with a prefix, such as team:{group}, or run `clustercert cluster update` with"
            " --remove-exempt."
        )


async def _wrong_clock(database: "Database") -> AsyncIterator[str]:
    offset = await database.clock_offset()
    if abs(offset) > MAX_CLOCK_OFFSET:
        seconds = round(abs(offset).total_seconds())
        yield (
            f"This machine's clock is {seconds} seconds {'ahead of' if offset > timedelta() else 'behind'} the"
            " database server's. Certificates may not be valid yet, or may expire too late, and no client CA is"
            " created. Synchronize both clocks."
        )


def _listed(names: Iterable[str], count: str | None = None) -> str:
    """List the first names, and say how many there are."""
    given = tuple(names)
    listed = ", ".join(given[:MAX_NAMED])
    return listed if len(given) <= MAX_NAMED else f"{listed} and others, {count or len(given)} in total"
