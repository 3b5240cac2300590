"""The services to which tokens of OIDC issuers may go. The user accepts each one at a first login.

A service names the issuer and the client itself. A false service could name those of a genuine one, and would get a
token that the genuine one accepts. So an address is known only if the user accepted it, or if a known address listed it
at an earlier login.
"""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clustercert.cli import profile
from clustercert.cli.options import CommandError, NotLoggedIn, UsageError
from clustercert.cli.output import note
from clustercert.cli.prompts import confirm
from clustercert.secure_file import make_private_folder, write_private

if TYPE_CHECKING:
    from clustercert.client.oidc.issuer import LoginIssuer

# An issuer's URL, and the id of a client there.
_Client = tuple[str, str]


@dataclass(frozen=True, slots=True)
class KnownService:
    """A service at an address that the user accepted.

    Attributes:
        clients: the issuers and clients whose tokens it gets.
        other_urls: its other addresses, as it listed them at the last login.
    """

    clients: frozenset[_Client] = frozenset()
    other_urls: tuple[str, ...] = ()


def is_known(url: str, issuer: "LoginIssuer") -> bool:
    """Whether the user accepted that this address gets tokens of this client. Raises CommandError."""
    services, client = _load(), _client(issuer)
    return _is_accepted(services, url, client) or _is_listed(services, url, client)


def require_known(name: str, url: str, issuer: "LoginIssuer") -> None:
    """Raise NotLoggedIn if the user of a profile has not accepted this address and client."""
    if not is_known(url, issuer):
        raise NotLoggedIn(
            f"{url} names the client {issuer.client.client_id} of {issuer.url}, with which you have not logged in "
            f"there. {profile.log_in_again(name)}"
        )


def accept(url: str, issuer: "LoginIssuer", allowed: str | None) -> None:
    """Ask the user whether an address may get tokens, unless it is known. Raises typer.Exit or CommandError.

    Args:
        allowed: the address that the user allows with `--allow-service`.
    """
    if allowed not in (None, url):
        raise UsageError(
            f"--allow-service names {allowed}, but this is a login at {url}. Name the same address."
        )
    if allowed is not None or is_known(url, issuer):
        return
    if (other := _other_service(url, issuer)) is not None:
        raise CommandError(
            f"{url} names the client {issuer.client.client_id} of {issuer.url}, whose tokens {other} accepts too. A "
            f"false service could use your token there. Ask the operator of {other} whether {url} is theirs. If it is, "
            f"add --allow-service {url}."
        )
    note(f"{url} gets the token of your login at {issuer.url} (client {issuer.client.client_id}).")
    note(
        "A false service could use this token at another service as you. Compare the address with your operator's."
    )
    confirm(f"Send the token to {url} from now on?", yes=False, instead=f"add --allow-service {url}")


def remember(url: str, issuer: "LoginIssuer", urls: tuple[str, ...]) -> None:
    """Remember an address that the user accepted, and the addresses that the service lists. Raises CommandError.

    An address that is only listed by another one is not remembered: it is known while that one lists it.
    """
    services, client = _load(), _client(issuer)
    if _is_listed(services, url, client) and not _is_accepted(services, url, client):
        return
    before = services.get(url, KnownService())
    others = tuple(each for each in urls if each != url)
    _save(services | {url: KnownService(before.clients | {client}, others)})


def forget(url: str) -> None:
    """Forget an address and those that it lists. Raises CommandError."""
    services = _load()
    if services.pop(url, None) is not None:
        _save(services)


def _client(issuer: "LoginIssuer") -> _Client:
    return issuer.url, issuer.client.client_id


def _is_accepted(services: dict[str, KnownService], url: str, client: _Client) -> bool:
    return url in services and client in services[url].clients


def _is_listed(services: dict[str, KnownService], url: str, client: _Client) -> bool:
    return any(client in each.clients and url in each.other_urls for each in services.values())


def _other_service(url: str, issuer: "LoginIssuer") -> str | None:
    """Return another service that accepts tokens of the same login: a known one, or the one that `resource` names."""
    client, resource = _client(issuer), urlsplit(issuer.client.resource or "")
    known = next((other for other, each in _load().items() if other != url and client in each.clients), None)
    if known is None and resource.netloc.lower() not in ("", urlsplit(url).netloc):
        return f"{resource.scheme}://{resource.netloc}"
    return known


def _load() -> dict[str, KnownService]:
    path = profile.known_services_path(os.environ)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(url): KnownService(
                frozenset((str(issuer), str(client)) for issuer, client in each["clients"]),
                tuple(map(str, each["other_urls"])),
            )
            for url, each in content.items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CommandError(f"The file {path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CommandError(f"The file {path} is damaged. Delete it, and log in again.") from error


def _save(services: dict[str, KnownService]) -> None:
    path = profile.known_services_path(os.environ)
    content = {
        url: {"clients": sorted(each.clients), "other_urls": each.other_urls}
        for url, each in services.items()
    }
    try:
        make_private_folder(path.parent)
        write_private(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise CommandError(f"The file {path} can't be written: {error.strerror}.") from error
