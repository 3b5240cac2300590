"""The settings in the table `[identity]`: which identity systems authenticate callers."""

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from clustercert.authn.federated import Authority
from clustercert.authn.keystone.settings import Keystone
from clustercert.authn.oidc.issuers import OidcIssuer, check_issuers_differ
from clustercert.model.identity import BUILT_IN
from clustercert.model.ids import is_user_id
from clustercert.model.requests import KEYSTONE_METHODS
from clustercert.policy.examples import ExampleCaller
from clustercert.policy.setting_types import Lifetime, RuleFault, Section, TrueOrFalse


class IdentitySettings(Section):
    """`[identity]`: the built-in identity service, OIDC issuers and a Keystone.

    Attributes:
        built_in: whether the built-in identity service is enabled. If false, the users, tokens and access keys of the
            built-in identity service are refused, and the paths below `/v3` do not exist.
        region: name of the region in the catalog. The vendors' clients expect projects to have this name.
        token_lifetime: lifetime of the tokens that the built-in identity service issues.
        issuers: OIDC issuers whose tokens are accepted too. See [Identity providers](identity.md#settings).
        keystone: a Keystone whose tokens and access keys are accepted too. See [Keystone](keystone.md#settings).
    """

    built_in: TrueOrFalse = True
    region: str = Field(default="eu-de", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    token_lifetime: Lifetime = timedelta(hours=24)
    issuers: tuple[OidcIssuer, ...] = Field(default=(), max_length=100)
    keystone: Keystone | None = None

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """All OIDC issuers, and Keystone if it is configured."""
        keystone = (self.keystone,) if self.keystone is not None else ()
        return (*self.issuers, *keystone)

    @property
    def authority_names(self) -> frozenset[str]:
        """The names of issuers and Keystone. No domain may have one of these names."""
        keystone = (self.keystone.name,) if self.keystone is not None else ()
        return frozenset((*(issuer.name for issuer in self.issuers), *keystone))

    @property
    def urls(self) -> frozenset[str]:
        """The URLs of issuers and Keystone, and `built-in`."""
        keystone = (self.keystone.url,) if self.keystone is not None else ()
        return frozenset((BUILT_IN, *(issuer.issuer for issuer in self.issuers), *keystone))

    def example_fault(self, caller: ExampleCaller) -> tuple[str, str] | None:
        """Find an example's first value that no real caller can have. Returns the field and the reason, or None."""
        if caller.issuer not in self.urls:
            return (
                "issuer",
                f"no issuer has the URL {caller.issuer}; the issuers are {', '.join(sorted(self.urls))}",
            )
        methods: tuple[str, ...] = ("token", "access_key", "cli")
        keystone = self.keystone if self.keystone is not None and caller.issuer == self.keystone.url else None
        issuer = next((each for each in self.issuers if each.issuer == caller.issuer), None)
        if keystone is not None or issuer is not None:
            methods = KEYSTONE_METHODS if keystone is not None else ("oidc",)
        if caller.auth_method not in methods:
            return "auth_method", (
                f"callers of {caller.issuer} don't authenticate by {caller.auth_method}; write {', '.join(methods)}"
            )
        if issuer is not None:
            return _name_fault(caller, issuer.name, f"{issuer.name}/alice" if issuer.prefix_names else None)
        if keystone is not None and keystone.prefix_names:
            return _name_fault(caller, keystone.name, f"{keystone.name}/DOMAIN/alice")
        return None

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        check_issuers_differ(self.issuers)
        keystone = self.keystone
        if keystone is not None and any(keystone.name == issuer.name for issuer in self.issuers):
            raise RuleFault(
                f"an issuer has the name {keystone.name}; choose another name", "keystone", "name"
            )
        if not self.built_in and keystone is None and not self.issuers:
            raise RuleFault("if built_in is false, configure Keystone or an issuer", "built_in")
        return self


def _name_fault(caller: ExampleCaller, name: str, form: str | None) -> tuple[str, str] | None:
    """Find the first name in an example that no user or group of this issuer can have.

    Returns the field and the reason, or None. If `form` is None, users and groups may have any name.
    """
    if caller.domain not in {None, name} or (form is None and caller.domain is None):
        return "domain", f"the domain of this issuer's users is {name}; write domain = {name}"
    if form is None:
        return None
    for field, given in (("user", (caller.user,)), ("groups", caller.groups)):
        # Ids have no prefix, so accept the id of a user or group only if the example names the issuer's domain.
        wrong = [
            each
            for each in given
            if not each.startswith(f"{name}/") and not (caller.domain is not None and is_user_id(each))
        ]
        if wrong:
            return field, f"no user or group of this issuer is called {wrong[0]}; write names like {form}"
    return None
