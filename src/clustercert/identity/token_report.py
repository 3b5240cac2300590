"""Reports on tokens of OIDC issuers: which checks they pass, and which roles their users have."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clustercert.authn.oidc.explanation import CheckResult, Explanation
from clustercert.identity.federation import Federation, LoginRoles
from clustercert.model.errors import Unauthenticated

if TYPE_CHECKING:
    from clustercert.authn.oidc.authenticator import OidcAuthenticator


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Whether a token is accepted now, and which roles its user has.

    Attributes:
        login: the roles of the token's user; None if the token would be refused.
        missing: names in the issuer's settings that the database lacks, such as `role membr`.
    """

    explanation: Explanation
    login: LoginRoles | None
    missing: tuple[str, ...] = ()

    @property
    def failed(self) -> CheckResult | None:
        """The first check that failed, or None if the token would be accepted."""
        return next((check for check in self.explanation.checks if not check.passed), None)


async def report_on_token(oidc: "OidcAuthenticator | None", federation: Federation, text: str) -> TokenReport:
    """Report on a token. Stores and logs nothing. Raises Unavailable if the database can't be reached."""
    if oidc is None:
        none = CheckResult("iss", False, "", "an issuer in the settings; add one as [[identity.issuers]]")
        return TokenReport(Explanation(None, (none,), None), None)
    explanation = await oidc.explain(text.strip())
    missing = await federation.missing_names(explanation.issuer) if explanation.issuer is not None else ()
    if explanation.user is None:
        return TokenReport(explanation, None, missing)
    try:
        login = await federation.login(explanation.user)
    except Unauthenticated as error:
        refused = CheckResult("user", False, error.reason, "a user who may log in")
        return TokenReport(replace(explanation, checks=(*explanation.checks, refused)), None, missing)
    return TokenReport(explanation, login, missing)
