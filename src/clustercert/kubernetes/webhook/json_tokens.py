"""Splits a JSON document that arrives in chunks into tokens, in constant memory. No I/O.

ijson's C parser fails on integers that are too long for Python, on lone surrogates, and on invalid UTF-8. A client can
cause all three errors, because kube-apiserver copies a patch unchanged into an audit event at level Request. Such an
event must not hide the other events, so `_Input` rewrites the document before ijson parses it.
"""

import codecs
import decimal
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import ijson

from clustercert.model.errors import InvalidRequest

JsonToken: TypeAlias = tuple[str, Any]
"""An ijson event and its value. Source: ijson's documentation, "Event names"."""

# Select the C parser explicitly: otherwise ijson may silently choose a Python parser, which is slower and has other
# bugs.
_PARSER = ijson.get_backend("yajl2_c").basic_parse_coro

# The minimum number of bytes that are kept of a long string. Go rejects certificates with names that are longer.
TEXT_READ = 256 * 1024
# The lowest limit that Python accepts for the digits of an integer. Source: sys.int_info.
MAX_DIGITS = 640

_DIGITS = b"0123456789"
_AS_ZEROS = bytes(ord("0") if each in _DIGITS else ord("x") for each in range(256))
_TOO_MANY = b"0" * (MAX_DIGITS + 1)
_LONG_NUMBER = re.compile(rb"(?<![0-9])([0-9]{%d})[0-9]+" % MAX_DIGITS)

_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_SURROGATES = re.compile(rb"(%b\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}" % _HIGH)
# The end of a chunk that the next chunk may continue: an incomplete escape, half a surrogate pair, or both.
_OPEN_ESCAPE = re.compile(rb"(?:%b)?(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z" % _HIGH)
_LONGEST_OPEN = len(rb"\ud800\udc0")


class IncompleteJson(InvalidRequest):
    """The document ends early."""


class JsonTokens:
    """Passes each token of a document to `receive`.

    Invalid UTF-8 and lone surrogates become U+FFFD. Strings are truncated, after 256 KiB at the earliest. In numbers
    and strings, a sequence of digits is truncated to 640 digits.
    """

    def __init__(self, receive: Callable[[JsonToken], object]) -> None:
        self._receive = receive
        self._tokens: list[JsonToken] = ijson.sendable_list()
        self._parser = _PARSER(self._tokens)
        self._input = _Input()

    def feed(self, chunk: bytes) -> None:
        """Pass on the tokens that a chunk completes. Raises InvalidRequest if the JSON is malformed."""
        self._parse(self._input.read(chunk))

    def close(self) -> None:
        """Finish parsing.

        Raises InvalidRequest if the JSON is malformed, or IncompleteJson if the end of the document is missing.
        """
        self._parse(self._input.read(b"", last=True))
        try:
            self._parser.close()
        except ijson.JSONError as error:
            raise IncompleteJson("The JSON ends before it is complete. Send the whole document.") from error
        self._pass_on()

    def _parse(self, data: bytes) -> None:
        if not data:
            # ijson treats an empty chunk as the end of the document.
            return
        try:
            # By default, the module decimal raises an error for an exponent of twenty digits. Without traps, decimal
            # returns NaN.
            with decimal.localcontext(decimal.Context(traps=[])):
                self._parser.send(data)
        except (ijson.JSONError, ValueError) as error:
            self._pass_on()
            raise InvalidRequest("The body is not valid JSON.") from error
        self._pass_on()

    def _pass_on(self) -> None:
        for token in self._tokens:
            self._receive(token)
        self._tokens.clear()


class _Input:
    """Rewrites a document, chunk by chunk, into a form that ijson's C parser reads correctly."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held_back = b""
        self._in_string = False
        self._since_quote = 0

    def read(self, chunk: bytes, *, last: bool = False) -> bytes:
        """Return the bytes to parse now. Holds back the last bytes if they may continue in the next chunk."""
        data = self._held_back + self._decode(chunk, last).encode()
        # Rewrite escaped backslashes and quotes. Then a backslash always starts an escape, and a quote is a delimiter.
        data = data.replace(rb"\\", rb"\u005c").replace(rb"\"", rb"\u0022")
        ready, self._held_back = _cut(data, len(data) if last else _open_escape(data))
        ready = self._without_rest_of_string(ready)
        if _TOO_MANY in ready.translate(_AS_ZEROS):
            ready = _LONG_NUMBER.sub(rb"\1", ready)
        if rb"\ud" in ready or rb"\uD" in ready:
            ready = _SURROGATES.sub(_pair_or_replacement, ready)
        if not last and not self._held_back:
            # Hold back digits at the end, and an escape that contains these digits: the next chunk may continue both.
            ready, self._held_back = _cut(ready, _open_escape(ready.rstrip(_DIGITS)))
        return ready

    def _without_rest_of_string(self, data: bytes) -> bytes:
        """Remove the rest of a long string that started in an earlier chunk.

        Otherwise the parser would reread the unfinished string from its start for each chunk, which is slow.
        """
        first, last = data.find(b'"'), data.rfind(b'"')
        end = first if first >= 0 else len(data)
        room = max(0, TEXT_READ - self._since_quote)
        if self._in_string and end > room:
            # Do not cut the string within a character or an escape sequence.
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


def _pair_or_replacement(found: re.Match[bytes]) -> bytes:
    return found[1] or rb"\ufffd"
