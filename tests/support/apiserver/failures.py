"""Refusals in kube-apiserver's form."""

from collections.abc import Mapping

JsonObject = Mapping[str, object]


class Failure(Exception):
    """An error response of kind Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def status(self) -> JsonObject:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


def unauthorized() -> Failure:
    return Failure(401, "Unauthorized", "Unauthorized")


def not_found(what: str, name: str) -> Failure:
    return Failure(404, "NotFound", f'{what} "{name}" not found')


def no_such_path() -> Failure:
    return Failure(404, "NotFound", "the server could not find the requested resource")


def conflict(what: str, name: str) -> Failure:
    message = (
        f'Operation cannot be fulfilled on {what} "{name}": the object has been modified; please apply your '
        "changes to the latest version and try again"
    )
    return Failure(409, "Conflict", message)


def invalid(kind: str, name: str, why: str) -> Failure:
    return Failure(422, "Invalid", f'{kind} "{name}" is invalid: {why}')


class AuthorizerFailed(Exception):
    """No authorizer allowed, and one failed. kube-apiserver answers in plain text instead of a Status."""
