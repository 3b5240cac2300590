"""Short-lived, audited X.509 client credentials for Kubernetes clusters, as kubeconfig files."""

__version__ = "0.1.0"
