"""Content negotiation by the Accept header."""

from collections.abc import Collection

from starlette.requests import Request

_JSON = frozenset({"application/json", "application/*", "*/*"})


def prefers(request: Request, media_types: Collection[str]) -> bool:
    """Whether Accept lists one of these media types before JSON. Weights (`q`) are ignored, except zero."""
    accepted = b",".join([value for name, value in request.scope["headers"] if name == b"accept"])
    if accepted in (b"", b"*/*"):
        return False
    for media_range in accepted.decode("latin-1").lower().split(","):
        media_type, *parameters = (part.strip() for part in media_range.split(";"))
        if "q=0" in (parameter.removesuffix(".0") for parameter in parameters):
            continue
        if media_type in media_types:
            return True
        if media_type in _JSON:
            return False
    return False
