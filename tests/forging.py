"""Signs a certificate with a client CA's own key, as whoever stole it would; nobody records it.

`python forging.py CLUSTER USERNAME GROUP…`, with the settings in the environment; certificate and key go to standard
output, PEM.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from clustercert.app.wiring import components
from clustercert.certificate import LeafBuilder, der_pem
from clustercert.keypair import key_pem, load_key_der, new_key
from clustercert.model import Grant, SigningRequest
from clustercert.settings import load


async def forge(cluster_id: str, username: str, groups: tuple[str, ...]) -> bytes:
    now, key = datetime.now(UTC).replace(microsecond=0), new_key("ec-p256")
    grant = Grant("admin", username, groups, now - timedelta(minutes=5), now + timedelta(hours=1))
    async with components(load(None)) as parts:
        (cluster,) = await parts.clusters.rows.find(cluster_id)
        ca = cluster.client_ca
        assert ca.sealed_key is not None
        ca_key = load_key_der(await parts.custody.unseal(ca.sealed_key, f"client_ca:{ca.id}"))
    request = SigningRequest(grant, key.public_key(), ca, credential_number=None)
    return der_pem(LeafBuilder(ca.certificate, ca_key).build(request)) + key_pem(key)


if __name__ == "__main__":
    cluster, user, *named = sys.argv[1:]
    sys.stdout.buffer.write(asyncio.run(forge(cluster, user, tuple(named))))
