"""The issuance service: decides on, signs, checks and records certificates."""
