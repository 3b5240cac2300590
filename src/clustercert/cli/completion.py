"""`clustercert completion`: completes commands, options and saved names in shells."""

import contextlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer

from clustercert.cli.administration.resources import RESOURCES
from clustercert.cli.credential import cache
from clustercert.cli.login import profile
from clustercert.cli.lookup import full_name
from clustercert.cli.terminal.output import write_out
from clustercert.model.identity import qualified_name
from clustercert.model.rights import PROJECT_ROLES, SERVICE_ROLES

if TYPE_CHECKING:
    from clustercert.cli.login.profile import Profile
    from clustercert.model import JsonObject


# Which kind of name completes an argument, by the metavar of the argument.
KINDS = {RESOURCES[noun].metavar: RESOURCES[noun].plural for noun in ("cluster", "project", "role")} | {
    "PROFILE": "profiles",
    "CONTEXT": "contexts",
}
# For options without a metavar: the kind of name that completes the option's value, by the parameter's name.
_PARAMETERS = {
    "cluster": "clusters",
    "project": "projects",
    "profile_name": "profiles",
    "profile": "profiles",
}
_MAX_NAMES = 10000
# The characters besides letters and digits that have no special meaning for shells. Each is replaced by a letter.
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
            elif kind == "roles":
                found = (*PROJECT_ROLES, *SERVICE_ROLES)
            else:
                found = saved_names(kind, str(name))
                unique = frozenset(found)
        fitting = [each for each in _fitting(found, unique, incomplete) if is_plain(each)]
        return fitting or [f"{incomplete}{_NO_NAMES}"]

    return complete


def _fitting(found: Sequence[str], unique: AbstractSet[str], incomplete: str) -> Iterator[str]:
    """Yield the names that begin with a text.

    Args:
        unique: names that are yielded in place of their full names, such as `acme/eu-de/prod`, if the text has no
            slash.
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


def saved_names(kind: str, login: str) -> Sequence[str]:
    """Return the names of one kind that the user of a saved login has last listed. Raises OSError or ValueError."""
    found = profile.remembered(login, os.environ)
    if found is None or not (found.is_renewable or (found.is_logged_in and not found.has_expired)):
        return ()
    content = json.loads(_file(login, kind).read_text(encoding="utf-8"))
    return list(map(str, content["names"])) if content["login"] == _identity(found) else ()


def save_names(login: str, clusters: "Sequence[JsonObject]") -> None:
    """Save the names of the clusters that the user of a login can reach, and of the clusters' projects.

    Does nothing for a login that is not saved, or if there is no cache folder.
    """
    from clustercert.secure_file import make_private_folder, write_private

    found = profile.remembered(login, os.environ)
    projects = {
        qualified_name(str(each["project"]), str(each["domain"])): str(each["project"]) for each in clusters
    }
    names = {"clusters": {full_name(each): str(each["name"]) for each in clusters}, "projects": projects}
    if found is None:
        return
    # The names only help with typing, so a folder that can't be written is no error.
    with contextlib.suppress(OSError):
        for kind, full in names.items():
            file = _file(login, kind)
            make_private_folder(file.parent)
            kept = sorted(set(_unique_and_full(full)))[:_MAX_NAMES]
            write_private(file, json.dumps({"login": _identity(found), "names": kept}))


def _identity(login: "Profile") -> str:
    """Return a string that differs for another user or service."""
    return f"{login.shown_user} {login.url}"


def _file(login: str, kind: str) -> Path:
    folder = cache.folder("names")
    if folder is None:
        raise OSError("there is no cache folder")
    return Path(folder) / f"{login},{kind}"


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

    The script completes commands, options, and names of saved logins, contexts and roles. Names of clusters and
    projects come from the last run of `clustercert clusters` without filters.

    Examples:
        clustercert completion bash
    """
    script, line, command = _SCRIPTS[shell]
    ask = _ASK.format(line=line, command=command)
    write_out(script.replace("ASK", f"env {ask}" if shell == "fish" else ask))
