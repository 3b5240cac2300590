"""X.509 and keys: client CAs, leaves, CSRs, CRLs, envelope encryption, request signatures."""
