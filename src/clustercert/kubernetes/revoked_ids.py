"""Writes the ids of revoked certificates into a ConfigMap, which the admission policy reads at each write.

An id is a credential number, or a fingerprint for a certificate without a credential group.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus

from clustercert.kubernetes.api_client import UNEXPECTED_RESPONSE, KubeApi, Refused
from clustercert.kubernetes.manifests.admission import CONFIG_MAP, NAMESPACE, config_map
from clustercert.model.errors import RemoteFailed

_LIST_PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
_PATH = f"{_LIST_PATH}/{CONFIG_MAP}"
_OUR_KEY = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


async def publish(api: KubeApi, revoked: Mapping[str, str]) -> bool:
    """Store the expiry of each revoked certificate by id (lower-case hex). Returns whether the ConfigMap changed.

    Keeps keys that are not ids. Raises RemoteFailed, Unavailable, or Refused with status 409 after a concurrent change.
    """
    try:
        current = await api.get(_PATH)
    except Refused as refused:
        if refused.http_status != HTTPStatus.NOT_FOUND:
            raise
        await api.create(_LIST_PATH, {**config_map(), "data": dict(revoked)})
        return True
    found = current.get("data") or {}
    if not isinstance(found, dict):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    updated = {key: value for key, value in found.items() if not _OUR_KEY.fullmatch(key)} | dict(revoked)
    if updated == found:
        return False
    await api.replace(_PATH, {**current, "data": updated})
    return True
