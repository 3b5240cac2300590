"""`clustercert credential`: the exec plugin that gives kubectl a client certificate.

kubectl runs the plugin for each command. If the cache has a credential, the plugin only prints it. So this module
imports only modules that are needed for that.
"""

import os
import sys
import time

from clustercert.cli.credential import cache

# The beginning of the text that client-go sends in KUBERNETES_EXEC_INFO.
_INFO_PREFIX = '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/'
VERSIONS = ("v1", "v1beta1")
_FLAGS = ("--service-key", "--refresh")
_VALUES = ("--profile", "--project", "--expires-in")


class Request:
    """The options of one call.

    Attributes:
        cluster: an id, or a name until `credential_renewal` has replaced it; `None` if kubectl sends it: see
            `provideClusterInfo`.
        project: the same. `None` for the default.
        profile: `None` for the default.
        version: of the ExecCredential.
    """

    __slots__ = ("cluster", "expires_in", "profile", "project", "refresh", "service_key", "version")

    def __init__(self) -> None:
        self.cluster: str | None = None
        self.profile: str | None = None
        self.project: str | None = None
        self.expires_in: str | None = None
        self.service_key = False
        self.refresh = False
        self.version = "v1"

    def cache_path(self) -> str | None:
        """The file for this credential, or `None` if the cluster, the profile or the project is not known yet.

        For a name instead of an id, there is no such file.
        """
        if self.cluster is None or self.profile is None or self.project is None:
            return None
        return cache.path_of(self.profile, self.project, self.cluster)


def main() -> None:
    """Run `credential` with the arguments of this process, then exit."""
    sys.exit(run(sys.argv[2:]))


def run(arguments: list[str]) -> int:
    """Print the credential. Returns the exit code."""
    request = _parsed(arguments)
    if request is None:
        # The full command line explains the mistake, or prints the help.
        from clustercert.cli import main

        return main.run(["credential", *arguments])
    return answer(request, os.environ.get("KUBERNETES_EXEC_INFO") or None)


def answer(request: Request, info: str | None) -> int:
    """Print the credential from the cache, or a new one. Returns the exit code."""
    if info is not None and (info[: len(_INFO_PREFIX)] != _INFO_PREFIX or request.cluster is None):
        from clustercert.cli.credential.exec_info import apply

        if (problem := apply(request, info)) is not None:
            return _fail(problem, 2)
    elif info is not None:
        request.version = info[len(_INFO_PREFIX) :].partition('"')[0]
    if request.version not in VERSIONS:
        return _fail(
            f"ExecCredential {request.version!r} is not supported. Write client.authentication.k8s.io/v1 in the "
            "kubeconfig.",
            2,
        )
    path = request.cache_path()
    cached = cache.read(path) if path is not None and not request.refresh else None
    if cached is not None and cached.is_fresh(time.time()):
        return _print(cached.body, request.version)
    from clustercert.cli.credential.renewal import Failure, renew

    result = renew(request)
    if isinstance(result, Failure):
        return _fail(result.message, result.exit_code)
    return _print(result, request.version)


def _fail(message: str, exit_code: int) -> int:
    """Report an error on kubectl's terminal. The message may contain text from the service."""
    from clustercert.cli.printable import printable

    sys.stderr.write(f"clustercert: {printable(message)}\n")
    return exit_code


def _print(body: str, version: str) -> int:
    if version != VERSIONS[0]:
        body = body.replace('/v1"', f'/{version}"', 1)
    if sys.stdout is None:
        return _fail("The credential could not be written: standard output is closed.", 1)
    try:
        sys.stdout.write(body)
        sys.stdout.flush()
    except OSError as error:
        _fail(f"The credential could not be written: {error.strerror}.", 1)
        # Otherwise Python would write again at exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return 0


def _parsed(arguments: list[str]) -> Request | None:
    """Parse the arguments as `merge` writes them. Returns `None` for all others."""
    request = Request()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if argument in _FLAGS:
            setattr(request, argument[2:].replace("-", "_"), True)
        elif option in _VALUES and (equals or rest):
            setattr(request, option[2:].replace("-", "_"), value if equals else rest.pop(0))
        elif not argument.startswith("-") and request.cluster is None:
            request.cluster = argument
        else:
            return None
    return request
