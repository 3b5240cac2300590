"""The files with which an operator sets up a cluster for issued certificates and revocation."""

CONTROL_PLANE_FOLDER = "/etc/kubernetes/clustercert"
"""The default folder for the files on the control plane.

The command line imports this constant at start-up, so it is not in a module that takes long to import.
"""
