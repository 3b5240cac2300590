"""What the double does where the webhook or a condition gives no answer, as a kube-apiserver does."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from support.apiserver import ApiServer
from support.apiserver_clients import client_of
from support.scripted_webhook import UNGUARDED, Answer, ScriptedWebhook, configuration, namespaces, review
from support.wait import SECONDS


def garbage(webhook: ScriptedWebhook) -> None:
    webhook.answer = lambda _review: (200, b"<html>")


def hanging(webhook: ScriptedWebhook) -> None:
    def slowly(_review: object) -> Answer:
        # In a thread that ends with this process.
        threading.Event().wait(SECONDS)
        return review(allowed=False)

    webhook.answer = slowly


def unavailable(webhook: ScriptedWebhook) -> None:
    webhook.answer = lambda _review: (503, b"{}")


def another_kind(webhook: ScriptedWebhook) -> None:
    webhook.answer = lambda _review: (
        200,
        b'{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{}}',
    )


@pytest.mark.parametrize("fail", [ScriptedWebhook.stop, garbage, hanging, unavailable, another_kind])
@pytest.mark.parametrize(("policy", "status"), [("NoOpinion", 200), ("Deny", 500)])
def test_the_failure_policy_decides_where_there_is_no_answer(
    apiserver: ApiServer,
    as_bob: httpx2.Client,
    tmp_path: Path,
    webhook: ScriptedWebhook,
    fail: Callable[[ScriptedWebhook], None],
    policy: str,
    status: int,
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook, failurePolicy=policy, timeout="300ms"))
    fail(webhook)

    answer = namespaces(as_bob)

    assert answer.status_code == status
    assert len(webhook.asked) <= 1, "nothing but a 500 is asked again"


def test_an_internal_error_of_the_webhook_is_asked_again_four_times(
    apiserver: ApiServer, as_bob: httpx2.Client, tmp_path: Path, webhook: ScriptedWebhook
) -> None:
    apiserver.authorize_with(configuration(tmp_path, webhook))
    webhook.answer = lambda _review: (500, b"{}")

    began = time.monotonic()
    status = namespaces(as_bob).status_code

    assert (status, len(webhook.asked)) == (200, 5)
    assert time.monotonic() - began > 4


def test_a_condition_that_fails_counts_as_no_answer(
    apiserver: ApiServer, tmp_path: Path, webhook: ScriptedWebhook
) -> None:
    """Which is why each condition asks for the key before it reads it."""
    statuses = []
    for policy in ("NoOpinion", "Deny"):
        apiserver.authorize_with(configuration(tmp_path, webhook, UNGUARDED, failurePolicy=policy))
        with client_of(apiserver, tmp_path, None) as anonymous:
            statuses.append(anonymous.get("/readyz").status_code)

    assert statuses == [200, 500]
    assert webhook.asked == []
