"""The exec plugin's cache: one file for each credential, with mode 0600, in a folder of mode 0700.

The first line of a file contains the times of issue, renewal and expiry. The rest of the file is the response for
kubectl. While the user has an open access request for the cluster, a mark with the request's id is beside the file.
Each kubectl command reads the cache, so this module imports only modules that Python loads at startup anyway.
"""

import os

from clustercert.cli import clock
from clustercert.file_names import is_plain

_MAGIC = "clustercert-1"
# The maximum size of a cache file: several times the size of a response with an RSA key and a certificate chain.
_MAX_BYTES = 256 * 1024
# The text in a cache file that means that there is no access request.
_NO_REQUEST = "-"
_MARK_MAGIC = "clustercert-request-1"
MARK_SUFFIX = ".request"
_MAX_MARK_BYTES = 4096


class CachedCredential:
    """A cached response of the exec plugin to kubectl.

    Attributes:
        issued, renew, expires: times of issue, renewal and expiry, in seconds since the epoch, by this machine's clock.
        not_after: the time of expiry by the service's clock.
        boot_time: the result of `clock.boot_time` when the other times were set.
        remind: when to remind the user that the login ends soon, in seconds since the epoch; 0 for no reminder.
        user: the user who was logged in, as DOMAIN/NAME.
        access_request: the id of the access request whose groups the certificate has; empty if there is none.
        login: a string that identifies the version of the login's file, from `login_state`.
        body: the response for kubectl, which is an ExecCredential of version v1 in JSON.
    """

    __slots__ = (
        "access_request",
        "body",
        "boot_time",
        "expires",
        "issued",
        "login",
        "not_after",
        "remind",
        "renew",
        "user",
    )

    def __init__(
        self,
        *,
        issued: int,
        renew: int,
        expires: int,
        not_after: int,
        boot_time: int,
        remind: int = 0,
        user: str,
        access_request: str = "",
        login: str,
        body: str,
    ) -> None:
        self.issued = issued
        self.renew = renew
        self.expires = expires
        self.not_after = not_after
        self.boot_time = boot_time
        self.remind = remind
        self.user = user
        self.access_request = access_request
        self.login = login
        self.body = body

    def follow_clock(self) -> None:
        """If this machine's clock was set since the times were saved, replace them by the service's times.

        If nobody sets a wrong clock, certificates are still used for their whole lifetime.
        """
        if clock.is_unchanged_since(self.boot_time):
            return
        step = self.not_after - self.expires
        self.issued += step
        self.renew += step
        self.expires += step
        self.boot_time = clock.boot_time()

    def is_usable(self, now: float) -> bool:
        """Whether the certificate is valid, and the login has not changed since the certificate was requested."""
        _, _, path = self.login.partition(" ")
        return self.issued - clock.STEP_SECONDS <= now < self.expires and login_state(path) == self.login

    def is_reminder_due(self, now: float) -> bool:
        """Whether it is time to remind the user that the login ends soon."""
        return 0 < self.remind <= now

    @property
    def is_token(self) -> bool:
        """Whether the credential is a token, and not a certificate."""
        return '"token":"' in self.body

    def is_fresh(self, now: float) -> bool:
        """Whether to use the credential without trying to renew it."""
        return now < self.renew and self.is_usable(now)


class RequestMark:
    """A mark beside a cache file: the user has an access request for the cluster, which may be open.

    Attributes:
        request: the request's id.
        user: the user who created the request, as DOMAIN/NAME. The plugin ignores a mark of another user.
        ask_at: when to ask the service about the request again, in seconds since the epoch, by this machine's clock.
        is_usable: whether certificates can have the request's groups, as the service last said.
    """

    __slots__ = ("ask_at", "is_usable", "request", "user")

    def __init__(self, *, request: str, user: str, ask_at: float = 0, is_usable: bool = False) -> None:
        self.request = request
        self.user = user
        self.ask_at = ask_at
        self.is_usable = is_usable

    def is_due(self, now: float) -> bool:
        """Whether to ask the service about the request."""
        return not now < self.ask_at <= now + clock.STEP_SECONDS


def folder(name: str = "credentials") -> str | None:
    """Return the path of a cache folder, or `None` if there is no home directory.

    The name of a file that belongs to a profile begins with the profile's name and a comma.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Ignore a relative path in XDG_CACHE_HOME, as the XDG Base Directory Specification requires.
    if not base.startswith("/"):
        base = os.path.expanduser("~/.cache")  # noqa: PTH111 - pathlib takes 10 ms to import
    return f"{base}/clustercert/{name}" if base.startswith("/") else None


def path_of(profile: str, project_id: str, cluster_id: str) -> str | None:
    """Return the path of the cache file for a credential, or `None` if the credential can't be cached."""
    parts = (profile, project_id, cluster_id)
    place = folder()
    if place is None or not all(map(is_plain, parts)):
        return None
    return f"{place}/{','.join(parts)}"


def read(path: str, user: str | None = None) -> CachedCredential | None:
    """Read a cache file. Returns `None` if the file is missing, damaged, or not private.

    Also returns `None` if `user`, as DOMAIN/NAME, is given, and the certificate was issued to a login of another user.
    """
    content = _read_private(path, _MAX_BYTES)
    found = _parsed(content) if content is not None else None
    return None if found is not None and user not in (None, found.user) else found


def is_settled(path: str, entry: CachedCredential, now: float) -> bool:
    """Whether a cached certificate can be used without asking the service about an access request.

    Args:
        path: the cache file that contains `entry`.
    """
    mark = read_mark(path)
    if mark is None or mark.user != entry.user:
        return not entry.access_request
    return entry.access_request == (mark.request if mark.is_usable else "") and not mark.is_due(now)


def mark_path(path: str) -> str:
    """Return the path of the mark that belongs to a cache file."""
    return f"{path}{MARK_SUFFIX}"


def read_mark(path: str) -> RequestMark | None:
    """Read the mark beside a cache file. Returns `None` if the mark is missing, damaged, or not private."""
    content = _read_private(mark_path(path), _MAX_MARK_BYTES)
    try:
        magic, ask_at, is_usable, request, user = (content or b"").decode("ascii").split(" ")
        mark = RequestMark(
            request=request,
            user=bytes.fromhex(user).decode(),
            ask_at=float(ask_at),
            is_usable=is_usable == "usable",
        )
    except ValueError:
        return None
    return mark if magic == _MARK_MAGIC else None


def rendered_mark(mark: RequestMark) -> str:
    """Return the content of the file for a mark."""
    state = "usable" if mark.is_usable else "not-usable"
    return f"{_MARK_MAGIC} {mark.ask_at:.3f} {state} {mark.request} {mark.user.encode().hex()}"


def _read_private(path: str, limit: int) -> bytes | None:
    """Read at most `limit` bytes of a file. Returns `None` if the file is missing or not private."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        content = os.read(descriptor, limit)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None if status.st_uid != os.geteuid() or status.st_mode & 0o077 else content


def rendered(entry: CachedCredential) -> str:
    """Return the content of the cache file for a credential."""
    times = (entry.issued, entry.renew, entry.expires, entry.remind, entry.not_after, entry.boot_time)
    # The name is in hexadecimal, because it may contain spaces and non-ASCII characters.
    user = entry.user.encode().hex()
    fields = (_MAGIC, *times, len(entry.body), user, entry.access_request or _NO_REQUEST, entry.login)
    return f"{' '.join(map(str, fields))}\n{entry.body}"


def clear(profile: str) -> None:
    """Delete the cache files of a profile. Skips files that can't be deleted."""
    for place in (folder(), folder("names"), folder("notices")):
        try:
            names = os.listdir(place) if place is not None else []  # noqa: PTH208 - pathlib takes 10 ms to import
        except OSError:
            continue
        for name in names:
            if name.startswith(f"{profile},"):
                try:
                    os.unlink(f"{place}/{name}")  # noqa: PTH108 - pathlib takes 10 ms to import
                except OSError:
                    continue


def login_state(path: str) -> str:
    """Return a string that changes when a login's file is replaced. The file's path follows the first space."""
    try:
        status = os.stat(path)  # noqa: PTH116 - pathlib takes 10 ms to import
    except OSError:
        return f"missing {path}"
    return f"{status.st_mtime_ns}:{status.st_ino} {path}"


def _parsed(content: bytes) -> CachedCredential | None:
    try:
        header, _, body = content.decode("ascii").partition("\n")
        magic, issued, renew, expires, remind, not_after, boot_time, length, user, request, login = (
            header.split(" ", 10)
        )
        entry = CachedCredential(
            issued=int(issued),
            renew=int(renew),
            expires=int(expires),
            remind=int(remind),
            not_after=int(not_after),
            boot_time=int(boot_time),
            user=bytes.fromhex(user).decode(),
            access_request="" if request == _NO_REQUEST else request,
            login=login,
            body=body,
        )
    except ValueError:
        return None
    if magic != _MAGIC or len(body) != int(length):
        return None
    entry.follow_clock()
    return entry
