"""What the inventory says, as plain rows: the same names for the web's JSON and CSV and for the command line."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from cryptography import x509

from clustercert.certificate import chain_pem
from clustercert.inventory.access import Credential, Holder, Report, Way
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
    known: JsonObject = {"state": listed.state(now), "client_ca_id": listed.ca_id}
    return {name: known[name] if name in known else _plain(getattr(listed, name)) for name in COLUMNS}


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
        "groups": [_row(each, "name", "users", "credentials", "last_seen_at") for each in report.groups],
        "unknown_credentials": [_unknown(each) for each in report.unknown],
        "ways_to_stop": [_way(each) for each in report.ways],
        "what_remains": list(report.remains),
    }


def _holder(holder: Holder) -> JsonObject:
    return _row(holder, "user_id", "user_name", "groups", "first_seen_at", "last_seen_at") | {
        "credentials": [_credential(each) for each in holder.credentials]
    }


def _credential(credential: Credential) -> JsonObject:
    listed = credential.certificate
    return {
        **_row(listed, "fingerprint", "serial", "credential_number"),
        **_row(credential, "state", "gets_in", "groups", "cluster_role"),
        **_row(listed, "not_after", "first_seen_at", "last_seen_at"),
        **_row(credential, "stopped_by"),
    }


def _unknown(unknown: Unknown) -> JsonObject:
    return {
        "fingerprint": unknown.fingerprints[-1] if unknown.fingerprints else None,
        **_row(unknown, "hashes", "username", "groups", "first_seen_at", "last_seen_at"),
    }


def _way(way: Way) -> JsonObject:
    return _row(way, "name", "set_up", "lacking", "within") | {"does_not_stop": way.limits}


def _row(said: object, *names: str) -> JsonObject:
    return {name: _plain(getattr(said, name)) for name in names}


def _plain(value: object) -> object:
    """A value of JSON's kinds."""
    convert = _CONVERSIONS.get(type(value))
    return convert(value) if convert else value


def _time(time: datetime) -> str:
    # Of all ways to write a time the fastest; a page has hundreds. The store's times are UTC.
    return f"{time.isoformat(timespec='seconds').removesuffix('+00:00')}Z"


_CONVERSIONS: Mapping[type, Callable[[Any], object]] = {bytes: bytes.hex, tuple: list, datetime: _time}
