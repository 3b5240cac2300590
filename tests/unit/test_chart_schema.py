"""The schema of the Helm chart's values."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, SecretStr

from clustercert.issuance.signers.csr_api import CsrApiSettings
from clustercert.issuance.signers.pkcs11 import Pkcs11Settings
from clustercert.issuance.signers.token import TokenSettings
from clustercert.issuance.signers.transit import TransitSettings
from scripts.chart_schema import MODELS, SIGNERS, values_schema


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A table of settings, and the tables in it."""
    yield model
    for field in model.model_fields.values():
        for each in types_in(field.annotation):
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from models(each)


def types_in(annotation: Any) -> Iterator[Any]:
    parts = getattr(annotation, "__args__", ())
    yield from (annotation,) if not parts else (each for part in parts for each in types_in(part))


def test_the_schema_has_no_field_for_a_secret() -> None:
    secrets = {
        (model.__name__, name)
        for top in MODELS
        for model in models(top)
        for name, field in model.model_fields.items()
        if SecretStr in types_in(field.annotation)
    }
    assert {("Settings", "kek"), ("MetricsSettings", "token"), ("ServiceCredential", "password")} <= secrets
    for model, name in secrets:
        assert name not in values_schema()["definitions"][model]["properties"]


def test_each_entry_point_of_a_signer_is_in_the_schema_with_its_settings() -> None:
    assert set(SIGNERS) == entry_points(group="clustercert.signers").names
    assert dict(SIGNERS) == {
        "csr_api": CsrApiSettings,
        "local": None,
        "pkcs11": Pkcs11Settings,
        "token": TokenSettings,
        "transit": TransitSettings,
    }
    tables = values_schema()["definitions"]["Settings"]["properties"]["signers"]["properties"]
    assert tables["transit"] == {"$ref": "#/definitions/TransitSettings"}
    assert tables["local"]["additionalProperties"] is False
