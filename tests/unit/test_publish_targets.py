"""Addresses of publish targets, from the settings."""

import pytest

from clustercert.audit.publish_targets import FileTarget, SyslogTarget, UrlTarget, parse_target


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("file:/var/lib/kept", FileTarget, "file:/var/lib/kept"),
        ("https://user:secret@keeper.example/log?token=x", UrlTarget, "https://keeper.example/log"),
        ("http://127.0.0.1:9/x", UrlTarget, "http://127.0.0.1:9/x"),
        ("http://[::1]/", UrlTarget, "http://[::1]/"),
        ("http://localhost/", UrlTarget, "http://localhost/"),
        ("syslog:/dev/log", SyslogTarget, "syslog:/dev/log"),
        ("syslog://log.example", SyslogTarget, "syslog://log.example:514"),
        ("syslog://log.example:5140", SyslogTarget, "syslog://log.example:5140"),
    ],
)
def test_addresses_are_parsed_and_shown_without_secrets(text: str, kind: type, shown: str) -> None:
    target = parse_target(text)
    assert (type(target), target.name) == (kind, shown)
    assert "secret" not in repr(target)


@pytest.mark.parametrize(
    "text",
    ["", "kept", "/var/kept", "file:kept", "file:/", "file://host/kept", "http://keeper.example/", "ftp://x/y",
     "syslog://", "syslog://h:x", "syslog://h/path", "https:///x", "https://[::1", 7, None],
)  # fmt: skip
def test_an_invalid_address_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match="write it like file:/path"):
        parse_target(text)
