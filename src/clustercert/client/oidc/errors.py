"""Why a login at an issuer failed."""

from clustercert.client.connection import ClientError


class IssuerUnreachable(ClientError, status=503, code="CCE.01503001"):
    """The issuer could not be reached, or did not answer."""


class IssuerError(ClientError):
    """The issuer's answer can't be used. The message says what the operator of the issuer or service should do."""


class LoginRefused(ClientError, status=401, code="CCE.01401001"):
    """The user or the issuer denied the login, or nobody completed it in time."""


class OAuthError(ClientError):
    """The issuer answered with an error of RFC 6749 or RFC 8628.

    Attributes:
        error: the error code, such as `invalid_grant`.
    """

    def __init__(self, error: str, description: str, where: str) -> None:
        text = f"{error}: {description}" if description else error
        super().__init__(f"{where} answered with an error ({text}).{_REMEDIES.get(error, '')}")
        self.error = error


_CHECK = " Ask an operator of the service to compare the settings with those of the client at the issuer"
_REMEDIES = {
    "access_denied": " The login was denied, by you or by the issuer.",
    "expired_token": " Nobody completed the login in time. Log in again.",
    "invalid_client": f"{_CHECK}: client_id, and that the client is public.",
    "invalid_grant": " Log in again.",
    "invalid_scope": f"{_CHECK}: scopes.",
    "unauthorized_client": f"{_CHECK}: the grants that the client may use.",
    "unsupported_grant_type": f"{_CHECK}: the grants that the client may use.",
}
