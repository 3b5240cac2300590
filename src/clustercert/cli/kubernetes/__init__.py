"""Commands that set up clusters for issued certificates and revocation, and verify them."""
