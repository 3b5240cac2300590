"""The built-in identity: users, projects and roles, and the tokens and access keys that prove them.

It stands on the store alone. What Keystone's clients say and hear is `web.iam`'s business.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from clustercert.identity.access_keys import AccessKeys
from clustercert.identity.directory import Directory
from clustercert.identity.passwords import Passwords
from clustercert.identity.roles import Roles
from clustercert.identity.tokens import Tokens
from clustercert.model import utc_now
from clustercert.sealing import Sealer
from clustercert.store.database import Database


class Identity:
    """The parts of the built-in identity, put together.

    Attributes:
        region: the region in the catalog; projects are conventionally named like it.
        tokens: fills `authn.tokens.TokenLookup`.
        access_keys: fills `authn.access_keys.AccessKeyLookup`.
    """

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        *,
        region: str,
        token_lifetime: timedelta = timedelta(hours=24),
        passwords: Passwords | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.region = region
        self.passwords = passwords or Passwords()
        self.directory = Directory(database, self.passwords, now)
        self.roles = Roles(database, now)
        self.tokens = Tokens(database, self.passwords, now, token_lifetime)
        self.access_keys = AccessKeys(database, sealer, now)

    async def prune(self) -> int:
        """Forget every token and temporary access key that has expired; how many. Run it now and then."""
        pruned = 0
        for part in (self.tokens, self.access_keys):
            while count := await part.prune():
                pruned += count
        return pruned

    def close(self) -> None:
        """Let go of the threads."""
        self.passwords.close()
