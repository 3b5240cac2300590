"""JSON objects of certificates and access reports, for JSON and CSV.

The models in `inventory_bodies` define and document their fields.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from pydantic import BaseModel

from clustercert.certificates.access import AccessReport, CertificateAccess, UnknownAccess, UserAccess
from clustercert.http.api import inventory_bodies as bodies
from clustercert.model import JsonObject, rfc3339
from clustercert.pki.certificates import chain_pem
from clustercert.store.certificate_view import CertificateView
from clustercert.store.inventory import PlaceNames

COLUMNS = tuple(bodies.CertificateBody.model_fields)
"""The columns of CSV lists."""


def certificate_row(certificate: CertificateView, names: PlaceNames, now: datetime) -> JsonObject:
    """Return the JSON object of a certificate. Times are RFC 3339 strings; unknown values are None."""
    return _row(
        bodies.CertificateBody,
        certificate,
        state=certificate.state(now),
        client_ca_id=certificate.ca_id,
        cluster_name=names.clusters.get(certificate.cluster_id),
        project_name=names.projects.get(certificate.project_id),
    )


def whole_certificate_row(certificate: CertificateView, names: PlaceNames, now: datetime) -> JsonObject:
    """Return the JSON object of a certificate, including its PEM."""
    pem = chain_pem((x509.load_der_x509_certificate(certificate.der),)).decode()
    return {**certificate_row(certificate, names, now), "pem": pem}


def report_row(report: AccessReport) -> JsonObject:
    """Return the JSON object of an access report."""
    return _row(
        bodies.AccessBody,
        report,
        cluster_id=report.cluster.id,
        cluster_name=report.cluster.name,
        users=[_user(each) for each in report.users],
        groups=[_row(bodies.GroupBody, each) for each in report.groups],
        unknown_credentials=[_unknown(each) for each in report.unknown],
        controls=[_row(bodies.ControlBody, each) for each in report.controls],
    )


def _user(user: UserAccess) -> JsonObject:
    return _row(bodies.UserAccessBody, user, credentials=[_credential(each) for each in user.credentials])


def _credential(access: CertificateAccess) -> JsonObject:
    return _row(
        bodies.CredentialBody,
        access.certificate,
        state=access.state,
        has_access=access.has_access,
        groups=list(access.groups),
        cluster_role=access.cluster_role,
        stopped_by=list(access.stopped_by),
    )


def _unknown(access: UnknownAccess) -> JsonObject:
    newest = next(reversed(access.identity.fingerprints), None)
    return _row(bodies.UnknownBody, access.identity, fingerprint=newest, has_access=access.has_access)


def _row(body: type[BaseModel], source: object, **derived: object) -> JsonObject:
    """Return the JSON object with the body's fields: from `derived`, or else from the source's attributes."""
    return {
        name: derived[name] if name in derived else _plain(getattr(source, name))
        for name in body.model_fields
    }


def _plain(value: object) -> object:
    convert = _CONVERSIONS.get(type(value))
    return convert(value) if convert else value


_CONVERSIONS: Mapping[type, Callable[[Any], object]] = {bytes: bytes.hex, tuple: list, datetime: rfc3339}
