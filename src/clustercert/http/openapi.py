"""The OpenAPI document, and how routes describe their bodies and responses in it.

The first sentence of a route's docstring is its summary, the rest is its description.
"""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import PathConvertor
from starlette.routing import Route

from clustercert import __version__
from clustercert.model import JsonObject

TITLE = "clustercert"
_END_OF_SENTENCE = re.compile(r"\.\s+")
# The methods of `/openapi.json`, `/docs` and the files of `/docs`. The OpenAPI document does not contain these paths.
UNDOCUMENTED = ["GET", "HEAD"]

TEXT: JsonObject = {"type": "string"}
BINARY: JsonObject = {"type": "string", "format": "binary"}
AUTHENTICATED: list[JsonObject] = [{"token": []}, {"bearer": []}, {"signature": []}]
ERRORS = {
    400: "The request is invalid.",
    401: "No credential, or an invalid credential.",
    403: "The caller's role or the policy does not allow the request.",
    404: "The project or cluster does not exist, or the caller has no role in the project.",
    405: "The method is disabled.",
    408: "The request's body did not arrive in time.",
    413: "The request's body is larger than the route's limit.",
    415: "The request's body is compressed.",
    429: "A rate limit or quota is exceeded; see Retry-After.",
    500: "Internal error.",
    502: "A remote signer failed.",
    503: "Temporarily unavailable; see Retry-After.",
}
# The errors of routes that need neither authentication nor a body.
PUBLIC_ERRORS = {status: ERRORS[status] for status in (400, 404, 429, 500, 503)}


class ErrorBody(BaseModel):
    """The body of an error response outside the Keystone subset. The error codes are from the CCE API reference."""

    model_config = ConfigDict(extra="allow")

    errorCode: str  # noqa: N815 - CCE's name
    errorMessage: str  # noqa: N815 - CCE's name
    error_code: str
    error_msg: str
    message: str = Field(default="", description="Absent for Huawei Cloud's SDKs.")
    request_id: str


class KeystoneErrorDetail(BaseModel):
    """Status, message and title of an error."""

    code: int
    message: str
    title: str


class KeystoneError(BaseModel):
    """The body of every error response of the Keystone subset.

    Huawei Cloud's SDKs read `error_code` and `error_msg`.
    """

    error: KeystoneErrorDetail
    error_code: str
    error_msg: str


_ERROR_MODELS = (ErrorBody, KeystoneError)
_SCHEMAS = "#/components/schemas/"


def described(
    description: str,
    model: object = None,
    *,
    status: int = 200,
    content: Mapping[str, JsonObject] | None = None,
    headers: Mapping[str, str] | None = None,
    errors: Mapping[int, str] = ERRORS,
    error_model: type[BaseModel] = ErrorBody,
) -> dict[int | str, dict[str, Any]]:
    """Describe a route's responses. `content` has additional media types, with their schemas."""
    success: dict[str, Any] = {"description": description}
    if model is not None:
        success["model"] = model
    if content:
        success["content"] = {media_type: {"schema": schema} for media_type, schema in content.items()}
    if headers:
        success["headers"] = {name: {"description": text, "schema": TEXT} for name, text in headers.items()}
    # References, not models: FastAPI would build a validator for each model. This takes a fifth of the import time.
    failure = {"application/json": {"schema": {"$ref": _SCHEMAS + error_model.__name__}}}
    failures: dict[int | str, dict[str, Any]] = {
        code: {"description": text, "content": failure} for code, text in errors.items()
    }
    return {status: success, **failures}


KIB = 1024
_MAX_BYTES = "x-max-body-bytes"
# For routes that have no body: they ignore what a client sends.
_MAX_IGNORED_BYTES = 8 * KIB


def body_limit(size: int) -> dict[str, Any]:
    """Describe the maximum size of a route's body in bytes, for `openapi_extra`. `raw_body` enforces this size."""
    return {_MAX_BYTES: size}


def max_body_bytes(route: object) -> int:
    """Return the maximum size of a body for a route of FastAPI."""
    return int((getattr(route, "openapi_extra", None) or {}).get(_MAX_BYTES, _MAX_IGNORED_BYTES))


def json_body(
    body: type[BaseModel] | JsonObject, *, limit: int | None, required: bool = True
) -> dict[str, Any]:
    """Describe a request body by its model or schema.

    FastAPI must not parse the body: the routes parse it after they have authenticated the caller.

    Args:
        limit: the maximum size in bytes, a little more than the largest body that the model accepts; None if the route
            reads the body itself, with another limit.
    """
    if isinstance(body, dict):
        schema: object = body
    else:
        model_schema = body.model_json_schema()
        schema = _inlined(model_schema, model_schema.pop("$defs", {}))
    content = {"application/json": {"schema": schema}}
    described_body = {"requestBody": {"required": required, "content": content}}
    return described_body | (body_limit(limit) if limit is not None else {})


def _inlined(schema: object, definitions: JsonObject) -> object:
    """Replace each `$ref` by its schema, because OpenAPI resolves references against the whole document."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[str(schema["$ref"]).rsplit("/", 1)[-1]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "discriminator"}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, which is generated only once."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=TITLE,
        version=__version__,
        summary="X.509 client credentials for Kubernetes clusters, as kubeconfig files.",
        routes=app.routes,
    )
    schema["components"]["securitySchemes"] = {
        "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
        "bearer": {"type": "http", "scheme": "bearer"},
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "SDK-HMAC-SHA256 or V11-HMAC-SHA256, as the vendor SDKs sign with an access key.",
        },
    }
    schemas = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in _ERROR_MODELS:
        found = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
        schemas |= found.pop("$defs", {}) | {model.__name__: found}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            summary, *rest = _END_OF_SENTENCE.split(operation.get("description", ""), maxsplit=1)
            operation |= {"summary": summary, "description": "".join(rest)}
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            # Errors that FastAPI finds in parameters cause status 400, not 422.
            operation["responses"].pop("422", None)
            if "401" in operation["responses"] and not path.endswith("/auth/tokens"):
                operation.setdefault("security", AUTHENTICATED)
    return schema


def _without_null(schema: JsonObject) -> JsonObject:
    """Remove the alternative null from the schema of a parameter, because a parameter can't have the value null."""
    alternatives = schema.get("anyOf")
    if not isinstance(alternatives, list):
        return schema
    [sent] = [each for each in alternatives if each != {"type": "null"}]
    return {**sent, **{name: value for name, value in schema.items() if name != "anyOf"}}


def methods(app: FastAPI, path: str) -> list[str]:
    """Return the methods of all routes for a path, sorted. The framework reports only the first route's methods.

    A route with a parameter for several segments, such as the console's page for unknown addresses, counts only if no
    other route matches.
    """
    matching = [each for each in app.routes if isinstance(each, Route) and each.path_regex.match(path)]
    specific = [each for each in matching if not _spans_segments(each)]
    found = {method for route in specific or matching for method in route.methods or ()}
    return sorted(found) or UNDOCUMENTED


def _spans_segments(route: Route) -> bool:
    return any(isinstance(each, PathConvertor) for each in route.param_convertors.values())
