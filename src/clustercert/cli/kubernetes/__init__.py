"""Commands that prepare clusters for issued certificates and revocations, and verify the clusters."""
