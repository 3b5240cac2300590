"""The folder that `kubernetes setup` writes and updates.

A file that was edited by hand is not replaced: the new version is written beside it. In authorization-config.yaml, only
edits of this service's values count as edits. The new file keeps the operator's other values and authorizers.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clustercert.kubernetes.setup.authorization import kubeconfig_path, own_values, parsed_configuration
from clustercert.kubernetes.setup.choices import GivenChoices, SetupError, read_choices
from clustercert.kubernetes.setup.documents import to_yaml
from clustercert.kubernetes.setup.files import files
from clustercert.kubernetes.setup.values import (
    AUTHORIZATION,
    FOR_CLUSTER,
    NAMES,
    SETUP,
    WEBHOOK,
    Setup,
    WebhookClient,
    removed,
    replacement,
)
from clustercert.kubernetes.webhook.tokens import WebhookTokens
from clustercert.model import Actor, JsonObject
from clustercert.model.errors import Conflict
from clustercert.secure_file import write_private
from clustercert.yaml_text import MalformedYaml, parse


@dataclass(frozen=True, slots=True)
class ExistingSetup:
    """The content of a folder.

    Attributes:
        choices: the content of `setup.toml`; `None` if the folder is new.
        token: the webhook token in use, or empty if there is no token. Keep the token secret.
        client: the certificate and key with which the API server connects. Keep the key secret.
        authorization: the AuthorizationConfiguration; `None` if it is missing or can't be parsed.
        files: the names of the files for the cluster, including those that an earlier run renamed.
    """

    choices: GivenChoices | None = None
    token: str = ""
    client: WebhookClient | None = None
    authorization: JsonObject | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetupFolder:
    """A folder for the files of one cluster."""

    path: Path

    def check(self, *, force: bool) -> None:
        """Raise SetupError if files in the folder can't be updated, or must not be updated without `force`."""
        if self.path.exists() and not self.path.is_dir():
            raise SetupError(f"{self.path} is not a folder. Name a folder.")
        existing = [name for name in NAMES if (self.path / name).exists()]
        if existing and not force:
            raise SetupError(
                f"{self.path} already has {', '.join(existing)}. Name another folder, or add --force to update this "
                "folder: options that were given before are kept."
            )
        if existing and SETUP not in existing:
            raise SetupError(
                f"{self.path} has {', '.join(existing)}, but no {SETUP} with their options. Name another folder, or "
                "move these files away."
            )

    def read(self) -> ExistingSetup:
        """Read the files that an earlier run wrote. Raises OSError, and SetupError if a file is malformed."""
        choices = read_choices(self.path / SETUP)
        if choices is None:
            return ExistingSetup()
        content = self._content(AUTHORIZATION)
        authorization = parsed_configuration(content) if content is not None else None
        kubeconfigs = [replacement(WEBHOOK), WEBHOOK]
        if authorization is not None and kubeconfig_path(authorization).name not in ("", WEBHOOK):
            # An operator who replaces a token gives the kubeconfig another name.
            kubeconfigs.insert(0, kubeconfig_path(authorization).name)
        token, client = next(filter(None, map(self._user, kubeconfigs)), ("", None))
        return ExistingSetup(
            choices=choices,
            token=token,
            client=client,
            authorization=authorization,
            files=tuple(
                name
                for name in FOR_CLUSTER
                if (self.path / name).exists() or (self.path / removed(name)).exists()
            ),
        )

    def write(self, files: Mapping[str, str], choices: GivenChoices) -> tuple[str, ...]:
        """Write the files and `setup.toml`. Returns the names of the written files. Raises OSError.

        Removes obsolete files of an earlier run. An obsolete manifest or edited file is renamed instead of removed.
        """
        # An existing folder keeps its mode, because it may have other files too. Each file gets mode 0600.
        # Create each folder separately, because `parents=True` ignores the mode for the parents.
        for each in reversed((self.path, *self.path.parents)):
            each.mkdir(mode=0o700, exist_ok=True)
        written = []
        digests = {name: _digest(name, content.encode()) for name, content in files.items()}
        for name, content in files.items():
            is_edited = self._is_edited(name, choices.written.get(name), digests[name])
            if not is_edited:
                (self.path / replacement(name)).unlink(missing_ok=True)
            written.append(replacement(name) if is_edited else name)
            write_private(self.path / written[-1], content)
            (self.path / removed(name)).unlink(missing_ok=True)
        for name in (each for each in NAMES if each not in files and each != SETUP):
            path = self.path / name
            if path.exists() and (name in FOR_CLUSTER or self._is_edited(name, choices.written.get(name))):
                path.replace(self.path / removed(name))
            path.unlink(missing_ok=True)
        # Write `setup.toml` last, so that after a failed run the next run finds the previous choices.
        write_private(self.path / SETUP, choices.model_copy(update={"written": digests}).toml())
        return (*written, SETUP)

    def _is_edited(self, name: str, *expected: str | None) -> bool:
        content = self._content(name)
        return content is not None and _digest(name, content) not in expected

    def _user(self, name: str) -> tuple[str, WebhookClient | None] | None:
        """Return the token and client certificate in a webhook's kubeconfig, or `None` if the file does not exist."""
        content = self._content(name)
        if content is None:
            return None
        try:
            user = parse(content, name, aliases=True)[0]["users"][0]["user"]
            token = str(user.get("token") or "")
            if "client-certificate-data" not in user:
                return token, None
            certificate, key = (
                base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")
            )
        except (MalformedYaml, LookupError, TypeError, ValueError, AttributeError) as error:
            raise SetupError(
                f"{self.path / name} can't be read back: it has no user with a token. Correct the file, or move it "
                "away so that a new one is written."
            ) from error
        return token, WebhookClient(certificate, key)

    def _content(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


async def write_setup(
    folder: SetupFolder, setup: Setup, tokens: WebhookTokens, actor: Actor
) -> tuple[str, ...]:
    """Write the files, with a new token unless the folder has a valid token. Returns the names of the written files.

    Raises OSError, and SetupError if the cluster already has two tokens.
    """
    created = None
    if not setup.token or not await tokens.is_valid(setup.cluster.id, setup.token):
        try:
            created = await tokens.create(setup.cluster, actor=actor)
        except Conflict as error:
            raise SetupError(
                f"{error.message} See `clustercert kubernetes token list {setup.cluster.id}`, or update an existing "
                "folder with --force, which keeps its token."
            ) from error
        setup = replace(setup, token=created.text)
    try:
        return folder.write(files(setup), setup.given)
    except OSError:
        if created is not None:
            # Remove the unused token: a cluster may have only two.
            await tokens.remove(setup.cluster, created.token.id, actor=actor)
        raise


def _digest(name: str, content: bytes) -> str:
    document = parsed_configuration(content) if name == AUTHORIZATION else None
    compared = content if document is None else to_yaml([own_values(document)]).encode()
    return hashlib.sha256(compared).hexdigest()
