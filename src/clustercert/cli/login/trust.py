"""Trust in a service: its certificate, and the addresses that may receive a login's token."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from clustercert.cli.login import profile, token_storage
from clustercert.cli.options import CommandError, InvalidOption, NotLoggedIn, UsageError, read_file
from clustercert.cli.terminal.output import print_note
from clustercert.cli.terminal.prompts import confirm
from clustercert.secure_file import make_private_folder, write_private

if TYPE_CHECKING:
    from clustercert.client.oidc.issuer import LoginIssuer


_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)


def is_fingerprint(text: str) -> bool:
    """Whether a text is a SHA-256 fingerprint, with or without colons."""
    return _FINGERPRINT.fullmatch(text.replace(":", "")) is not None


def read_ca(path: Path | None) -> str | None:
    """Read a CA file. Escapes non-ASCII characters, which comments may contain. Raises CommandError."""
    return read_file(path).decode("ascii", "backslashreplace") if path is not None else None


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """The options that name the CA of the service's certificate."""

    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of the service's certificate (PEM).")
    ] = None
    ca_fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Trust the CA that the service sends, if it has this fingerprint. If the service sends only its "
            "certificate, trust the certificate.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.ca_file is not None and self.ca_fingerprint is not None:
            raise InvalidOption("Give only one of --ca-file and --ca-fingerprint.")
        if self.ca_fingerprint is not None and not is_fingerprint(self.ca_fingerprint):
            raise InvalidOption("--ca-fingerprint must be a SHA-256 fingerprint: 64 hex digits.")

    def ca_pem(self, url: str, remembered: str | None) -> str | None:
        """Return the CAs to trust, or `None` for this machine's CAs.

        Asks the user about a certificate that neither this profile nor another profile for the same address trusts.

        Args:
            remembered: the CA from the last login.
        """
        from clustercert.client import connection

        given = read_ca(self.ca_file) if self.ca_file is not None else None
        if self.ca_fingerprint is None:
            reason = connection.rejection(url, given or remembered)
            if reason is None:
                return given or remembered
            _require_valid(url, reason)
            if given is not None:
                raise NotTrusted(
                    f"The CA file {self.ca_file} does not verify the certificate of {url} ({reason}). Name the CA that "
                    "signed the certificate."
                )
            return _ca_of_another_profile(url) or _confirmed(url, changed=remembered is not None)
        return pinned_ca(url, self.ca_fingerprint)


class NotTrusted(CommandError, status=503, code="CCE.01503001"):
    """The service's certificate is not the one that the user trusts."""


def _ca_of_another_profile(url: str) -> str | None:
    """Return the CA that another profile for this address trusts, if this CA verifies the service's certificate."""
    from clustercert.client import connection

    for name, saved in profile.saved_profiles(os.environ).items():
        if saved.url == url and saved.ca_pem is not None and connection.rejection(url, saved.ca_pem) is None:
            print_note(f"Trusting the certificate of {url}, as the profile {name} does.")
            return saved.ca_pem
    return None


def pinned_ca(url: str, fingerprint: str) -> str:
    """Return the certificate with this fingerprint in the service's chain. Raises ClientError or CommandError.

    Refuses the leaf if the service also sends the leaf's issuer: trust in the leaf would end at the next renewal.

    Args:
        fingerprint: with or without colons, in any case.
    """
    from clustercert.client import connection

    leaf, *issuers = chain = connection.presented_chain(url)
    wanted = fingerprint.replace(":", "").lower()
    certificate = next((each for each in chain if each.fingerprint == wanted), None)
    if certificate is None:
        # Begin with the last certificate of the chain, because users compare this certificate, as in `_confirmed`.
        sent = ", ".join(each.fingerprint for each in reversed(chain))
        raise NotTrusted(
            f"{url} sends no certificate with the fingerprint {fingerprint}. The service sends: {sent}. Ask "
            "the operator of the service for the right fingerprint."
        )
    if certificate == leaf and issuers and connection.rejection(url, issuers[-1].pem) is None:
        raise CommandError(
            f"{fingerprint} is the fingerprint of the certificate of {url}, and changes at each renewal. "
            f"Compare the fingerprint of its issuer, {issuers[-1].fingerprint}, with the one that the "
            "operator of the service gives you, and give the issuer's fingerprint instead."
        )
    return _checked(url, certificate.pem)


def _confirmed(url: str, *, changed: bool) -> str:
    """Show the last certificate of the service's chain, and return it if the user trusts it."""
    from clustercert.client import connection

    *_, certificate = connection.presented_chain(url)
    ca_pem = _checked(url, certificate.pem)
    if changed:
        print_note(f"The certificate of {url} is not the certificate of the last login.")
    else:
        print_note(f"This machine does not trust the certificate of {url} yet.")
    print_note(f"SHA-256 fingerprint of the certificate or of its issuer: {certificate.fingerprint}")
    print_note("Compare this fingerprint with the one that the operator of the service gives you.")
    confirm(
        "Trust this certificate from now on?",
        yes=False,
        instead=f"add --ca-fingerprint {certificate.fingerprint} after you compared it, or --ca-file FILE",
    )
    return ca_pem


def _checked(url: str, ca_pem: str) -> str:
    """Return the given CA, if this CA can verify the service's certificate. Raises ClientError or CommandError."""
    from clustercert.client import connection

    if (reason := connection.rejection(url, ca_pem)) is not None:
        _require_valid(url, reason)
        raise CommandError(
            f"The certificate of {url} can't be used ({reason}). Ask the operator of the service for another one."
        )
    return ca_pem


def _require_valid(url: str, reason: str) -> None:
    """Raise UntrustedCertificate if the address or the time does not fit the certificate: no other CA would help."""
    from clustercert.client import connection

    if connection.certificate_advice(reason) is not None:
        raise connection.UntrustedCertificate(url, reason)


# The URL of an OIDC issuer, and a client id at this issuer.
_Client = tuple[str, str]


@dataclass(frozen=True, slots=True)
class KnownService:
    """A service at an address that the user accepted.

    Attributes:
        clients: the OIDC clients, each with its issuer, whose tokens the service may receive.
        other_urls: the other addresses that the service listed for itself at the last login.
    """

    clients: frozenset[_Client] = frozenset()
    other_urls: tuple[str, ...] = ()


def is_known(url: str, issuer: "LoginIssuer") -> bool:
    """Whether a service's address may receive tokens of the issuer's client. Raises CommandError.

    The user must have accepted this address, or an address whose service lists this address.
    """
    services, client = _load(), _client(issuer)
    return _is_accepted(services, url, client) or _is_listed(services, url, client)


def require_known(name: str, url: str, issuer: "LoginIssuer") -> None:
    """Raise NotLoggedIn if the user has not allowed the service's address to receive tokens for the client."""
    if not is_known(url, issuer):
        raise NotLoggedIn(
            f"{url} names the client {issuer.client.client_id} of {issuer.url}, with which you have not logged in "
            f"yet. {profile.log_in_again(name)}"
        )


def accept(url: str, issuer: "LoginIssuer", allowed: str | None) -> None:
    """Ask the user whether an address may get tokens, unless the address is known. Raises typer.Exit or CommandError.

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
            f"fake service could use your token at {other}. Ask the operator of {other} whether {url} is their "
            f"service. If so, add --allow-service {url}."
        )
    print_note(
        f"{url} will receive the token of your login at {issuer.url} (client {issuer.client.client_id})."
    )
    print_note(
        "A fake service could use this token to act as you at another service. Check the address with your operator."
    )
    confirm(f"Send the token to {url} from now on?", yes=False, instead=f"add --allow-service {url}")


def remember(url: str, issuer: "LoginIssuer", urls: tuple[str, ...]) -> None:
    """Save an address that the user accepted, and the other addresses that the service lists. Raises CommandError.

    Does not save an address that the service at another saved address lists: such an address is known as long as it is
    listed.
    """
    services, client = _load(), _client(issuer)
    if _is_listed(services, url, client) and not _is_accepted(services, url, client):
        return
    before = services.get(url, KnownService())
    others = tuple(each for each in urls if each != url)
    _save(services | {url: KnownService(before.clients | {client}, others)})


def forget(url: str) -> None:
    """Delete a saved address, and the other addresses that the service at this address listed. Raises CommandError."""
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
    """Return another service that accepts tokens of the same client: a known service, or the client's `resource`."""
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
        raise token_storage.cannot_save(path, error) from error
