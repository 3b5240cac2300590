"""The table `[identity]`: who authenticates callers."""

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from clustercert.authn.federated import Authority
from clustercert.authn.keystone.settings import KeystoneSettings
from clustercert.authn.oidc.issuer_settings import IssuerSettings, configured_issuers
from clustercert.policy.setting_types import Lifetime, RuleFault, Section, TrueOrFalse


class IdentitySettings(Section):
    """`[identity]`: the built-in identity service, and OIDC issuers and a Keystone beside it.

    Attributes:
        built_in: serve the built-in identity. If false, its users, tokens and access keys are refused, and the paths
            below `/v3` do not exist.
        region: name of the region in the catalog. Clients expect each project to have this name.
        token_lifetime: lifetime of tokens.
        issuers: OIDC issuers whose tokens are accepted too. See below.
        keystone: a Keystone whose tokens and access keys are accepted too. See below.
    """

    built_in: TrueOrFalse = True
    region: str = Field(default="eu-de", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    token_lifetime: Lifetime = timedelta(hours=24)
    issuers: tuple[IssuerSettings, ...] = Field(default=(), max_length=100)
    keystone: KeystoneSettings | None = None

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """The issuers, and Keystone."""
        keystone = (self.keystone.configured(),) if self.keystone is not None else ()
        return (*configured_issuers(self.issuers), *keystone)

    @property
    def authority_names(self) -> frozenset[str]:
        """The names of issuers and Keystone, which no domain may have."""
        keystone = (self.keystone.name,) if self.keystone is not None else ()
        return frozenset((*(issuer.name for issuer in self.issuers), *keystone))

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        issuers = configured_issuers(self.issuers)
        keystone = self.keystone
        if keystone is not None and any(keystone.name == issuer.name for issuer in issuers):
            raise RuleFault(f"an issuer has the name {keystone.name}", "keystone", "name")
        if not self.built_in and keystone is None and not issuers:
            raise RuleFault("without the built-in identity, configure Keystone or an issuer", "built_in")
        return self
