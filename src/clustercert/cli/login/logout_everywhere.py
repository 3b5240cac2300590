"""`clustercert logout --everywhere`: ends all logins of the user, for a lost machine."""

from typing import TYPE_CHECKING, Any

from clustercert.cli.access import print_remaining_access
from clustercert.cli.login.profile import Profile
from clustercert.cli.output import print_note
from clustercert.cli.prompts import confirm
from clustercert.model.identity import BUILT_IN

if TYPE_CHECKING:
    from clustercert.model import JsonObject

_PATH = "/caller/logout"


def end_all_logins(login: Profile, *, keys: bool, yes: bool) -> None:
    """Ask, revoke all certificates of the user, and end all their logins. Says what remains. Raises ClientError."""
    from clustercert.client.connection import Unreachable

    body: JsonObject = {"keys": keys}
    with login.explain_rejection(), login.administration_client() as client:
        found: Any = client.post(f"{_PATH}?dryRun=All", body)
        with client.check_format():
            question = _question(found, login.url)
        confirm(question, yes=yes)
        try:
            done: Any = client.post(_PATH, body)
        except Unreachable as error:
            raise Unreachable(
                f"{error.message} Some of your logins may have ended. Run the command again, after "
                "`clustercert login` if your login is refused."
            ) from error
        with client.check_format():
            _note_logins(done, login.url)
        print_remaining_access(client, done)


def _question(found: Any, url: str) -> str:
    deleted = found["deleted_keys"]
    keys = f" It deletes the access keys {_named(deleted)}." if deleted else ""
    return (
        f"This ends all logins of {found['name']} ({found['id']}) at {url}, on all machines, and revokes "
        f"{_count(found['certificates'], 'certificate')}.{keys} It can't be undone. Continue?"
    )


def _note_logins(done: Any, url: str) -> None:
    print_note(
        f"Ended all logins of {done['name']} at {url}, and revoked {_count(done['certificates'], 'certificate')}."
    )
    if deleted := done["deleted_keys"]:
        print_note(f"Deleted the access keys {_named(deleted)}.")
    if kept := done["kept_keys"]:
        print_note(f"These access keys still work: {_named(kept)}. To delete them, add --keys.")
    issuer = done["issuer"]
    if issuer == BUILT_IN:
        return
    print_note(
        f"Logins at {issuer} from before {done['new_logins_from']} are refused here. To log in again, wait until then."
    )
    if done["renewals_end"]:
        print_note(f"Log out at {issuer} too. Then log in with `clustercert login --reauthenticate`.")
    else:
        print_note(
            f"A refreshed login still works, because {issuer} does not say when you logged in. End your sessions there "
            f"now, or change your password there. Until then, only `clustercert user block {done['name']}` by an "
            "operator is safe."
        )


def _named(keys: Any) -> str:
    return ", ".join(
        f"{key['access_key']} ({key['description']})" if key["description"] else str(key["access_key"])
        for key in keys
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
