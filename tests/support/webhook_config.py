"""Settings of a webhook."""

from clustercert.kubernetes.setup.authorization import WebhookConfig

WEBHOOK_CONFIG = WebhookConfig(
    mode="default",
    groups=("clustercert:admins", 'odd "group" \\ é'),
    exemptions=("system:*", "builders"),
    failure_policy="NoOpinion",
    authorized_ttl="5s",
    unauthorized_ttl="2s",
    timeout="3s",
    kubeconfig="/etc/kubernetes/clustercert/webhook.kubeconfig",
)
