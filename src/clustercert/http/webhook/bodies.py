"""OpenAPI documentation of the Kubernetes objects that the webhooks return."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class SubjectAccessReviewStatus(BaseModel):
    """The decision: denied with a reason, or no opinion; never allowed."""

    model_config = ConfigDict(extra="forbid")

    allowed: Literal[False]
    denied: Literal[True] = True
    reason: str = ""


class SubjectAccessReview(BaseModel):
    """The response to a SubjectAccessReview: only its status."""

    apiVersion: Literal["authorization.k8s.io/v1"]  # noqa: N815 - Kubernetes's name
    kind: Literal["SubjectAccessReview"]
    status: SubjectAccessReviewStatus


class KubernetesStatus(BaseModel):
    """The response to a batch of audit events."""

    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes's name
    kind: Literal["Status"]
    metadata: dict[str, object]
    status: Literal["Success"]
