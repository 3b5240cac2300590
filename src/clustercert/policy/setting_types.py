"""Types of tables and fields in the settings of the policy. Each type rejects values that a rule can't use."""

import ipaddress
from datetime import timedelta
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
)

from clustercert.model.name_patterns import Names, is_pattern
from clustercert.model.requests import AUTH_METHODS
from clustercert.policy.conditions import IPNetwork
from clustercert.policy.expressions import Expression
from clustercert.policy.lifetime import (
    MAX_DAYS,
    MAX_LIFETIME,
    MIN_LIFETIME,
    MOST_DAYS,
    lifetime_option,
    parse_lifetime,
)
from clustercert.policy.templates import SYSTEM_PREFIX, GroupTemplate, UserNameTemplate, invisible_problem


class Section(BaseModel):
    """A table of the TOML file. Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RuleFault(ValueError):
    """An error in the settings that involves several fields.

    Attributes:
        path: the field with the error, relative to the table that is checked.
    """

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


def _lifetime(value: object) -> object:
    return parse_lifetime(value) if isinstance(value, str) else value


def _in_bounds(lifetime: timedelta) -> timedelta:
    if not MIN_LIFETIME <= lifetime <= timedelta(days=MOST_DAYS):
        raise ValueError(f"a lifetime must be from {lifetime_option(MIN_LIFETIME)} to {MOST_DAYS}d")
    return lifetime


def _can_be_requested(lifetime: timedelta) -> timedelta:
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise ValueError(f"a requested lifetime must be from {lifetime_option(MIN_LIFETIME)} to {MAX_DAYS}d")
    return lifetime


def _is_waiting_time(time: timedelta) -> timedelta:
    if not timedelta(minutes=1) <= time <= timedelta(days=30):
        raise ValueError("must be from 1m to 30d")
    return time


def _network(value: object) -> IPNetwork:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"{error}; write a network like 10.0.0.0/8 or 2001:db8::/32") from error


def _expression(source: str) -> str:
    Expression(source)
    return source


def _group(text: str) -> str:
    GroupTemplate(text)
    return text


def _username(text: str) -> str:
    UserNameTemplate(text)
    return text


def _visible(text: str) -> str:
    if problem := invisible_problem(text):
        raise ValueError(f"{text[:64]!a} {problem}; correct the text")
    return text


def _message(text: str) -> str:
    if not text.strip():
        raise ValueError("write a message")
    return text


def _system_name(name: str) -> str:
    if not name.startswith(SYSTEM_PREFIX) or name == SYSTEM_PREFIX or is_pattern(name):
        raise ValueError(f"{name}: write the full name, such as system:masters, without wildcards")
    return name


def _auth_method(name: str) -> str:
    if not Names((name,)).match(AUTH_METHODS):
        raise ValueError(f"{name}: unknown authentication method; write {', '.join(AUTH_METHODS)}")
    return name


def _true_or_false(value: object) -> object:
    """Convert the strings `true` and `false`, which come from environment variables, to bool. Keep other values."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _seconds(lifetime: timedelta) -> int:
    return int(lifetime.total_seconds())


TrueOrFalse = Annotated[StrictBool, BeforeValidator(_true_or_false)]
Lifetime = Annotated[timedelta, BeforeValidator(_lifetime)]
RuleLifetime = Annotated[Lifetime, AfterValidator(_in_bounds), PlainSerializer(_seconds)]
RequestLifetime = Annotated[Lifetime, AfterValidator(_can_be_requested), PlainSerializer(_seconds)]
WaitingTime = Annotated[Lifetime, AfterValidator(_is_waiting_time), PlainSerializer(_seconds)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
VisibleText = Annotated[str, AfterValidator(_visible)]
Message = Annotated[str, AfterValidator(_message)]
SystemName = Annotated[VisibleText, AfterValidator(_system_name)]
AuthMethodName = Annotated[Name, AfterValidator(_auth_method)]
NameList = Annotated[tuple[Name, ...], Field(min_length=1, max_length=100)]
Network = Annotated[IPNetwork, PlainValidator(_network, json_schema_input_type=str), PlainSerializer(str)]
GroupList = Annotated[tuple[Annotated[VisibleText, AfterValidator(_group)], ...], Field(max_length=32)]
ExpressionText = Annotated[str, AfterValidator(_expression)]
UserNameText = Annotated[VisibleText, AfterValidator(_username)]
