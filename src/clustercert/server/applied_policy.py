"""The policy that running workers applied last. A worker that starts later begins with it."""

import contextlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

from clustercert.policy.rule_settings import PolicySettings


@dataclass(frozen=True, slots=True)
class AppliedPolicy:
    """A file in a private folder of the supervisor, which it creates for its workers only."""

    file: Path

    def write(self, policy: PolicySettings) -> None:
        """Replace the stored policy. Raises OSError."""
        new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        new.write_bytes(pickle.dumps(policy))
        new.replace(self.file)

    def read(self) -> PolicySettings | None:
        """Return the stored policy, or None if no worker has applied another one than that of the start."""
        with contextlib.suppress(FileNotFoundError):
            policy = pickle.loads(self.file.read_bytes())  # noqa: S301 - only this service can write into the folder
            if isinstance(policy, PolicySettings):
                return policy
        return None
