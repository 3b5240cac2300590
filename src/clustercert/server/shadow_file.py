"""Loads the shadow policy. If it can't be used, the service continues without it."""

from pathlib import Path

import structlog
from pydantic import ValidationError

from clustercert.model.errors import ClustercertError
from clustercert.observability import metrics
from clustercert.policy.decision import Policy
from clustercert.policy.digest import policy_digest
from clustercert.policy.rule_settings import PolicySettings
from clustercert.policy.toml_tables import Tables, UnreadableFile, fault_lines, read_policy_file
from clustercert.settings import Settings, SettingsError

logger = structlog.get_logger()


def load_shadow(settings: Settings) -> Policy | None:
    """Return the policy in `policy.shadow_file`, or None if there is none or it can't be used."""
    file = settings.policy.shadow_file
    if file is None:
        return None
    try:
        loaded = settings.model_copy(update={"policy": load_policy(file)})
        loaded.check_examples()
        policy = loaded.policy.policy(settings.issuing.key_type)
    except ClustercertError as failure:
        metrics.RELOADS.labels("shadow", "failed").inc()
        logger.error("shadow policy is off", file=str(file), error=failure.message)  # noqa: TRY400 - a traceback would add nothing
        return None
    except Exception:
        metrics.RELOADS.labels("shadow", "failed").inc()
        logger.exception("shadow policy is off", file=str(file))
        return None
    metrics.RELOADS.labels("shadow", "done").inc()
    logger.info("shadow policy loaded", sha256=policy_digest(policy), rules=len(policy.rules))
    return policy


def load_policy(file: Path) -> PolicySettings:
    """Load a policy file alone. Raises SettingsError with one line for each wrong field."""
    try:
        tables = read_policy_file({"file": file})
        return PolicySettings.model_validate(tables.values if tables is not None else {})
    except UnreadableFile as error:
        raise SettingsError(str(error)) from error
    except ValidationError as error:
        lines = fault_lines(error, PolicySettings, tables or Tables({}, ""), None)
        raise SettingsError("\n".join([f"Invalid policy in {file}:", *lines])) from error
