"""A JSON document that arrives in pieces, as tokens: no piece is kept, whatever the document's size. No I/O.

ijson parses. Its C parser fails on some valid documents, or reads them wrongly: on integers of more digits than
Python converts, and on an escaped half of a surrogate pair. kube-apiserver copies a client's patch as it is into an
audit event of level Request, so such a number or text must not keep the other events from being read. The same goes
for bytes that are not UTF-8.
"""

import codecs
import decimal
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import ijson

from clustercert.errors import InvalidRequest

Token: TypeAlias = tuple[str, Any]
"""An event of ijson and its value. Source: ijson's documentation, "Event names"."""

# ijson would fall back without a word to a parser in Python, which is slower and has faults of its own.
_PARSER = ijson.get_backend("yajl2_c").basic_parse_coro

# Of each string, so many bytes are read at least. Names are shorter: Go takes certificates of 256 KiB at most.
TEXT_READ = 256 * 1024
# The least limit that Python takes for the digits of an integer. Source: sys.int_info.
MAX_DIGITS = 640

_DIGITS = b"0123456789"
_AS_ZEROS = bytes(ord("0") if each in _DIGITS else ord("x") for each in range(256))
_TOO_MANY = b"0" * (MAX_DIGITS + 1)
_LONG_NUMBER = re.compile(rb"(?<![0-9])([0-9]{%d})[0-9]+" % MAX_DIGITS)

_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_SURROGATES = re.compile(rb"(%b\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}" % _HIGH)
# What more may follow to: an incomplete escape, the first half of a pair, or both.
_OPEN_ESCAPE = re.compile(rb"(?:%b)?(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z" % _HIGH)
_LONGEST_OPEN = len(rb"\ud800\udc0")


class IncompleteJson(InvalidRequest):
    """The document ends before it is complete."""


class JsonTokens:
    """Hands on the tokens of one document.

    Text that is not UTF-8 reads as U+FFFD, and so does half a surrogate pair. What is beyond 256 KiB of a string may
    be left out. Of more than 640 digits in a row, in numbers and in text, the first 640 are read.
    """

    def __init__(self, receive: Callable[[Token], object]) -> None:
        self._receive = receive
        self._tokens: list[Token] = ijson.sendable_list()
        self._parser = _PARSER(self._tokens)
        self._input = _Input()

    def feed(self, piece: bytes) -> None:
        """Hand on what a piece completes. Raises InvalidRequest."""
        self._parse(self._input.read(piece))

    def close(self) -> None:
        """End the document. Raises InvalidRequest; IncompleteJson where more was to come."""
        self._parse(self._input.read(b"", last=True))
        try:
            self._parser.close()
        except ijson.JSONError as error:
            raise IncompleteJson("The JSON ends before it is complete. Send the whole document.") from error
        self._hand_on()

    def _parse(self, data: bytes) -> None:
        if not data:
            # ijson takes it for the end.
            return
        try:
            # A number with an exponent of twenty digits is NaN here, and an error by default.
            with decimal.localcontext(decimal.Context(traps=[])):
                self._parser.send(data)
        except (ijson.JSONError, ValueError) as error:
            self._hand_on()
            raise InvalidRequest("The body is not valid JSON.") from error
        self._hand_on()

    def _hand_on(self) -> None:
        for token in self._tokens:
            self._receive(token)
        self._tokens.clear()


class _Input:
    """Rewrites a document, piece by piece, into a shorter one that ijson's C parser reads rightly."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = b""
        self._in_string = False
        self._since_quote = 0

    def read(self, piece: bytes, *, last: bool = False) -> bytes:
        """What may be parsed now. An end whose meaning depends on what follows is held back."""
        data = self._held + self._decode(piece, last).encode()
        # From here on each backslash begins an escape, and each quote a string or what follows it.
        data = data.replace(rb"\\", rb"\u005c").replace(rb"\"", rb"\u0022")
        ready, self._held = _cut(data, len(data) if last else _open_escape(data))
        ready = self._shortened(ready)
        if _TOO_MANY in ready.translate(_AS_ZEROS):
            ready = _LONG_NUMBER.sub(rb"\1", ready)
        if rb"\ud" in ready or rb"\uD" in ready:
            ready = _SURROGATES.sub(_whole_or_replaced, ready)
        if not last and not self._held:
            # Digits may go on, and may be the end of an escape.
            ready, self._held = _cut(ready, _open_escape(ready.rstrip(_DIGITS)))
        return ready

    def _shortened(self, data: bytes) -> bytes:
        """Without the rest of a string that began in an earlier piece, where it is long.

        The parser would read a string from its beginning again with each piece.
        """
        first, last = data.find(b'"'), data.rfind(b'"')
        end = first if first >= 0 else len(data)
        room = max(0, TEXT_READ - self._since_quote)
        if self._in_string and end > room:
            # Not within a character, nor within an escape.
            start = data[:room].decode(errors="ignore").encode()
            kept = start[: _open_escape(start)] + data[end:]
        else:
            kept = data
        self._in_string ^= data.count(b'"') % 2 == 1
        self._since_quote = len(data) - last - 1 if last >= 0 else self._since_quote + len(data)
        return kept


def _cut(data: bytes, at: int) -> tuple[bytes, bytes]:
    return data[:at], data[at:]


def _open_escape(data: bytes) -> int:
    found = _OPEN_ESCAPE.search(data, max(0, len(data) - _LONGEST_OPEN))
    return found.start() if found else len(data)


def _whole_or_replaced(found: re.Match[bytes]) -> bytes:
    return found[1] or rb"\ufffd"
