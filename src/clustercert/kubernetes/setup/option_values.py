"""The values that the options of `kubernetes setup` may have. The command line imports this module at start-up."""

import re
from pathlib import PurePosixPath

CONTROL_PLANE_FOLDER = "/etc/kubernetes/clustercert"
# Source: kubernetes/staging/src/k8s.io/apiserver/pkg/apis/apiserver/validation: at most 30 seconds.
MAX_TIMEOUT_SECONDS = 30

# Go's format for durations. Kubernetes replaces 0 with 30 seconds, so 0 is rejected here.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
FIRST_WITH_CONFIGURATION, FIRST_WITH_V1, FIRST_WITH_HASHES = 30, 32, 32
"""Minor versions of Kubernetes: the first with a configuration file, with its v1, and with credential ids."""
_VERSION = re.compile(r"1\.(2[4-9]|[3-9][0-9])")


def duration_seconds(text: str) -> float:
    """Convert a duration as Go writes it, such as 1m30s."""
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def checked_duration(text: str, max_seconds: int) -> str:
    """Return a duration as Go writes it. Raises ValueError if it is 0, too long or malformed."""
    whole = "".join(number + unit for number, unit in _DURATION.findall(text))
    if whole != text or not 0 < duration_seconds(text) <= max_seconds:
        raise ValueError(
            f"{text!r} is not valid. Write it like 2s or 500ms, greater than 0 and at most {max_seconds}s."
        )
    return text


def checked_version(text: str) -> str:
    """Return a version of Kubernetes. Raises ValueError if it is not supported."""
    if _VERSION.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not valid. Write it like 1.29, at least 1.24.")
    return text


def minor_version(text: str) -> int:
    """Return the second number of a version of Kubernetes."""
    return int(text.partition(".")[2])


def checked_folder(text: str) -> str:
    """Return an absolute path. Raises ValueError."""
    if not (PurePosixPath(text).is_absolute() and text.isprintable()):
        raise ValueError(f"{text!r} is not an absolute path.")
    return text
