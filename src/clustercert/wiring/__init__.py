"""Builds the store, custody, signers and use cases from the settings, for the service and for the command line."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from clustercert.audit.log import AuditLog
from clustercert.audit.publishing import CheckpointPublisher
from clustercert.audit.refusals import DenialAudit, RepeatedRefusals
from clustercert.audit.retention import CertificateScrubber, Retention
from clustercert.audit.sealer import LogSealer
from clustercert.authn.credentials import Authenticators
from clustercert.certificates.access import AccessReports
from clustercert.certificates.crls import Crls
from clustercert.certificates.list import Inventory
from clustercert.certificates.lost_roles import LostRoles
from clustercert.certificates.pruning import RevocationPruning
from clustercert.certificates.recorder import RevocationRecorder
from clustercert.certificates.revocation import Logout, RevocationPreviews, RevocationService
from clustercert.clusters.ca_progress import CaProgress
from clustercert.clusters.ca_rotation import CaRotations
from clustercert.clusters.discarded_keys import DiscardedKeys
from clustercert.clusters.overview import Overviews
from clustercert.clusters.registry import Clusters
from clustercert.clusters.signer_maintenance import SignerMaintenance
from clustercert.clusters.unknown_tokens import UnknownTokenDeletion
from clustercert.custody import Custody
from clustercert.custody.sources import open_sources
from clustercert.identity.roles import Roles
from clustercert.identity.service import Identity
from clustercert.issuance.entitled_users import EntitledUsers
from clustercert.issuance.explanations import Explanations
from clustercert.issuance.recorded_callers import RecordedCallers
from clustercert.issuance.service import Issuance
from clustercert.jobs import access_requests, ca_rotation, maintenance, notifications
from clustercert.jobs.leader_job import LeaderJob, PeriodicWork
from clustercert.jobs.sealing import sealing
from clustercert.kubernetes.bindings import Bindings
from clustercert.kubernetes.ca_proof import CaProver
from clustercert.kubernetes.cluster_connections import ClusterConnections
from clustercert.kubernetes.reconcile import Reconciler, Sync
from clustercert.kubernetes.token_look import find_problem
from clustercert.kubernetes.token_sync import TokenSync
from clustercert.kubernetes.webhook import Webhook
from clustercert.limits.issuing import IssuingRates, LimitedIssuance, LiveQuota, UserRates
from clustercert.limits.revoking import RevocationRates
from clustercert.model import Actor, Cluster, utc_now
from clustercert.model.errors import KeysUnavailable
from clustercert.observability.tracing import Tracer
from clustercert.pki.key_generator import new_key_generator
from clustercert.pki.keys import KeyGenerator
from clustercert.policy.decision import Policy
from clustercert.policy.rules import groups_and_templates
from clustercert.requests.receiver import WebhookReceiver
from clustercert.requests.service import AccessRequests
from clustercert.requests.users import RequestUsers
from clustercert.settings import Settings, SettingsError
from clustercert.store.access_requests import AccessRequestQueries
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.audit.log import AuditQueries, EventPages
from clustercert.store.certificates.access_controls import AccessQueries
from clustercert.store.certificates.access_reports import AccessReportQueries
from clustercert.store.certificates.issued_feed import IssuedFeed
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.lists import InventoryQueries
from clustercert.store.certificates.maintenance import CertificateMaintenance
from clustercert.store.certificates.revocation_pruning import RevocationPruningQueries
from clustercert.store.certificates.revocations import CrlQueries, RevocationQueries
from clustercert.store.clusters.ca_rotations import CaRotationQueries
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.clusters.fleet import FleetQueries
from clustercert.store.clusters.overview import OverviewQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.clusters.signing_clusters import SigningClusterQueries
from clustercert.store.disk_space import MIB, DiskSpace
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from clustercert.store.engine.generation import Generation
from clustercert.store.engine.leader import Leader
from clustercert.store.identity.known_users import KnownUserQueries, UsernameQueries
from clustercert.store.identity.roles import MemberQueries
from clustercert.store.job_cursors import JobCursor
from clustercert.store.kubernetes.enforcement import EnforcementQueries
from clustercert.wiring.authentication import (
    keystone_service,
    new_authenticator,
    oidc_authenticator,
    with_issuers,
)
from clustercert.wiring.signers import Signers

if TYPE_CHECKING:
    from clustercert.authn.keystone.service import KeystoneService
    from clustercert.authn.oidc.authenticator import OidcAuthenticator

# If a leader is killed, another process takes over after this time. The time is short, because until then no process
# seals events, ends access requests, or enforces revocations in clusters.
SEALING_LEASE_SECONDS = 10
REQUESTS_LEASE_SECONDS = 10
ENFORCEMENT_LEASE_SECONDS = 15
ROTATION_LEASE_SECONDS = 15
# How long a worker may take to record a certificate after its request has ended: the time for the database to answer.
RECORDING_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Components:
    """The objects that the service and the command line share.

    Attributes:
        policy_groups: the groups and templates in the rules of the policy. `change_policy` updates this set in place.
    """

    settings: Settings
    database: Database
    custody: Custody
    identity: Identity
    authenticator: Authenticators
    oidc: "OidcAuthenticator | None"
    keystone: "KeystoneService | None"
    clusters: Clusters
    ca_rotations: CaRotations
    discarded_keys: DiscardedKeys
    unknown_tokens: UnknownTokenDeletion
    issuance: Issuance
    explanations: Explanations
    requests: AccessRequests
    certificates: CertificateMaintenance
    revocation_pruning: RevocationPruning
    revocation: RevocationService
    inventory: Inventory
    overviews: Overviews
    crls: Crls
    webhook: Webhook
    connections: ClusterConnections
    enforcement: EnforcementQueries
    audit_log: AuditLog
    denials: DenialAudit
    log_sealer: LogSealer
    disk_space: DiskSpace
    scrubber: CertificateScrubber
    policy_groups: set[str]


@contextlib.asynccontextmanager
async def open_components(settings: Settings, *, with_keys: bool = True) -> AsyncIterator[Components]:
    """Open the store and build the components. Raises SchemaError, CustodyError, SettingsError or Unavailable.

    If the key management service can't be reached, the components work, but raise KeysUnavailable where they need keys.
    If `with_keys` is False, the key-encryption keys are not read, and nothing can be encrypted or decrypted.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(migrate.opened(settings.store_url, settings.data_dir))
        custody = Custody(database, *(settings.kek_sources() if with_keys else ()), now=utc_now)
        stack.push_async_callback(custody.close)
        if with_keys:
            # Without its key management service, the process does what needs no keys. `Custody` logs the reason.
            with contextlib.suppress(KeysUnavailable):
                await custody.open()
        keys = new_key_generator(settings.issuing.key_type)
        stack.push_async_callback(keys.close)
        identity = _identity(settings, database, custody)
        stack.callback(identity.close)
        signers = Signers(settings.signers, custody, SigningClusterQueries(database))
        stack.push_async_callback(signers.close)
        components = _components(settings, database, custody, keys, identity, signers)
        stack.push_async_callback(components.connections.close)
        if components.keystone is not None:
            stack.push_async_callback(components.keystone.close)
        yield components


def _components(
    settings: Settings,
    database: Database,
    custody: Custody,
    keys: KeyGenerator,
    identity: Identity,
    signers: Signers,
) -> Components:
    keystone = keystone_service(settings, identity)
    clusters, ledger = ClusterQueries(database), Ledger(database)
    policy = settings.loaded_policy()
    usernames = UsernameQueries(database)
    issuance = Issuance(clusters.cache, policy, keys, signers, ledger, usernames, now=utc_now)
    enforcement = EnforcementQueries(database)
    # The service needs a certificate to create bindings, so its own certificates are issued without a binding.
    connections = ClusterConnections(issuance, enforcement.is_revoked, utc_now, signers)
    bindings = Bindings(connections)
    oidc = oidc_authenticator(settings, identity, clusters, connections)
    identity.sessions.keystone = keystone.logins if keystone is not None else None
    identity.sessions.use_issuers(oidc)
    policy_groups = groups_and_templates(policy.rules)
    disk_space = DiskSpace(database.folder, settings.issuing.disk_reserve_mib * MIB)
    access_reports = AccessReports(AccessReportQueries(database), utc_now, policy_groups)
    recorder = RevocationRecorder(RevocationQueries(database), settings.revocation.undo_window, utc_now)
    repeats = RepeatedRefusals(settings.audit.refusals_per_minute)
    recorded = RecordedCallers(database)
    cas = ClientCaQueries(database)
    requests = AccessRequests(
        policy,
        AccessRequestQueries(database),
        clusters,
        RequestUsers(MemberQueries(database), KnownUserQueries(database), clusters),
        identity.with_all_roles,
        utc_now,
    )
    return Components(
        settings=settings,
        database=database,
        custody=custody,
        identity=identity,
        authenticator=new_authenticator(settings, identity, oidc, keystone),
        oidc=oidc,
        keystone=keystone,
        clusters=Clusters(
            clusters,
            signers,
            cas,
            now=utc_now,
            ca_key_type=settings.issuing.ca_key_type,
            limits=settings.limits.clusters,
        ),
        ca_rotations=CaRotations(
            CaRotationQueries(database),
            cas,
            clusters,
            signers,
            # The prover's certificates have no groups, so they need no bindings.
            CaProver(issuance, connections, utc_now),
            utc_now,
            settings.issuing.ca_key_type,
        ),
        discarded_keys=DiscardedKeys(cas, signers, utc_now),
        unknown_tokens=UnknownTokenDeletion(SigningClusterQueries(database), utc_now),
        issuance=replace(
            issuance,
            bindings=bindings,
            require_space=disk_space.require,
            withdraw=recorder.withdraw,
            requests=requests,
        ),
        requests=requests,
        explanations=Explanations(
            policy,
            clusters,
            MemberQueries(database),
            recorded,
            EntitledUsers(database, recorded),
            usernames,
            requests,
            identity.with_all_roles,
            utc_now,
        ),
        certificates=CertificateMaintenance(database),
        revocation_pruning=RevocationPruning(
            RevocationPruningQueries(database), settings.revocation.undo_window, utc_now
        ),
        webhook=Webhook(database, utc_now, policy_groups, repeats.is_repeated),
        inventory=Inventory(InventoryQueries(database), clusters, access_reports, utc_now),
        overviews=Overviews(OverviewQueries(database), FleetQueries(database), utc_now),
        crls=Crls(CrlQueries(database), signers, utc_now),
        revocation=_revocation(settings, database, clusters, identity, recorder),
        connections=connections,
        enforcement=enforcement,
        audit_log=AuditLog(AuditQueries(database), EventPages(database)),
        denials=DenialAudit(ledger, clusters, utc_now, repeats),
        log_sealer=_log_sealer(settings, database, custody),
        disk_space=disk_space,
        scrubber=CertificateScrubber(database, policy, utc_now),
        policy_groups=policy_groups,
    )


def change_policy(components: Components, policy: Policy) -> Components:
    """Return components that use a different policy.

    Also changes the objects that `components` shares with background work, so that background work uses the new policy
    at once.
    """
    components.policy_groups.clear()
    components.policy_groups.update(groups_and_templates(policy.rules))
    components.scrubber.policy = components.explanations.policy = components.requests.policy = policy
    return replace(components, issuance=replace(components.issuance, policy=policy))


def change_issuers(
    components: Components, settings: Settings, before: "OidcAuthenticator | None"
) -> tuple[Authenticators, "OidcAuthenticator | None"]:
    """Build authenticators for the issuers in new settings, and update the directory and the sessions.

    Returns the authenticator for all credentials, and the authenticator for OIDC tokens.

    Args:
        before: the authenticator for OIDC tokens that is in use now.
    """
    oidc = oidc_authenticator(
        settings, components.identity, components.clusters.queries, components.connections, before
    )
    components.identity.directory.authority_names = settings.identity.authority_names
    components.identity.sessions.use_issuers(oidc)
    return with_issuers(components.authenticator, components.oidc, oidc), oidc


def _identity(settings: Settings, database: Database, custody: Custody) -> Identity:
    configured, limits = settings.identity, settings.limits
    identity = Identity(
        database,
        custody,
        region=configured.region,
        token_lifetime=configured.token_lifetime,
        now=utc_now,
        rates=UserRates(limits.tokens, limits.temporary_keys),
    )
    identity.directory.authority_names = configured.authority_names
    identity.sessions.has_built_in = configured.built_in
    return identity


def _revocation(
    settings: Settings,
    database: Database,
    clusters: ClusterQueries,
    identity: Identity,
    recorder: RevocationRecorder,
) -> RevocationService:
    usernames, certificates = UsernameQueries(database), CertificateMaintenance(database)
    return RevocationService(
        clusters=clusters,
        recorder=recorder,
        usernames=usernames,
        previews=RevocationPreviews(clusters, KnownUserQueries(database), usernames, certificates, utc_now),
        logout=Logout(recorder, certificates, identity.logins),
        lost_roles=LostRoles(AccessQueries(database), recorder),
        rates=RevocationRates(settings.limits.revocations, settings.limits.project_revocations),
        service_name=settings.service_name,
    )


def limited_issuance(components: Components) -> LimitedIssuance:
    """Return the issuance service for requests, which applies the limits in the settings."""
    limits, database, certificates = components.settings.limits, components.database, components.certificates

    async def count_live(user_id: str, cluster_id: str) -> int:
        return await certificates.count_live(utc_now(), user_id=user_id, cluster_id=cluster_id)

    return LimitedIssuance(
        components.issuance,
        rates=IssuingRates(limits.rates, IssuedFeed(database)) if limits.rates else None,
        quota=LiveQuota(limits.live_certificates, count_live) if limits.live_certificates else None,
    )


def leader_jobs(components: Components, tracer: Tracer | None) -> tuple[LeaderJob, ...]:
    """Return the periodic jobs that only one process at a time runs, in the order in which the jobs start.

    Sealing starts first and stops last, so that the events of the other jobs are sealed.
    """
    database = components.database
    work = (
        (Leader(database, "seal", SEALING_LEASE_SECONDS), sealing(components.log_sealer)),
        (
            Leader(database, "requests", REQUESTS_LEASE_SECONDS),
            [access_requests.expiry(components.requests.expire_due)],
        ),
        (Leader(database, "notify", REQUESTS_LEASE_SECONDS), _notification(components)),
        (
            Leader(database, "prune"),
            [
                maintenance.credential_pruning(components.identity),
                maintenance.revocation_pruning(components.revocation_pruning),
            ],
        ),
        (Leader(database, "audit"), _audit_work(components)),
        (Leader(database, "enforce", ENFORCEMENT_LEASE_SECONDS), [_enforcement(components)]),
        (Leader(database, "rotate", ROTATION_LEASE_SECONDS), [_rotation(components)]),
        (Leader(database, "signers"), [maintenance.signer_maintenance(_signer_maintenance(components))]),
        (Leader(database, "discard"), [ca_rotation.key_deletion(components.discarded_keys.delete_all)]),
    )
    return tuple(LeaderJob(leader, pieces, tracer) for leader, pieces in work if pieces)


def _audit_work(components: Components) -> list[PeriodicWork]:
    audit = components.settings.audit
    work = [maintenance.certificate_checking(components.scrubber, audit.check_every)]
    if audit.publish:
        publisher = CheckpointPublisher(components.audit_log, audit.publish)
        work.append(maintenance.checkpoint_publishing(publisher, audit.publish_every))
    if audit.retention is not None:
        retention = Retention(EvidenceQueries(components.database), utc_now)
        work.append(maintenance.event_pruning(retention, audit.retention))
    return work


def _notification(components: Components) -> list[PeriodicWork]:
    requests, database = components.settings.requests, components.database
    if requests.webhook_url is None or requests.webhook_secret_file is None:
        return []
    receiver = WebhookReceiver(
        requests.webhook_url, requests.webhook_secret_file, requests.webhook_ca, utc_now
    )
    cursor = JobCursor(database, notifications.CURSOR)
    return [
        notifications.notification(notifications.Notifier(EventPages(database), cursor, receiver, utc_now))
    ]


def _enforcement(components: Components) -> PeriodicWork:
    database = components.database
    generation = database.generation
    certificates = Sync(components.enforcement, components.connections, database.record, utc_now)
    tokens = TokenSync(
        components.enforcement,
        SigningClusterQueries(database),
        components.connections,
        database.record,
        lambda: generation.value,
        utc_now,
        find_problem,
        RevocationPruningQueries(database).longest_lifetime,
    )

    async def sync(cluster: Cluster) -> None:
        await (tokens if cluster.credential_kind == "token" else certificates).sync_cluster(cluster)

    def forget_others(cluster_ids: frozenset[str]) -> None:
        certificates.forget_others(cluster_ids)
        tokens.forget_others(cluster_ids)

    reconciler = Reconciler(
        feed=components.enforcement,
        clusters=components.clusters.queries,
        sync=sync,
        forget_others=forget_others,
        generation=lambda: generation.value,
        now=utc_now,
    )
    return PeriodicWork("reconcile clusters", reconciler.step, retry_seconds=1.0, finish=reconciler.finish)


def _signer_maintenance(components: Components) -> SignerMaintenance:
    return SignerMaintenance(SigningClusterQueries(components.database), components.clusters.signers)


def _rotation(components: Components) -> PeriodicWork:
    rotations = components.ca_rotations
    seconds = Generation.PROPAGATION + components.settings.server.request_timeout + RECORDING_SECONDS
    progress = CaProgress(rotations, components.discarded_keys, timedelta(seconds=seconds))
    return ca_rotation.ca_rotation(ca_rotation.RotationScheduler(rotations.queries, progress.advance))


def _no_report(_done: int, _total: int) -> None:
    pass


async def upgrade_schema(
    settings: Settings, *, report_progress: Callable[[int, int], None] = _no_report
) -> None:
    """Create the data folder of an SQLite file and the schema, if missing, without keys.

    Raises SchemaError, SettingsError or Unavailable. See `initialise` for `report_progress`.
    """
    if not settings.shared_database:
        _make_folder(settings)
    database = Database(settings.store_url, data_dir=settings.data_dir)
    try:
        await migrate.upgrade(database, report_progress=report_progress)
    finally:
        await database.close()


async def initialise(
    settings: Settings,
    *,
    actor: Actor,
    report_progress: Callable[[int, int], None] = _no_report,
) -> None:
    """Create the data folder of an SQLite file, schema, first data key, audit log and built-in roles, if missing.

    Raises SchemaError, CustodyError, SettingsError or Unavailable.

    Args:
        report_progress: called before each migration with the number of finished migrations and the total number.
    """
    sources = settings.kek_sources()
    await open_sources(sources)
    await upgrade_schema(settings, report_progress=report_progress)
    database = Database(settings.store_url, data_dir=settings.data_dir)
    try:
        custody = Custody(database, *sources, now=utc_now)
        await custody.initialise(actor=actor)
        await _log_sealer(settings, database, custody).ensure_log(actor=actor)
        await Roles(database, utc_now).bootstrap()
    finally:
        for source in sources:
            await source.close()
        await database.close()


def _log_sealer(settings: Settings, database: Database, custody: Custody) -> LogSealer:
    # The name of a new log. The random part keeps the name unique even if two services have the same service name.
    name = f"{settings.service_name}/{secrets.token_hex(8)}"
    return LogSealer(AuditQueries(database), custody, utc_now, name)


def _make_folder(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"Can't create the data folder {settings.data_dir}: {error.strerror}. Set data_dir to another folder."
        ) from error
