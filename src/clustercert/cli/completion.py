"""`clustercert completion`: completes commands, options, and names of the service's objects in shells."""

import contextlib
import inspect
import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer

from clustercert.cli.administration.resources import RESOURCES
from clustercert.cli.credential import cache
from clustercert.cli.login import profile
from clustercert.cli.lookup import clusters_of_caller, full_name, reachable_cluster
from clustercert.cli.terminal.output import write_out
from clustercert.model.errors import ClustercertError
from clustercert.model.identity import qualified_name

if TYPE_CHECKING:
    from clustercert.cli.login.profile import Profile


# Which kind of name completes an argument, by the metavar of the argument.
KINDS = {each.metavar: each.plural for each in RESOURCES.values() if each.key == "name"} | {
    "PROFILE": "profiles",
    "CONTEXT": "contexts",
    "REQUEST": "requests",
}
# The Kubernetes groups that can be requested in the cluster of the command line.
_OFFERS = "offers"
# For options without a metavar: the kind of name that completes the option's value, by the parameter's name.
_PARAMETERS = {
    "cluster": "clusters",
    "groups": _OFFERS,
    "project": "projects",
    "profile_name": "profiles",
    "profile": "profiles",
}
_FRESH_SECONDS = 20
_FETCH_SECONDS = 10
# The time limit of a completion, including the CPU time of the program's start. A completion must take less than 0.3
# seconds.
_TOTAL_SECONDS = 0.28
_LEAST_SECONDS = 0.05
_MAX_NAMES = 10000
# The characters beside letters and digits that have no special meaning for shells, replaced by a letter.
_HARMLESS = str.maketrans("-_.@/", "aaaaa")
# A value that ends with this text tells the shell scripts to complete nothing. Without any value, the scripts complete
# file names.
_NO_NAMES = ":"


def add_to(commands: typer.Typer) -> None:
    """Add completion to all arguments and options whose values are names."""
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            add_to(group.typer_instance)
    for command in commands.registered_commands:
        if command.callback is not None:
            for parameter in inspect.signature(command.callback).parameters.values():
                _add_to_parameter(parameter)


def _add_to_parameter(parameter: inspect.Parameter) -> None:
    if get_origin(parameter.annotation) is not Annotated:
        return
    for info in get_args(parameter.annotation)[1:]:
        if isinstance(info, typer.models.ParameterInfo):
            metavar = (info.metavar or "NAME").strip("[]…")
            kind = _PARAMETERS.get(parameter.name) if metavar == "NAME" else KINDS.get(metavar)
            if kind is not None and info.autocompletion is None:
                info.autocompletion = _completion(kind)


def _completion(kind: str) -> Callable[..., list[str]]:
    """Return the function that Typer calls for an argument of this kind."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        name = ctx.params.get("profile_name") or ctx.params.get("profile") or profile.current(os.environ)
        found: Sequence[str] = ()
        unique: AbstractSet[str] = frozenset()
        # Suppress errors: a message would garble the command line that the user is typing.
        with contextlib.suppress(Exception):
            if kind == "profiles":
                found = profile.names(os.environ)
            elif kind == "contexts":
                found = _contexts(ctx.params.get("kubeconfig"))
            else:
                cluster = f",{ctx.params['cluster']}" if kind == _OFFERS else ""
                found = names(f"{kind}{cluster}", str(name))
                unique = frozenset(found)
        fitting = [each for each in _fitting(found, unique, incomplete) if is_plain(each)]
        return fitting or [f"{incomplete}{_NO_NAMES}"]

    return complete


def _fitting(found: Sequence[str], unique: AbstractSet[str], incomplete: str) -> Iterator[str]:
    """Yield the names that begin with a text.

    Args:
        unique: names that stand for their full names, such as `acme/eu-de/prod`, until the text has a slash.
    """
    for each in found:
        _, slash, short = each.rpartition("/")
        if each.startswith(incomplete) and not (slash and "/" not in incomplete and short in unique):
            yield each


def _contexts(kubeconfig: str | None) -> list[str]:
    """Return the names of the contexts that `kubeconfig merge` wrote.

    `kubeconfig` is the value of the option `--kubeconfig`.
    """
    from clustercert.cli.kubeconfig import entries, files

    paths = files.loading_order(Path(kubeconfig) if kubeconfig is not None else None, os.environ)
    return [each.context for path in paths for each in entries.merged(files.load(path))]


def is_plain(name: str) -> bool:
    """Whether the name is safe to complete: its characters have no special meaning for shells or commands."""
    return not name.startswith("-") and name.translate(_HARMLESS).isalnum()


def names(kind: str, login: str) -> Sequence[str]:
    """Return names of one kind that the user of a saved login may see. The kind `offers,CLUSTER` is for one cluster.

    The names come from the cache, or from the service if it responds in time.
    """
    found = profile.remembered(login, os.environ)
    if found is None or not (found.is_renewable or (found.is_logged_in and not found.has_expired)):
        return ()
    state = cache.login_state(str(profile.path_of(login, os.environ)))
    file = _file(login, kind)
    # An expired login at an OIDC issuer is not renewed here, but by the next command.
    if _age(file) > _FRESH_SECONDS and not found.has_expired:
        _renew(file, kind, found, state)
    return _read(file, state)


def _read(file: Path, state: str) -> Sequence[str]:
    """Return the cached names, if they belong to this login."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["login"] == state:
            return list(map(str, content["names"]))
    return ()


def _file(login: str, kind: str) -> Path:
    folder = cache.folder("names")
    if folder is None:
        raise OSError("there is no cache folder")
    return Path(folder) / f"{login},{kind.replace('/', ',')}"


def _age(file: Path) -> float:
    try:
        return abs(time.time() - file.stat().st_mtime)
    except OSError:
        return float("inf")


def _renew(file: Path, kind: str, found: "Profile", state: str) -> None:
    """Renew the cache in a child process. Waits briefly, then returns while the child continues."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _run_child(file, kind, found, state)
    os.close(writer)
    select.select([reader], [], [], max(_LEAST_SECONDS, _TOTAL_SECONDS - time.process_time()))
    os.close(reader)


def _run_child(file: Path, kind: str, found: "Profile", state: str) -> None:
    """Fetch the names, write them to the cache, and exit the process. The exit closes the pipe to the parent."""
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        # Replace the standard streams, because the shell waits until all copies of the streams are closed.
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        signal.alarm(_FETCH_SECONDS)
        # Mark the cache as renewed first, so that the next key press does not query an unresponsive service.
        _write(file, state, _read(file, state))
        with contextlib.suppress(ClustercertError):
            _write(file, state, _fetched(kind, found))
    finally:
        os._exit(0)


def _write(file: Path, state: str, found: Iterable[str]) -> None:
    from clustercert.secure_file import make_private_folder, write_private

    make_private_folder(file.parent)
    write_private(file, json.dumps({"login": state, "names": sorted(set(found))[:_MAX_NAMES]}))


def _fetched(kind: str, found: "Profile") -> Iterator[str]:
    """Fetch names from the service. Raises ClientError.

    For operators, also reads lists that only operators may read.
    """
    from clustercert.cli.credential.access_request import PATH, offers_of, shown_id
    from clustercert.model.rights import PROJECT_ROLES, SERVICE_ROLES

    with found.client() as client:
        if kind == "clusters":
            clusters = clusters_of_caller(client)
            yield from _unique_and_full({full_name(each): str(each["name"]) for each in clusters})
            return
        if kind == "requests":
            yield from (
                shown_id(str(each["id"]))
                for each in client.list_all(f"/{PATH}", "access_requests", state="open")
            )
            return
        if kind.startswith(_OFFERS):
            cluster = reachable_cluster(client, found, kind.removeprefix(f"{_OFFERS},"))
            for each in offers_of(client, str(cluster["id"])):
                yield from (str(group) for group in each["groups"])
            return
        is_operator = client.caller().is_operator
        full = {each.shown_name: each.name for each in client.projects()} if kind == "projects" else {}
        if kind == "roles":
            yield from (*PROJECT_ROLES, *SERVICE_ROLES)
    if is_operator:
        from clustercert.client.administration import path_of

        with found.administration_client() as administration:
            for each in administration.list_all(path_of(kind), kind):
                name = str(each["name"])
                full[qualified_name(name, str(each.get("domain") or ""))] = name
    yield from _unique_and_full(full)


def _unique_and_full(names: Mapping[str, str]) -> Iterator[str]:
    """Yield the full names, and the short names that only one object has.

    Args:
        names: the short names by full name.
    """
    count = Counter(names.values())
    yield from names
    yield from (short for short, number in count.items() if number == 1)


# All three scripts use Typer's protocol for fish: a value and its help on each line. No shell evaluates these lines.
_ASK = (
    "_CLUSTERCERT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS={line} {command}"
    " 2>/dev/null"
)
_BASH = """\
# Load this script in ~/.bashrc: source <(clustercert completion bash)
_clustercert_complete() {
    local value help
    COMPREPLY=()
    while IFS=$'\\t' read -r value help; do
        if [[ $value == *: ]]; then
            compopt +o default +o bashdefault 2>/dev/null
        elif [ -n "$value" ]; then
            COMPREPLY+=("$value")
        fi
    done < <(ASK)
}
complete -o bashdefault -o default -F _clustercert_complete clustercert
"""
_ZSH = """\
#compdef clustercert
# Load this script in ~/.zshrc, after compinit: source <(clustercert completion zsh)
_clustercert() {
    local answer line
    local -a values
    answer="$(ASK)"
    for line in "${(@f)answer}"; do
        [[ -n $line ]] && values+=("${${line//:/\\\\:}/$'\\t'/:}")
    done
    [[ $answer == *: ]] && return
    [[ $PREFIX == --*=* ]] && compset -P '*='
    if (( $#values )); then
        _describe -V clustercert values
    else
        _files
    fi
}
compdef _clustercert clustercert
"""
_FISH = """\
# Load this script in ~/.config/fish/config.fish: clustercert completion fish | source
function __clustercert_complete
    set -l token (commandline -ct)
    set -l values (ASK)
    if test -z "$values"
        __fish_complete_path $token
    else if string match -q -- '*:' $values
        return
    else if string match -qr -- '^--.*=' $token
        printf (string replace -r -- '=.*' '=' $token | string escape)'%s\\n' $values
    else
        printf '%s\\n' $values
    end
end
complete -c clustercert -f -a '(__clustercert_complete)'
"""
_SCRIPTS = {
    "bash": (_BASH, '"${COMP_LINE:0:COMP_POINT}"', '"${1/#\\~/$HOME}"'),
    "zsh": (_ZSH, '"${(j: :)words[1,CURRENT]}"', "${~words[1]}"),
    "fish": (
        _FISH,
        "(commandline -cp | string collect -N)",
        "(string replace -r -- '^~' $HOME (commandline -opc)[1])",
    ),
}


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")
    ],
) -> None:
    """Print a completion script for bash, zsh or fish.

    The script completes commands, options and names. Names of clusters, projects, users, groups, roles and domains
    come from the service of the saved login.

    Examples:
        clustercert completion bash
    """
    script, line, command = _SCRIPTS[shell]
    ask = _ASK.format(line=line, command=command)
    write_out(script.replace("ASK", f"env {ask}" if shell == "fish" else ask))
