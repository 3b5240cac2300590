"""The files with which an operator sets up a cluster for issued certificates and revocation."""
