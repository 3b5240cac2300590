"""The files with which an operator sets up a cluster for issued certificates and revocation."""

CONTROL_PLANE_FOLDER = "/etc/kubernetes/clustercert"
"""The default folder for the files on the control plane. The command line imports this package at start-up."""
