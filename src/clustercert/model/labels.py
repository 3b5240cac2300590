"""Labels, as in Kubernetes: the keys and values by which operators select objects."""

import re
from collections.abc import Mapping

from clustercert.model.errors import InvalidRequest

MAX_LABELS = 64

_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return the labels if they are valid Kubernetes labels, else raise InvalidRequest."""
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"labels: at most {MAX_LABELS} labels are allowed.")
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise InvalidRequest(f"{key!r}={value!r} is not a valid Kubernetes label.")
    return labels
