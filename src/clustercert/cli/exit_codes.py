"""Exit codes of all commands: 0 for success, and those below. `USAGE`: an argument is missing, wrong or malformed."""

from clustercert.model.errors import ClustercertError

FAILED = 1
USAGE = 2
NOT_LOGGED_IN = 3
FORBIDDEN = 4
NOT_FOUND = 5
UNAVAILABLE = 6
INTERRUPTED = 130

_BY_STATUS = {
    400: USAGE,
    401: NOT_LOGGED_IN,
    403: FORBIDDEN,
    404: NOT_FOUND,
    408: UNAVAILABLE,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}


def exit_code(error: ClustercertError) -> int:
    """Return the exit code for an error, by its HTTP status or by that of the service's response."""
    return _BY_STATUS.get(getattr(error, "http_status", error.status), FAILED)
