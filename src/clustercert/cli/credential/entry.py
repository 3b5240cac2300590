"""`clustercert credential`: the exec plugin that gives kubectl a client certificate.

kubectl runs the plugin for each command. To print a cached credential quickly, this module imports only the modules
that reading the cache needs.
"""

import os
import sys
import time

from clustercert.cli.credential import cache
from clustercert.cli.credential.request import CredentialRequest

# The beginning of the text that client-go sends in KUBERNETES_EXEC_INFO.
_INFO_PREFIX = '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/'
_GROUP = "client.authentication.k8s.io/"
VERSIONS = ("v1", "v1beta1")
# Maps the fields of the extension `client.authentication.k8s.io/exec`, which `kubeconfig merge` writes, to options.
_FIELDS = {"profile": "profile", "project_id": "project", "cluster_id": "cluster", "login": "user"}
_FLAGS = ("--service-key", "--refresh")
_VALUES = {
    "--profile": "profile",
    "--project": "project",
    "--user": "user",
    "--expires-in": "expires_in",
    "--request": "access_request",
}
_REQUEST_NEEDS_JOB = (
    "--request is for jobs with CLUSTERCERT_TOKEN. With a saved login, leave it out: after `clustercert request "
    "create`, kubectl uses the access request by itself."
)


def main() -> None:
    """Run `credential` with the arguments of this process, then exit."""
    sys.exit(run(sys.argv[2:]))


def run(arguments: list[str]) -> int:
    """Print the credential. Returns the exit code."""
    request = _parsed(arguments)
    if request is None:
        # Let the full command line report the wrong arguments, or print the help.
        from clustercert.cli import main

        return main.run(["credential", *arguments])
    return print_credential(request, os.environ.get("KUBERNETES_EXEC_INFO") or None)


def print_credential(request: CredentialRequest, info: str | None) -> int:
    """Print the cached credential, or request and print a new credential. Returns the exit code."""
    if info is not None and (info[: len(_INFO_PREFIX)] != _INFO_PREFIX or request.cluster is None):
        if (problem := _apply_exec_info(request, info)) is not None:
            return _fail(problem, 2)
    elif info is not None:
        request.version = info[len(_INFO_PREFIX) :].partition('"')[0]
    if request.version not in VERSIONS:
        return _fail(
            f"ExecCredential {request.version!r} is not supported. In the kubeconfig, set the exec plugin's "
            "apiVersion to client.authentication.k8s.io/v1.",
            2,
        )
    # If only one of these two variables is set, `issue_for_job` reports the error.
    is_job = bool(os.environ.get("CLUSTERCERT_URL") or os.environ.get("CLUSTERCERT_TOKEN"))
    if request.access_request is not None and not is_job:
        return _fail(_REQUEST_NEEDS_JOB, 2)
    path = request.cache_path()
    use_cache = not request.refresh and not is_job
    cached = cache.read(path, request.user) if path is not None and use_cache else None
    now = time.time()
    if (
        path is not None
        and cached is not None
        and cached.is_fresh(now)
        and cache.is_settled(path, cached, now)
    ):
        if cached.is_reminder_due(now):
            from clustercert.cli.credential.reminder import remind_from_cache

            remind_from_cache(path, cached, str(request.profile))
        return _print(cached.body, request.version)
    from clustercert.cli.credential.renewal import issue_for_job, renew
    from clustercert.cli.credential.service_requests import Failure, renewed_for

    result = issue_for_job(request) if is_job else renew(request)
    if isinstance(result, Failure):
        return _fail(result.message, result.exit_code)
    if request.refresh and not is_job:
        _note(f"Renewed for {renewed_for(request)}.")
    return _print(result, request.version)


def _fail(message: str, exit_code: int) -> int:
    """Report an error on kubectl's terminal. Returns the exit code."""
    _note(message)
    return exit_code


def _note(message: str) -> None:
    """Print a message on kubectl's terminal. Escapes the message, which may contain text from the service."""
    from clustercert.cli.terminal.printable import printable

    text = f"clustercert: {message}"
    if sys.stderr.isatty():
        # This import is slow.
        from clustercert.cli.terminal.output import note_text
    else:
        note_text = printable
    sys.stderr.write(f"{note_text(text)}\n")


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
        # Redirect standard output to /dev/null. Otherwise Python would flush standard output again at exit, and print a
        # traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return 0


def _parsed(arguments: list[str]) -> CredentialRequest | None:
    """Parse arguments in the form that `kubeconfig merge` writes. Returns `None` for arguments in any other form."""
    request = CredentialRequest()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if argument in _FLAGS:
            setattr(request, argument[2:].replace("-", "_"), True)
        elif option in _VALUES and (equals or rest):
            setattr(request, _VALUES[option], value if equals else rest.pop(0))
        elif not argument.startswith("-") and request.cluster is None:
            request.cluster = argument
        else:
            return None
    return request


def _apply_exec_info(request: CredentialRequest, text: str) -> str | None:
    """Copy the API version and missing options from `text`, the value of KUBERNETES_EXEC_INFO, to the request.

    Returns an error message if KUBERNETES_EXEC_INFO is malformed.
    """
    import json

    try:
        info = json.loads(text)
        version = info["apiVersion"]
        if info["kind"] != "ExecCredential" or not version.startswith(_GROUP):
            return "KUBERNETES_EXEC_INFO is not an ExecCredential."
        config = ((info.get("spec") or {}).get("cluster") or {}).get("config") or {}
        given = {option: config[field] for field, option in _FIELDS.items() if field in config}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "KUBERNETES_EXEC_INFO is not an ExecCredential."
    if not all(isinstance(value, str) for value in given.values()):
        return (
            "The cluster's extension in the kubeconfig is damaged. Run `clustercert kubeconfig merge` again."
        )
    request.version = version.removeprefix(_GROUP)
    if request.cluster is None:
        for option, value in given.items():
            if getattr(request, option) is None:
                setattr(request, option, value)
    return None
