"""What is revoked in a ConfigMap, where a ValidatingAdmissionPolicy looks for the certificate of who wants to write.

Its keys are credential numbers, and fingerprints of certificates without a credential group.

An object of the API server has its bound, etcd's 1.5 MiB. Each key costs about 160 bytes of it, its second mention in
`managedFields` included, so that MAX_REVOKED of them leave room. Where more are revoked and not expired, those revoked
last are kept, since an emergency is what happens now, and it is said loudly how many are left out.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus

from clustercert.errors import RemoteFailed
from clustercert.kubeapi import KubeApi, Refused
from clustercert.manifests import MANAGED_BY
from clustercert.manifests.admission import CONFIG_MAP, NAMESPACE
from clustercert.model import JsonObject

_LIST_PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
_PATH = f"{_LIST_PATH}/{CONFIG_MAP}"
_OUR_KEY = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


async def publish(api: KubeApi, revoked: Mapping[str, str]) -> bool:
    """Make the ConfigMap hold these: keys (lower-case hex) and when each certificate ends; whether it had to change.

    Keys of other kinds are somebody else's and stay. Raises RemoteFailed, Unavailable, or Refused with status 409 where
    somebody else was faster.
    """
    try:
        there = await api.get(_PATH)
    except Refused as refused:
        if refused.http_status != HTTPStatus.NOT_FOUND:
            raise
        await api.create(_LIST_PATH, _new(revoked))
        return True
    found = there.get("data") or {}
    if not isinstance(found, dict):
        raise RemoteFailed("The cluster's API server answered otherwise than Kubernetes does.")
    wanted = {key: value for key, value in found.items() if not _OUR_KEY.fullmatch(key)} | dict(revoked)
    if wanted == found:
        return False
    await api.replace(_PATH, {**there, "data": wanted})
    return True


def _new(revoked: Mapping[str, str]) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": CONFIG_MAP,
            "namespace": NAMESPACE,
            "labels": MANAGED_BY,
        },
        "data": dict(revoked),
    }
