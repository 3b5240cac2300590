"""The webhook authorizer: match conditions, cache, SubjectAccessReview, failure policy."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import httpx2

from support.apiserver.attributes import Attributes
from support.apiserver.authorization import Decision, Verdict, WebhookSettings
from support.apiserver.expressions import ExpressionError, holds
from support.apiserver.identity import Identity
from support.apiserver.kubeconfigs import KubeconfigCaller

Release = Literal["1.32", "1.36"]
# Seen: five calls in 4.4 s where the webhook answers 500, and no repetition of any other failure.
CALLS_OF_A_500 = 5
FIRST_PAUSE_S, PAUSE_GROWS_BY = 0.55, 1.5


class WebhookFailed(Exception):
    """No usable answer."""


class Webhook:
    """Calls over HTTP what the settings name.

    Attributes:
        calls: number of calls, including retries.
        results: number of reviews by result, as kube-apiserver counts them.
    """

    def __init__(self, settings: WebhookSettings, release: Release, now: Callable[[], datetime]) -> None:
        self._now = now
        self._settings = settings
        self._release = release
        self._caller = KubeconfigCaller(settings.kubeconfig, settings.timeout_s)
        self._known: dict[str, tuple[datetime, Mapping[str, Any]]] = {}
        self._lock = threading.Lock()
        self.calls = 0
        self.results: Counter[str] = Counter()

    def __call__(self, who: Identity, wanted: Attributes) -> Verdict:
        spec = review_spec(who, wanted)
        try:
            if not self._matches(spec):
                return Verdict(Decision.NO_OPINION)
            status = self._status(spec)
        except (ExpressionError, WebhookFailed) as error:
            failed = Decision.DENY if self._settings.denies_on_failure else Decision.NO_OPINION
            return Verdict(failed, error=str(error))
        reason = str(status.get("reason", ""))
        allowed, denied = bool(status.get("allowed")), bool(status.get("denied"))
        if allowed and denied:
            return Verdict(
                Decision.DENY,
                error="webhook subject access review returned both allow and deny response",
            )
        if denied:
            return Verdict(Decision.DENY, reason)
        return Verdict(Decision.ALLOW if allowed else Decision.NO_OPINION, reason)

    def close(self) -> None:
        self._caller.close()

    @property
    def metrics(self) -> str:
        """In Prometheus's text format."""
        name = "apiserver_authorization_webhook_evaluations_total"
        samples = [
            f'{name}{{name="{self._settings.name}",result="{result}"}} {count}\n'
            for result, count in self.results.items()
        ]
        return "".join([f"# TYPE {name} counter\n", *samples])

    def _matches(self, spec: Mapping[str, object]) -> bool:
        """False if any condition is false. Errors count only if no condition is false."""
        failed = None
        for condition in self._settings.conditions:
            try:
                if not holds(condition, {"request": spec}):
                    return False
            except ExpressionError as error:
                failed = error
        if failed is not None:
            raise failed
        return True

    def _status(self, spec: Mapping[str, object]) -> Mapping[str, Any]:
        key = json.dumps(spec)
        with self._lock:
            known = self._known.get(key)
        if known is not None and self._now() < known[0]:
            return known[1]
        try:
            status = self._asked(spec)
        except WebhookFailed as failure:
            self.results[
                "timeout" if isinstance(failure.__cause__, httpx2.TimeoutException) else "error"
            ] += 1
            raise
        self.results["success"] += 1
        settings = self._settings
        ttl_s = settings.authorized_ttl_s if status.get("allowed") else settings.unauthorized_ttl_s
        with self._lock:
            self._known[key] = (self._now() + timedelta(seconds=ttl_s), status)
        return status

    def _asked(self, spec: Mapping[str, object]) -> Mapping[str, Any]:
        body = review_body(spec, self._release, self._settings.version)
        pause_s = FIRST_PAUSE_S
        for call in range(1, CALLS_OF_A_500 + 1):
            self.calls += 1
            try:
                answer = self._caller.post(body)
            except httpx2.HTTPError as error:
                raise WebhookFailed(f'Post "{self._caller.url}": {error!r}') from error
            if answer.status_code != httpx2.codes.INTERNAL_SERVER_ERROR or call == CALLS_OF_A_500:
                return _status_of(answer, self._settings.version)
            time.sleep(pause_s)
            pause_s *= PAUSE_GROWS_BY
        raise AssertionError  # the last call returns


def review_spec(who: Identity, wanted: Attributes) -> Mapping[str, object]:
    """The spec in Go's order of fields, which is the cache key."""
    spec = {**wanted.in_review, "user": who.username, "groups": list(who.groups)}
    return {**spec, "extra": dict(who.extra)} if who.extra else spec


def review_body(spec: Mapping[str, object], release: Release, version: str = "v1") -> bytes:
    """A SubjectAccessReview, byte for byte as this release writes it."""
    if version == "v1beta1":
        spec = {"group" if name == "groups" else name: value for name, value in spec.items()}
    review = {
        "kind": "SubjectAccessReview",
        "apiVersion": f"authorization.k8s.io/{version}",
        "metadata": {"creationTimestamp": None} if release == "1.32" else {},
        "spec": spec,
        "status": {"allowed": False},
    }
    return json.dumps(review, separators=(",", ":"), ensure_ascii=False).encode()


def _status_of(answer: httpx2.Response, version: str) -> Mapping[str, Any]:
    if not answer.is_success:
        raise WebhookFailed(f"the webhook answered {answer.status_code}: {answer.text[:200]}")
    try:
        review = answer.json()
        status = review["status"]
        known = (review["kind"], review["apiVersion"]) == (
            "SubjectAccessReview",
            f"authorization.k8s.io/{version}",
        )
    except (ValueError, TypeError, KeyError) as error:
        raise WebhookFailed(f"the webhook's answer is no SubjectAccessReview: {error!r}") from error
    if not known or not isinstance(status, dict) or not isinstance(status.get("allowed"), bool):
        raise WebhookFailed("the webhook's answer is no SubjectAccessReview of its version")
    return status
