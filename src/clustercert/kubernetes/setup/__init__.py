"""The files with which an operator sets up a cluster for issued certificates and revocation."""

CONTROL_PLANE_FOLDER = "/etc/kubernetes/clustercert"
"""Where the files are on the control plane, by default. The command line imports this package at start-up."""
