"""`clustercert completion`: prints a script that makes a shell complete commands, options and names."""

from typing import Annotated, Literal

import typer

from clustercert.cli.output import write_out

# All three use Typer's protocol for fish: a value and its help on each line. A shell never evaluates these lines.
_ASK = (
    "_CLUSTERCERT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS={line} {command}"
    " 2>/dev/null"
)
_BASH = """\
# Load it in ~/.bashrc: source <(clustercert completion bash)
_clustercert_complete() {
    local value help
    COMPREPLY=()
    while IFS=$'\\t' read -r value help; do
        [ -n "$value" ] && COMPREPLY+=("$value")
    done < <(ASK)
}
complete -o bashdefault -o default -F _clustercert_complete clustercert
"""
_ZSH = """\
#compdef clustercert
# Load it in ~/.zshrc, after compinit: source <(clustercert completion zsh)
_clustercert() {
    local answer line
    local -a values
    answer="$(ASK)"
    for line in "${(@f)answer}"; do
        [[ -n $line ]] && values+=("${${line//:/\\\\:}/$'\\t'/:}")
    done
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
# Load it in ~/.config/fish/config.fish: clustercert completion fish | source
function __clustercert_complete
    set -l token (commandline -ct)
    set -l values (ASK)
    if not count $values >/dev/null
        __fish_complete_path $token
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
    """Print a script for bash, zsh or fish that completes commands, options and names.

    Names of clusters, projects, users, groups, roles and domains come from the service of the saved login.
    """
    script, line, command = _SCRIPTS[shell]
    ask = _ASK.format(line=line, command=command)
    write_out(script.replace("ASK", f"env {ask}" if shell == "fish" else ask))
