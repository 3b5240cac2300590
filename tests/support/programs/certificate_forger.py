"""Signs a certificate with the stolen key of a client CA; the ledger has no record of it.

Arguments: CLUSTER USERNAME GROUP…. The environment holds the settings of the service. Prints certificate and key, PEM.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from clustercert.model import Grant, SigningRequest
from clustercert.pki.keys import key_pem, load_key_der, new_key
from clustercert.pki.leaf import der_pem
from clustercert.settings import load
from clustercert.wiring import open_components
from support.leaf_builder import LeafBuilder


async def forge(cluster_id: str, username: str, groups: tuple[str, ...]) -> bytes:
    now, key = datetime.now(UTC).replace(microsecond=0), new_key("ec-p256")
    grant = Grant("admin", username, groups, now - timedelta(minutes=5), now + timedelta(hours=1))
    async with open_components(load(None)) as components:
        (cluster,) = await components.clusters.queries.find(cluster_id)
        ca = cluster.client_ca
        assert ca.sealed_key is not None
        ca_key = load_key_der(await components.custody.unseal(ca.sealed_key, f"client_ca:{ca.id}"))
    request = SigningRequest(grant, key.public_key(), ca)
    return der_pem(LeafBuilder(ca.ca_certificate, ca_key).build(request)) + key_pem(key)


if __name__ == "__main__":
    cluster, user, *named = sys.argv[1:]
    sys.stdout.buffer.write(asyncio.run(forge(cluster, user, tuple(named))))
