"""`clustercert logout`: ends one login or, after a machine was lost, all of the user's logins."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clustercert.cli.certificate.access import print_remaining_access
from clustercert.cli.login import profile, trust
from clustercert.cli.login.options import LoginOptions, ProfileOption
from clustercert.cli.login.profile import Profile
from clustercert.cli.options import CommandError, InvalidOption, YesOption
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import print_note
from clustercert.cli.terminal.prompts import confirm
from clustercert.model.identity import BUILT_IN

if TYPE_CHECKING:
    from clustercert.model import JsonObject

_PATH = "/caller/logout"


def logout(
    profile_name: ProfileOption = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also forget the address, the CA and the user.")
    ] = False,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere",
            help="For a lost machine: end all your logins on all machines, and revoke all your certificates.",
        ),
    ] = False,
    keys: Annotated[
        bool, typer.Option("--keys", help="With --everywhere: delete your access keys, too.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Log out: revoke and delete the token.

    The tokens of an OIDC issuer are deleted, and the refresh token is revoked if the issuer supports it.

    --everywhere works on any machine where you can log in. With --everywhere, the command asks for confirmation, and
    shows which access remains.

    Examples:
        clustercert logout
        clustercert logout --everywhere --keys
    """
    from clustercert.cli.credential import cache

    if keys and not everywhere:
        raise InvalidOption("--keys needs --everywhere.")
    name = profile.current(os.environ) if profile_name is None else profile_name
    if everywhere:
        login = LoginOptions(profile_name)
        end_all_logins(login.profile(), keys=keys, yes=yes)
        if login.saved_name is None:
            return
    else:
        warn_in_client(os.environ)
    found = profile.remembered(name, os.environ) if forget else None
    found = found or profile.load(name, os.environ)
    if forget:
        trust.forget(found.url)
    try:
        if found.oidc is not None:
            _end_session(name, forget=forget)
        elif forget:
            profile.delete(name, os.environ)
        else:
            profile.save(name, profile.without_login(found), os.environ)
        cache.clear(name)
    finally:
        # The login must also end if the disk is full.
        if not everywhere and found.oidc is None:
            _revoke_token(found)
    print_note(
        f"Logged out {found.shown_user} from {found.url}." if found.user else f"Logged out from {found.url}."
    )
    _name_remaining_keys(name)


def _revoke_token(found: Profile) -> None:
    """Revoke the saved token. Prints a note if this fails."""
    from clustercert.client.connection import ClientError

    if found.token is None or found.has_expired:
        return
    try:
        with found.client() as client:
            client.revoke(found.token)
    except (ClientError, CommandError) as error:
        print_note(f"The token could not be revoked and stays valid until it expires: {error.message}")


def _end_session(name: str, *, forget: bool) -> None:
    """End a login at an OIDC issuer: delete the saved tokens, and revoke the refresh token.

    A lock prevents renewals of the login meanwhile.
    """
    from clustercert.cli.login import oidc_login, token_storage
    from clustercert.client.connection import ClientError

    with token_storage.exclusive(profile.tokens_path(name, os.environ)):
        found = profile.remembered(name, os.environ)
        if found is None:
            return
        try:
            oidc_login.end_session(name, found)
        except (ClientError, CommandError) as error:
            print_note(f"The login could not be ended at the issuer: {error.message}")
        if forget:
            profile.delete(name, os.environ)
        else:
            profile.save(name, profile.without_login(found), os.environ)


def _name_remaining_keys(name: str) -> None:
    """Print which files with private keys remain after the logout."""
    from clustercert.cli.credential.certificate_files import certificate_files

    if files := [file.path for file in certificate_files() if file.profile == name]:
        print_note(
            f"Files with private keys or tokens remain in {files[0].parent}, because a kubeconfig names them. Remove "
            "them with `clustercert kubeconfig unmerge`."
        )


def end_all_logins(login: Profile, *, keys: bool, yes: bool) -> None:
    """After a confirmation, revoke the user's certificates and end the user's logins. Raises ClientError.

    Also prints which access remains.
    """
    from clustercert.client.connection import Unreachable

    body: JsonObject = {"keys": keys}
    with login.explain_rejection(), login.administration_client() as client:
        found: Any = client.post(f"{_PATH}?dryRun=All", body)
        with client.check_format():
            question = _question(found, login)
        confirm(question, yes=yes)
        try:
            done: Any = client.post(_PATH, body)
        except Unreachable as error:
            raise Unreachable(
                f"{error.message} Some of your logins may have ended. Run the command again, after "
                "`clustercert login` if your login is refused."
            ) from error
        with client.check_format():
            _note_logins(done, login)
        print_remaining_access(client, done)


def _question(found: Any, login: Profile) -> str:
    deleted = found["deleted_keys"]
    keys = f" It deletes the access keys {_named(deleted)}." if deleted else ""
    return (
        f"This ends all logins of {login.shown_user} ({found['id']}) at {login.url}, on all machines, and revokes "
        f"{_count(found['certificates'], 'certificate')}.{keys} It can't be undone. Continue?"
    )


def _note_logins(done: Any, login: Profile) -> None:
    print_note(
        f"Ended all logins of {login.shown_user} at {login.url}, and revoked "
        f"{_count(done['certificates'], 'certificate')}."
    )
    if sessions := done["sessions"]:
        print_note(f"Ended {_count(sessions, 'session')} in the console.")
    if deleted := done["deleted_keys"]:
        print_note(f"Deleted the access keys {_named(deleted)}.")
    if kept := done["kept_keys"]:
        print_note(f"These access keys still work: {_named(kept)}. To delete them, add --keys.")
    issuer = done["issuer"]
    if issuer == BUILT_IN:
        return
    print_note(
        f"Until {done['new_logins_from']}, new logins at {issuer} are refused here too. To log in again, wait "
        "until that time."
    )
    if done["renewals_end"]:
        print_note(f"Log out at {issuer} too. Then log in with `clustercert login --reauthenticate`.")
    else:
        print_note(
            f"Anyone who has your refresh token can still log in, because {issuer} does not say when you logged in. "
            "End your sessions there now, or change your password there. Until then, only an operator can stop such "
            f"logins: `clustercert user block {shlex.quote(login.shown_user)}`."
        )


def _named(keys: Any) -> str:
    return ", ".join(
        f"{key['access_key']} ({key['description']})" if key["description"] else str(key["access_key"])
        for key in keys
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
