"""The issuance service: applies the policy, and signs, checks and records certificates."""
