"""Issuers as the settings declare them, for audit events and logs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from clustercert.authn.oidc.issuer_settings import IssuerSettings

# The proxy's URL may contain a password.
_SECRET = {"proxy"}


def declared_issuers(issuers: Iterable[IssuerSettings]) -> tuple[Mapping[str, object], ...]:
    """Return the issuers as JSON values with durations in seconds, without defaults and secrets."""
    return tuple(_declared(issuer) for issuer in issuers)


def issuers_digest(issuers: Iterable[IssuerSettings]) -> str:
    """Return the SHA-256 of the declared issuers, lower-case hex."""
    # The digest covers this JSON, with sorted names and no spaces.
    text = json.dumps(declared_issuers(issuers), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _declared(issuer: IssuerSettings) -> Mapping[str, object]:
    values = issuer.model_dump(exclude_defaults=True, exclude=_SECRET)
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: object) -> object:
    match value:
        case dict():
            return {str(name): _json_value(each) for name, each in value.items()}
        case set() | frozenset():
            # Python orders the members differently in each process.
            return sorted(map(str, value))
        case list() | tuple():
            return [_json_value(each) for each in value]
        case timedelta():
            return value.total_seconds()
        case Path():
            return str(value)
        case _:
            return value
