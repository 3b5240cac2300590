"""X.509 and cryptography: keys, client CAs, leaves, CSRs, CRLs, envelope encryption, request signatures."""
