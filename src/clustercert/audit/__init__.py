"""The audit log: a transparency log. Anyone who stored an earlier checkpoint can detect tampering."""
