"""Escapes text from servers and files, so that the text can't control the terminal.

Imports nothing, so that the exec plugin starts fast.
"""


def printable(text: str) -> str:
    """Escape all non-printable characters except line feeds."""
    return "\n".join(printable_line(line) for line in text.split("\n"))


def printable_line(text: str) -> str:
    """Escape all non-printable characters."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
