"""What the inventory says, as plain rows: the same names for the web's JSON and CSV and for the command line."""

from datetime import datetime

from cryptography import x509

from clustercert.certificate import chain_pem
from clustercert.inventory.access import Credential, GroupAccess, Holder, Report, Way
from clustercert.model import JsonObject
from clustercert.store.access import Unknown
from clustercert.store.inventory import Listed

# In their order, as CSV has them.
COLUMNS = (
    "fingerprint",
    "serial",
    "credential_number",
    "state",
    "cluster_id",
    "project_id",
    "client_ca_id",
    "user_id",
    "user_name",
    "groups",
    "rule",
    "not_before",
    "not_after",
    "key_type",
    "key_origin",
    "auth_method",
    "source_address",
    "request_id",
    "reason",
    "issued_at",
    "revoked_at",
    "revoked_by",
    "revoked_why",
    "first_seen_at",
    "last_seen_at",
    "altered_at",
)


def certificate_row(listed: Listed, now: datetime) -> JsonObject:
    """A certificate; times are RFC 3339 text, what isn't known is None."""
    return {
        "fingerprint": listed.fingerprint.hex(),
        "serial": listed.serial,
        "credential_number": listed.credential_number,
        "state": listed.state(now),
        "cluster_id": listed.cluster_id,
        "project_id": listed.project_id,
        "client_ca_id": listed.ca_id,
        "user_id": listed.user_id,
        "user_name": listed.user_name,
        "groups": list(listed.groups),
        "rule": listed.rule,
        "not_before": _time(listed.not_before),
        "not_after": _time(listed.not_after),
        "key_type": listed.key_type,
        "key_origin": listed.key_origin,
        "auth_method": listed.auth_method,
        "source_address": listed.source_address,
        "request_id": listed.request_id,
        "reason": listed.reason,
        "issued_at": _time(listed.issued_at),
        "revoked_at": _time(listed.revoked_at),
        "revoked_by": listed.revoked_by,
        "revoked_why": listed.revoked_why,
        "first_seen_at": _time(listed.first_seen_at),
        "last_seen_at": _time(listed.last_seen_at),
        "altered_at": _time(listed.altered_at),
    }


def whole_certificate_row(listed: Listed, now: datetime) -> JsonObject:
    """The same with the certificate itself, PEM."""
    pem = chain_pem((x509.load_der_x509_certificate(listed.der),)).decode()
    return {**certificate_row(listed, now), "pem": pem}


def report_row(report: Report) -> JsonObject:
    """Who can still get into a cluster."""
    return {
        "cluster_id": report.cluster.id,
        "cluster_name": report.cluster.name,
        "at": _time(report.at),
        "complete": report.complete,
        "users": [_holder(each) for each in report.holders],
        "groups": [_group(each) for each in report.groups],
        "unknown_credentials": [_unknown(each) for each in report.unknown],
        "ways_to_stop": [_way(each) for each in report.ways],
        "what_remains": list(report.remains),
    }


def _holder(holder: Holder) -> JsonObject:
    return {
        "user_id": holder.user_id,
        "user_name": holder.user_name,
        "groups": list(holder.groups),
        "first_seen_at": _time(holder.first_seen_at),
        "last_seen_at": _time(holder.last_seen_at),
        "credentials": [_credential(each) for each in holder.credentials],
    }


def _credential(credential: Credential) -> JsonObject:
    listed = credential.certificate
    return {
        "fingerprint": listed.fingerprint.hex(),
        "serial": listed.serial,
        "credential_number": listed.credential_number,
        "state": credential.state,
        "gets_in": credential.gets_in,
        "groups": list(credential.groups),
        "cluster_role": credential.cluster_role,
        "not_after": _time(listed.not_after),
        "first_seen_at": _time(listed.first_seen_at),
        "last_seen_at": _time(listed.last_seen_at),
        "stopped_by": list(credential.stopped_by),
    }


def _group(group: GroupAccess) -> JsonObject:
    return {
        "name": group.name,
        "users": group.users,
        "credentials": group.credentials,
        "last_seen_at": _time(group.last_seen_at),
    }


def _unknown(unknown: Unknown) -> JsonObject:
    return {
        "fingerprint": unknown.fingerprints[-1] if unknown.fingerprints else None,
        "hashes": unknown.hashes,
        "username": unknown.username,
        "groups": list(unknown.groups),
        "first_seen_at": _time(unknown.first_seen_at),
        "last_seen_at": _time(unknown.last_seen_at),
    }


def _way(way: Way) -> JsonObject:
    return {
        "name": way.name,
        "set_up": way.set_up,
        "lacking": way.lacking,
        "within": way.within,
        "does_not_stop": way.limits,
    }


def _time(time: datetime | None) -> str | None:
    # Of all ways to write a time the fastest; a page has hundreds. The store's times are UTC.
    return f"{time.isoformat(timespec='seconds').removesuffix('+00:00')}Z" if time is not None else None
