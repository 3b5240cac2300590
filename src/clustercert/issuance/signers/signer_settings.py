"""Parses the table `[signers.NAME]` of a signer."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from clustercert.policy.setting_types import Section
from clustercert.policy.toml_tables import causes, problem_text

S = TypeVar("S", bound=Section)


def parsed_settings(model: type[S], settings: Mapping[str, object]) -> S:
    """Parse the settings of a signer. Raises ValueError that names the first wrong field, but not its value."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problem = causes(error.errors(include_url=False))[0]
        name = ".".join(map(str, problem["loc"]))
        raise ValueError(
            f"{name}: {problem_text(problem, model)}" if name else problem_text(problem, model)
        ) from None
