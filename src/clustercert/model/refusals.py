"""Words that say whether the refusal of a revoked credential was seen, for the console and the command line."""

from collections.abc import Mapping

from clustercert.model.choices import RefusalState

REFUSAL_WORDS: Mapping[RefusalState, str] = {
    "used": "used after the revocation",
    "refused": "refused by the API server",
    "expected": "refusal expected",
    "only_writes": "only writes refused",
    "none": "not refused",
}
REFUSAL_TIMES: Mapping[RefusalState, str] = {
    "used": "used_after_revocation_at",
    "refused": "refused_at",
    "expected": "expected_by",
    "only_writes": "not_after",
    "none": "not_after",
}
"""For each state, the field of the credential with the time that belongs to the words: when the credential was used or
refused, by when its refusal is expected, or until when it is accepted."""
