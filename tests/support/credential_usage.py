"""Reports of API servers about credentials in use, and the rows and events that they cause."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.kubernetes.webhook.pending_reports import ObservedUse
from clustercert.kubernetes.webhook.recognition import Recognition
from clustercert.kubernetes.webhook.review import RequestSender
from clustercert.model import CertificateRecord, ClusterOptions, Origin
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.clusters.registry import ClusterWebhookConfig
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import CredentialCache
from clustercert.store.kubernetes.credential_usage import CredentialUsageQueries
from support.samples import CLUSTER_ID, PROJECT_ID
from support.stores import NOW, Store, certificate_record

ORIGIN = Origin(address="192.0.2.1", request_id="e" * 32)
WEBHOOK_CONFIG = ClusterWebhookConfig(CLUSTER_ID, PROJECT_ID, ClusterOptions(), ())
TOKEN = bytes(32)
POLICY_GROUPS = ("auditors", "system:auditors")


def usage_at(database: Database, now: Callable[[], datetime] = lambda: NOW) -> CredentialUsage:
    """The usage recorder of one worker."""
    return CredentialUsage(CredentialUsageQueries(database), now, POLICY_GROUPS)


async def recorded(database: Database, **changed: object) -> CertificateRecord:
    record, its_event = certificate_record()
    record = replace(record, **({"cluster_id": CLUSTER_ID} | changed))  # type: ignore[arg-type] # as the tests say
    await Ledger(database).record(record, its_event)
    return record


async def seen(
    known: CredentialCache,
    what: CertificateRecord | bytes,
    at: datetime = NOW,
    *groups: str,
    username: str = "bob",
    webhook_config: ClusterWebhookConfig = WEBHOOK_CONFIG,
    copy: bytes | None = None,
    token: bytes = TOKEN,
) -> ObservedUse:
    """The use of a certificate of the ledger, of an altered copy, or of a certificate with the given hash."""
    fingerprint = what if isinstance(what, bytes) else copy or what.fingerprint
    if isinstance(what, CertificateRecord):
        username, groups = what.user_id, what.organizations
    identity = RequestSender(username, (*groups, "system:authenticated"), (fingerprint,))
    (shown,) = await Recognition(known).recognize(webhook_config.cluster_id, identity)
    return ObservedUse(webhook_config, identity, shown, at, at, ORIGIN, "webhook", token)


def times(store: Store, record: CertificateRecord) -> tuple[object, ...]:
    query = "SELECT first_seen_at, last_seen_at FROM certificate WHERE fingerprint = ?"
    (found,) = store.rows(query, record.fingerprint)
    return found


def unknown(store: Store) -> list[tuple[object, list[str], object, list[str]]]:
    """User name, groups, number of hashes and last hashes of unknown identities, oldest first."""
    query = (
        "SELECT username, groups, hashes, fingerprints FROM unknown_identity ORDER BY first_seen_at, identity"
    )
    return [
        (username, as_list(groups), hashes, as_list(fingerprints))
        for username, groups, hashes, fingerprints in store.rows(query)
    ]


def as_list(value: object) -> list[str]:
    found: list[str] = json.loads(str(value))
    return found


def alerts(store: Store) -> list[dict[str, object]]:
    return [said for said in store.events() if str(said["kind"]).startswith("credential.")]


def counted(store: Store) -> list[tuple[object, object]]:
    """Kind of alert and number of the events about counted reports."""
    details = [said["detail"] for said in store.events() if said["kind"] == "credential.counted"]
    return [(detail["alert"], detail["count"]) for detail in details if isinstance(detail, dict)]


def altered(store: Store) -> list[dict[str, object]]:
    return [said for said in store.events() if said["kind"] == "credential.altered"]
