"""Names for the ids of users, clusters and other objects in audit events."""

from collections.abc import Mapping

from clustercert.model.ids import is_long_id

# The actor of an event that a cluster's webhook reported is `cluster:ID`.
CLUSTER_ACTOR = "cluster:"
_FINGERPRINT_DIGITS = 64
# The number of fingerprint digits to show: enough for `certificate show` to find the certificate.
_SHOWN_DIGITS = 16
# The number of digits to show of other ids.
_SHOWN_ID_DIGITS = 8


def shown_name(text: str, names: Mapping[str, str], longest: int | None = None) -> str:
    """Return the name for an id or `cluster:ID`, or the first digits if there is no name. Other texts stay the same.

    Args:
        names: names by id.
        longest: a name with more characters is shown without its domain and project.
    """
    found = text.removeprefix(CLUSTER_ACTOR)
    prefix = text[: len(text) - len(found)]
    if found not in names and is_long_id(found):
        return prefix + found[: _SHOWN_DIGITS if len(found) == _FINGERPRINT_DIGITS else _SHOWN_ID_DIGITS]
    name = names.get(found, found)
    return prefix + (name if longest is None or len(name) <= longest else name.rpartition("/")[2])


def subject_name(subject: str, detail: object, names: Mapping[str, str], longest: int | None = None) -> str:
    """Return the name of an event's subject. For an object that is gone, only `detail` contains a name."""
    name = detail.get("name") if isinstance(detail, dict) else None
    if subject not in names and isinstance(name, str) and name:
        return name
    return shown_name(subject, names, longest)
