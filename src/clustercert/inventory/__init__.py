"""Use case: issued certificates, access to clusters, and CRLs."""
