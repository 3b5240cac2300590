"""Checks of issued kubeconfigs and client certificates with cryptography and OpenSSL, without the service's code."""

import base64
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.installed_demo import Tenant
from support.wait import SECONDS

ADMINS = "clustercert:admins"
"""The Kubernetes group of the demo's users, who have the role `admin`."""


def assert_client_leaf(certificate_b64: str, key_b64: str | None, tenant: Tenant) -> x509.Certificate:
    """Asserts a client certificate for the tenant's user, signed by the tenant's CA, with this key."""
    chain_pem = base64.b64decode(certificate_b64, validate=True)
    leaf = x509.load_pem_x509_certificate(chain_pem)
    if key_b64 is not None:
        key = serialization.load_pem_private_key(base64.b64decode(key_b64, validate=True), password=None)
        assert key.public_key() == leaf.public_key()

    assert values(leaf, NameOID.COMMON_NAME) == [tenant.user_id]
    assert values(leaf, NameOID.ORGANIZATION_NAME) == [ADMINS, own_group(leaf)]
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert leaf.not_valid_before_utc < datetime.now(UTC)
    assert_openssl_verifies(chain_pem, tenant.client_ca)
    return leaf


def own_group(leaf: x509.Certificate) -> str:
    """The credential group. The local signer uses the credential number as the serial, 40 hex digits."""
    return f"clustercert:credential:{leaf.serial_number:040x}"


def assert_kubeconfig(kubeconfig: Mapping[str, Any], tenant: Tenant) -> x509.Certificate:
    """Asserts a kubeconfig in the form of CCE. Returns its certificate."""
    assert (kubeconfig["kind"], kubeconfig["apiVersion"], kubeconfig["preferences"]) == ("Config", "v1", {})
    assert kubeconfig["clusters"][0]["name"] == "internalCluster"
    assert kubeconfig["contexts"][0] == {
        "name": "internal",
        "context": {"cluster": "internalCluster", "user": "user"},
    }
    assert [user["name"] for user in kubeconfig["users"]] == ["user"]
    user = kubeconfig["users"][0]["user"]
    return assert_client_leaf(user["client-certificate-data"], user["client-key-data"], tenant)


def assert_lives(leaf: x509.Certificate, lifetime: timedelta, asked_at: datetime) -> None:
    """Asserts that the leaf ends one lifetime after its issuance, between `asked_at` and now."""
    assert asked_at.replace(microsecond=0) <= leaf.not_valid_after_utc - lifetime <= datetime.now(UTC)


def assert_openssl_verifies(chain_pem: bytes, ca: Path) -> None:
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", ca],
        input=chain_pem,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def values(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> Sequence[str]:
    return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]
