"""Clusters whose credentials are tokens, and the ledger's rows of tokens, without an API server."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import update

from clustercert.model import CertificateRecord, Cluster
from clustercert.model.issuance import jti_fingerprint
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.database import Database
from support.stores import certificate_record, event


async def use_tokens(
    database: Database, cluster: Cluster, group_roles: Mapping[str, tuple[str, ...]]
) -> Cluster:
    """Let a stored cluster have tokens, with these roles of groups, as if it had been registered so."""
    changed = replace(
        cluster,
        signer="token",
        options=replace(cluster.options, group_roles=group_roles),
        client_ca=replace(cluster.client_ca, certificate=None, sealed_key=b"sealed", signer="token"),
    )
    row = {"signer": "token", "options": asdict(changed.options)}
    ca_row = {"signer": "token", "sealed_key": b"sealed"} | dict.fromkeys(
        ("certificate_der", "not_before", "not_after", "key_reference")
    )
    stored, ca = tables.cluster.c.id == cluster.id, tables.client_ca.c.cluster_id == cluster.id
    async with database.transaction() as connection:
        await connection.execute(update(tables.cluster).where(stored).values(row))
        await connection.execute(update(tables.client_ca).where(ca).values(ca_row))
    return changed


def token_record(cluster: Cluster, **changed: object) -> CertificateRecord:
    """A unique token of a cluster."""
    record, _ = certificate_record()
    jti = str(uuid4())
    values: dict[str, object] = {
        "fingerprint": jti_fingerprint(jti),
        "serial": UUID(jti).hex,
        "cluster_id": cluster.id,
        "project_id": cluster.project_id,
        "ca_id": cluster.client_ca.id,
        "groups": ("clustercert:admins",),
        "key_type": "",
        "key_origin": "none",
        "der": b"",
        "kind": "token",
    }
    return replace(record, **(values | changed))  # type: ignore[arg-type] # names of fields


async def record_token(database: Database, cluster: Cluster, **changed: object) -> CertificateRecord:
    """Record a token of a cluster in the ledger."""
    record = token_record(cluster, **changed)
    await Ledger(database).record(record, event("certificate.issued", record.fingerprint.hex()))
    return record


def unsigned_token(account: str, issued_at: datetime, expires_at: datetime) -> str:
    """A token of an account in `clustercert-users`. Its signature is not valid."""
    claims = {
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "jti": str(uuid4()),
        "sub": f"system:serviceaccount:clustercert-users:{account}",
        "kubernetes.io": {"serviceaccount": {"name": account, "uid": str(uuid4())}},
    }
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{payload}.c2lnbmF0dXJl"
