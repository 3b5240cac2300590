"""Kubernetes's own documents, as far as they are answered here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class SubjectAccessReviewStatus(BaseModel):
    """Denied with a reason, or no opinion; never allowed."""

    model_config = ConfigDict(extra="forbid")

    allowed: Literal[False]
    denied: Literal[True] = True
    reason: str = ""


class SubjectAccessReview(BaseModel):
    """The answer to a SubjectAccessReview: its status alone."""

    apiVersion: Literal["authorization.k8s.io/v1"]  # noqa: N815 - Kubernetes's name
    kind: Literal["SubjectAccessReview"]
    status: SubjectAccessReviewStatus


class KubernetesStatus(BaseModel):
    """What an API server is told when there is nothing to tell."""

    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes's name
    kind: Literal["Status"]
    metadata: dict[str, object]
    status: Literal["Success"]
