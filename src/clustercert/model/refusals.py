"""Words that say whether the refusal of a revoked credential was seen, for the console and the command line."""

from collections.abc import Mapping
from typing import NamedTuple

from clustercert.model.choices import RefusalState
from clustercert.model.enforcement import Severity


class RefusalWords(NamedTuple):
    """Words for a state of refusal.

    Attributes:
        time: the field of the credential with the time that belongs to the label: when the credential was used or
            refused, by when its refusal is expected, or until when it is accepted.
    """

    label: str
    severity: Severity
    time: str


REFUSAL_WORDS: Mapping[RefusalState, RefusalWords] = {
    "used": RefusalWords("used after the revocation", "bad", "used_after_revocation_at"),
    "refused": RefusalWords("refused by the API server", "good", "refused_at"),
    "expected": RefusalWords("refusal expected", "warn", "expected_by"),
    "only_writes": RefusalWords("only writes refused", "warn", "not_after"),
    "unknown": RefusalWords("refusal not known", "warn", "not_after"),
    "none": RefusalWords("not refused", "bad", "not_after"),
}
