"""The signer `csr_api` at a real kube-apiserver and kube-controller-manager, with the rights that an operator gives.

Runs where KUBEBUILDER_ASSETS names a folder that also has kube-controller-manager.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
import yaml

from clustercert.issuance.signers.csr_api import CsrApiSigner
from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.kubernetes.setup.documents import to_yaml
from clustercert.kubernetes.setup.signer_access import signer_access
from clustercert.kubernetes.verify.probe import Probe
from clustercert.model import ClientCA, KeyType, SigningRequest, credential_group, utc_now
from clustercert.model.errors import RemoteFailed
from clustercert.pki.keys import key_pem, new_key
from clustercert.pki.leaf import check_leaf, der_pem, new_signing_request
from clustercert.pki.signer import CaRequest
from support.kube_apiserver import ASSETS, KubeApiServer, assets
from support.ring_sealer import RingSealer
from support.samples import CLUSTER_ID, grant
from support.signing_cluster import MemoryClusters, registration_of
from support.wait import SECONDS, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not KubeApiServer.can_sign(), reason=f"{ASSETS} names no folder with kube-controller-manager"
    ),
]

BACKDATE = timedelta(minutes=5)
KEYS = {key_type: new_key(key_type) for key_type in get_args(KeyType)}


@dataclass
class Site:
    apiserver: KubeApiServer
    signer: CsrApiSigner
    ca: ClientCA

    def request(
        self, groups: tuple[str, ...], lifetime: timedelta, key_type: KeyType = "ec-p256"
    ) -> SigningRequest:
        now, key = utc_now().replace(microsecond=0), KEYS[key_type]
        wanted = replace(
            grant("alice", groups),
            not_before=now - BACKDATE,
            not_after=min(now + lifetime, self.ca.not_after),
        )
        return new_signing_request(
            wanted, key.public_key(), self.ca, takes_serial=False, profile="kubernetes", private_key=key
        )


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    programs = assets()
    assert programs is not None
    with KubeApiServer(programs, tmp_path) as apiserver:
        apiserver.serve()
        apiserver.sign_requests()
        manifest = to_yaml(signer_access())
        eventually(lambda: "clustercert-signer" in apiserver.kubectl("apply", "-f", "-", stdin=manifest))
        token = apiserver.kubectl("create", "token", "-n", "clustercert", "clustercert-signer")
        clusters = MemoryClusters(apiserver)
        signer = CsrApiSigner(clusters, RingSealer(), timedelta(days=7))
        ca = await signer.create_ca(
            CaRequest(
                CLUSTER_ID,
                registration_of(apiserver),
                "ec-p256",
                utc_now(),
                timedelta(days=1),
                token.encode(),
            )
        )
        yield Site(apiserver, signer, clusters.store(ca))
        await signer.close()
        assert requests_are_gone(apiserver)


def requests_are_gone(apiserver: KubeApiServer) -> bool:
    return bool(yaml.safe_load(apiserver.kubectl("get", "csr", "-o", "yaml"))["items"] == [])


async def refusal(site: Site, request: SigningRequest) -> ApiServerRefused:
    """Wait until the API server uses the new policy, and return its refusal."""
    for _ in range(100):
        try:
            await site.signer.sign(request)
        except RemoteFailed as error:
            if not isinstance(error.__cause__, ApiServerRefused):
                raise
            return error.__cause__
        await asyncio.sleep(0.2)
    raise AssertionError("the policy has no effect")


async def test_the_cluster_signs_exactly_what_is_expected(site: Site) -> None:
    groups = ("team-b", "clustercert:editors", "z", "a", "ecosystem:x", "grüße")
    for key_type in KEYS:
        for lifetime in (timedelta(minutes=11), timedelta(hours=7), timedelta(hours=9), timedelta(days=30)):
            request = site.request(groups, lifetime, key_type)
            leaf = check_leaf(await site.signer.sign(request), request)
            assert leaf.not_after <= request.grant.not_after
    identity = ClientIdentity(der_pem(leaf.der), key_pem(KEYS[key_type]))
    server_ca = site.apiserver.server_ca.read_bytes()
    async with KubeApi(site.apiserver.url, server_ca, identity, seconds=SECONDS) as api:
        user = await Probe(api).who_am_i()
    assert user.username == "alice"
    assert user.groups >= {*groups, credential_group(request.credential_number)}


@pytest.mark.parametrize("group", ["system:nodes", "system:kube-controller-manager", "system:masters"])
async def test_system_groups_are_refused(site: Site, group: str) -> None:
    cause = await refusal(site, site.request((group,), timedelta(hours=1)))
    said = "system:masters group is not allowed" if group == "system:masters" else "begins with system:"
    assert said in cause.server_message


async def test_the_account_may_do_nothing_else(site: Site) -> None:
    account = "--as=system:serviceaccount:clustercert:clustercert-signer"
    rights = site.apiserver.kubectl("auth", "can-i", "--list", account)
    assert "secrets" not in rights
    assert "*.*" not in rights
    custody = await site.signer.custody(site.ca)
    assert custody.proof["ca_in_client_ca_file"] == "true"
    await site.signer.maintain(site.ca)
