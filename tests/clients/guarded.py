"""An API server with a scripted webhook: its configuration, and what it is asked."""

from pathlib import Path
from typing import Any

import httpx
import yaml

from apiserver.files import replace_file
from scripted import ScriptedWebhook

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
UNGUARDED = f"request.extra['{CREDENTIAL_ID}'].exists(c, c.startsWith('X509SHA256='))"
OURS = "request.groups.exists(g, g.startsWith('issuer:'))"


def configuration(folder: Path, webhook: ScriptedWebhook, *conditions: str, **changes: object) -> Path:
    """An AuthorizationConfiguration as in the notes of the measurements, with changes to the webhook's fields."""
    fields: dict[str, Any] = {
        "authorizedTTL": "5s",
        "unauthorizedTTL": "2s",
        "timeout": "3s",
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": "NoOpinion",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": str(webhook.kubeconfig(folder))},
        "matchConditions": [{"expression": each} for each in conditions],
        **changes,
    }
    path = folder / "authorization.yaml"
    document = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "clustercert", "webhook": fields},
            {"type": "Node", "name": "node"},
            {"type": "RBAC", "name": "rbac"},
        ],
    }
    replace_file(path, yaml.safe_dump(document).encode())
    return path


def namespaces(client: httpx.Client) -> httpx.Response:
    return client.get("/api/v1/namespaces")
