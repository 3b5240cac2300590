"""The policy and issuers that running workers applied last. A worker that starts later begins with them."""

import contextlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

from clustercert.authn.oidc.issuer_settings import IssuerSettings
from clustercert.policy.rule_settings import PolicySettings
from clustercert.settings import Settings


@dataclass(frozen=True, slots=True)
class Reloadable:
    """The part of the settings that a reload changes."""

    policy: PolicySettings
    issuers: tuple[IssuerSettings, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Reloadable":
        return cls(settings.policy, settings.identity.issuers)

    def in_settings(self, settings: Settings) -> Settings:
        """Return the settings with this part replaced. The new part must fit the other settings."""
        identity = settings.identity.model_copy(update={"issuers": self.issuers})
        return settings.model_copy(update={"policy": self.policy, "identity": identity})


@dataclass(frozen=True, slots=True)
class AppliedSettings:
    """A file in a private folder of the supervisor, which it creates for its workers only."""

    file: Path

    def write(self, applied: Reloadable) -> None:
        """Replace the stored settings. Raises OSError."""
        new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        new.write_bytes(pickle.dumps(applied))
        new.replace(self.file)

    def read(self) -> Reloadable | None:
        """Return the stored settings, or None if no worker has applied other settings since the start."""
        with contextlib.suppress(FileNotFoundError):
            applied = pickle.loads(self.file.read_bytes())  # noqa: S301 - only this service can write into the folder
            if isinstance(applied, Reloadable):
                return applied
        return None
