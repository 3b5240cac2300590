"""Builds the signers that the settings and the clusters name."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from clustercert.kubernetes.token_look import find_problem
from clustercert.model.errors import SignerError
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.signer import Signer, SignerContext, SignerFactory, SigningClusters
from clustercert.settings import SettingsError


class Signers(Mapping[str, Signer]):
    """The installed signers, by entry point name. Each signer is built when it is first used.

    Raises SettingsError at construction if the settings of a signer are invalid, or if a signer with settings is not
    installed. `__getitem__` raises SignerError if a signer has no settings but needs them.
    """

    def __init__(
        self,
        settings: Mapping[str, Mapping[str, Any]],
        custody: SecretSealer,
        clusters: SigningClusters | None = None,
    ) -> None:
        self._settings = settings
        self._custody = custody
        self._clusters = clusters
        self._built: dict[str, Signer] = {}
        for name in settings:
            if name not in self._points:
                raise SettingsError(
                    f"signers.{name}: this signer is not installed. Installed: {', '.join(sorted(self))}."
                )
            try:
                self._build(name)
            except ValueError as error:
                raise SettingsError(f"signers.{name}: {error}.") from error

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group="clustercert.signers")}

    def __getitem__(self, name: str) -> Signer:
        if name in self._built:
            return self._built[name]
        try:
            return self._build(name)
        except ValueError as error:
            raise SignerError(
                f"The signer {name} has no valid settings. The operator must set signers.{name}: {error}."
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    async def close(self) -> None:
        """Release the connections and threads of the signers."""
        for signer in self._built.values():
            await signer.close()

    def _build(self, name: str) -> Signer:
        factory = cast("SignerFactory", self._points[name].load())
        signer = factory(
            SignerContext(self._settings.get(name, {}), self._custody, self._clusters, find_problem)
        )
        self._built[name] = signer
        return signer
