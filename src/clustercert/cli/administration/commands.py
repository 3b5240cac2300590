"""The commands that manage domains, projects, users, groups and access keys. See also `resources` and `roles`."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from clustercert.cli.administration.lost_roles import RevokeOption, remove_role
from clustercert.cli.administration.resources import NO_DEFAULT, RESOURCES, Resource
from clustercert.cli.certificate.access import print_remaining_access
from clustercert.cli.commands import new_service_command, on_service
from clustercert.cli.lookup import (
    affected_certificates,
    count_of,
    counted,
    find,
    find_user,
    named_users,
    objects,
    shown_name,
    shown_user,
)
from clustercert.cli.options import (
    DescriptionOption,
    DomainOption,
    InDomainOption,
    InvalidOption,
    PasswordFileOption,
    YesOption,
)
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    print_note,
    show_list,
    show_one,
    with_times,
)
from clustercert.cli.terminal.prompts import PASSWORD_ATTEMPTS, confirm, read_secret
from clustercert.client.administration import AdministrationClient, path_of
from clustercert.client.connection import ApiError
from clustercert.model import JsonObject
from clustercert.model.identity import BUILT_IN, MIN_PASSWORD_CHARACTERS

UserArgument = Annotated[str, RESOURCES["user"].name_argument]
GroupArgument = Annotated[str, RESOURCES["group"].name_argument]
AnyUserArgument = Annotated[
    str,
    typer.Argument(metavar="USER", help="Name or id of the user, such as sso/anna for a user of an issuer."),
]
AnyDomainOption = Annotated[
    str | None,
    typer.Option(
        "--domain",
        metavar="DOMAIN",
        help="Name of the domain, OIDC issuer or Keystone to which the user belongs. [default: any]",
    ),
]
KeyOwnerOption = Annotated[
    str, typer.Option(metavar="USER", help="Owner of the key, by name, DOMAIN/NAME or id.")
]


def new_group(noun: str, special: dict[str, Callable[..., None]]) -> typer.Typer:
    """Return the command group of a resource.

    Args:
        special: the functions of the commands that are not generated from `_VERBS`, by command name.
    """
    resource = RESOURCES[noun]
    group = typer.Typer(name=noun, help=resource.help, no_args_is_help=True)
    for name, text in resource.commands.items():
        if name in special:
            group.command(name)(on_service(special[name]))
        else:
            run, parameters = _VERBS[name]
            command = new_service_command(partial(run, resource), list(parameters(resource)))
            example = " ".join(["clustercert", noun, name, *([] if name == "list" else [resource.example])])
            group.command(name, help=f"{text}\n\nExamples:\n    {example}")(command)
    return group


def _create(
    resource: Resource,
    client: AdministrationClient,
    name: str,
    output: Output,
    domain: str | None = None,
    **fields: object,
) -> None:
    body = {field: value for field, value in fields.items() if value is not None}
    show_one(client.create(path_of(resource.plural, name, domain=domain), body), output)


def _list(
    resource: Resource, client: AdministrationClient, output: Output, domain: str | None = None
) -> None:
    show_list(objects(client, resource.plural, domain), output, columns=resource.columns)


def _show(
    resource: Resource, client: AdministrationClient, name: str, output: Output, domain: str | None = None
) -> None:
    found = find(client, resource.plural, name, domain)
    if resource.noun in _DETAILS:
        field, names = _DETAILS[resource.noun]
        found[field] = names(client, found)
    show_one(found, output)


def _switch(
    resource: Resource,
    client: AdministrationClient,
    name: str,
    domain: str | None = None,
    yes: bool = True,
    *,
    enabled: bool,
) -> None:
    found: JsonObject = {"id": name}
    if resource.is_in_domain:
        found = find(client, resource.plural, name, domain)
    if resource.noun in _LOSSES:
        confirm(lambda: _LOSSES[resource.noun](client, found), yes=yes)
    changed = client.update(path_of(resource.plural, str(found["id"])), enabled=enabled)
    what = f"the {resource.title} {_shown(resource, client, changed)}."
    print_note(f"Enabled {what}" if enabled else f"Disabled {what}{resource.after_disabling}")


def _delete(
    resource: Resource, client: AdministrationClient, name: str, yes: bool, domain: str | None = None
) -> None:
    found = (
        find(client, resource.plural, name, domain)
        if resource.is_in_domain
        else client.get(path_of(resource.plural, name))
    )
    shown = _shown(resource, client, found)

    def question() -> str:
        if (ask := _QUESTIONS.get(resource.noun)) is not None:
            return ask(client, found)
        return resource.question.format_map(found | {resource.key: shown})

    confirm(question, yes=yes)
    client.delete(path_of(resource.plural, str(found.get("id", found[resource.key]))))
    print_note(f"Deleted the {resource.title} {shown}.{resource.after_deletion}")


def _shown(resource: Resource, client: AdministrationClient, found: JsonObject) -> str:
    """Return the name of an object for messages."""
    return shown_name(client, found) if resource.is_in_domain else str(found[resource.key])


def _option(name: str, annotation: Any, default: object = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_OUTPUT = _option("output", OutputOption, Output.TABLE)
_YES = _option("yes", YesOption, default=False)


def _domain(resource: Resource, annotation: Any = DomainOption) -> Sequence[inspect.Parameter]:
    return [_option("domain", annotation, None)] if resource.is_in_domain else []


def _object(resource: Resource) -> Sequence[inspect.Parameter]:
    """Return the argument for an object's name and, if names are unique only within a domain, the option `--domain`."""
    return [_option("name", Annotated[str, resource.name_argument]), *_domain(resource)]


def _fields(resource: Resource) -> Sequence[inspect.Parameter]:
    """Return the options of `create` for the fields of a resource."""
    return [
        _option(each.name, each.option, None if each.default is NO_DEFAULT else each.default)
        for each in resource.fields
        if each.option is not None
    ]


# For each generated command: the function to run, and a function that returns the command's arguments and options.
_VERBS: dict[str, tuple[Callable[..., None], Callable[[Resource], Sequence[inspect.Parameter]]]] = {
    "create": (
        _create,
        lambda resource: [
            _option("name", Annotated[str, resource.new_name_argument]),
            *_domain(resource),
            *_fields(resource),
            _OUTPUT,
        ],
    ),
    "list": (_list, lambda resource: [*_domain(resource, InDomainOption), _OUTPUT]),
    "show": (_show, lambda resource: [*_object(resource), _OUTPUT]),
    "enable": (partial(_switch, enabled=True), _object),
    "disable": (
        partial(_switch, enabled=False),
        lambda resource: [*_object(resource), *([_YES] if resource.noun in _LOSSES else [])],
    ),
    "delete": (_delete, lambda resource: [*_object(resource), _YES]),
}


def _create_user(
    client: AdministrationClient,
    name: Annotated[str, RESOURCES["user"].new_name_argument],
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
    no_password: Annotated[
        bool,
        typer.Option("--no-password", help="Set no password: the user can log in only with access keys."),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a user. Asks for the password unless --password-file or --no-password is given.

    Examples:
        clustercert user create alice
        clustercert user create acme/ci --no-password
    """
    if no_password and password_file is not None:
        raise InvalidOption("Give only one of --no-password and --password-file.")
    path = path_of("users", name, domain=domain)
    if no_password:
        show_one(client.create(path, {"password": None}), output)
        return
    # Report a wrong domain or an existing user before the user types a password.
    client.create(f"{path}{'&' if '?' in path else '?'}dryRun=All", {"password": None})
    instead = "add --password-file FILE or --no-password"
    created = _with_new_password(
        password_file, instead, lambda password: client.create(path, {"password": password})
    )
    show_one(created, output)


def _with_new_password(file: Path | None, instead: str, send: Callable[[str], JsonObject]) -> JsonObject:
    """Read a new password and send it. Asks again if the service refuses a password that was typed at a terminal.

    `instead` is the advice if there is no terminal.
    """
    prompt = f"Password (at least {MIN_PASSWORD_CHARACTERS} characters)"
    for _ in range(PASSWORD_ATTEMPTS - 1 if file is None else 0):
        try:
            return send(read_secret(prompt, None, instead, confirm=True))
        except ApiError as error:
            if error.http_status != HTTPStatus.BAD_REQUEST:
                raise
            print_note(f"{error.message} Type another password, or press Ctrl-C to leave.")
    return send(read_secret(prompt, file, instead, confirm=True))


def _projects(client: AdministrationClient, user: JsonObject) -> list[str]:
    projects = client.list_all(path_of("users", str(user["id"]), "projects"), "projects")
    return sorted(str(each["name"]) for each in projects)


def _enable_user(
    client: AdministrationClient,
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Enable a user.

    Examples:
        clustercert user enable alice
    """
    user = find(client, "users", name, domain)
    show_one(client.update(path_of("users", str(user["id"])), enabled=True), output)
    print_note(f"Enabled the user {shown_name(client, user)}.")


def _disable_user(
    client: AdministrationClient,
    name: UserArgument,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Disable a user, and revoke their certificates.

    Also revokes their tokens. Their access keys do not work until the user is enabled again.

    Examples:
        clustercert user disable alice
    """
    user = find(client, "users", name, domain)
    confirm(lambda: _question_of_loss(client, user, "Disable the user?"), yes=yes)
    show_one(client.update(path_of("users", str(user["id"])), enabled=False), output)
    print_note(f"Disabled the user {shown_name(client, user)}.")
    print_note("Their certificates are revoked.")


def _block(
    client: AdministrationClient,
    name: AnyUserArgument,
    domain: AnyDomainOption = None,
    all_of_this_name: Annotated[
        bool, typer.Option("--all-of-this-name", help="Block every user who has this name.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Block a user of any identity system: end their logins, and revoke their certificates.

    Works for users of the built-in identity service, of OIDC issuers and of Keystone. The user's tokens and temporary
    access keys end. Until the user is unblocked, their logins fail and their access keys don't work. Prints which
    clusters still accept the certificates.

    Examples:
        clustercert user block alice
        clustercert user block sso/anna
    """
    named = named_users(client, name) if all_of_this_name else []
    users = [each for each in named if domain in (None, each["domain"])]
    # The text may be an id. `find_user` raises an error if nobody has this name or id.
    users = users or [find_user(client, name, domain=domain)]
    question = "Block the user?" if len(users) == 1 else f"Block these {len(users)} users?"
    confirm(
        lambda: " ".join(
            _question_of_loss(client, each, question if each is users[-1] else "").strip() for each in users
        ),
        yes=yes,
    )
    for user in users:
        _block_one(client, user)


def _block_one(client: AdministrationClient, user: JsonObject) -> None:
    blocked = client.post(path_of("users", str(user["id"]), "block"))
    print_note(f"Blocked the user {shown_user(blocked)}. Their logins have ended.")
    if (issuer := blocked["issuer"]) not in (None, BUILT_IN):
        print_note(
            f"The user's session at {issuer} is still active. If other services accept this session, end the session "
            f"at {issuer} too."
        )
    print_remaining_access(client, blocked)


def _unblock(client: AdministrationClient, name: AnyUserArgument, domain: AnyDomainOption = None) -> None:
    """Accept logins of a blocked or disabled user again. Their old certificates stay revoked.

    Examples:
        clustercert user unblock alice
    """
    user = find_user(client, name, domain=domain)
    client.post(path_of("users", str(user["id"]), "unblock"))
    print_note(f"Unblocked the user {shown_user(user)}.")


def _set_password(
    client: AdministrationClient,
    name: UserArgument,
    domain: DomainOption = None,
    password_file: PasswordFileOption = None,
) -> None:
    """Change a user's password. Ends their sessions, tokens and temporary access keys.

    Examples:
        clustercert user set-password alice
    """
    user = find(client, "users", name, domain)
    path = path_of("users", str(user["id"]), "password")
    _with_new_password(
        password_file, "add --password-file FILE", lambda password: client.put(path, {"password": password})
    )
    print_note(f"Changed the password of the user {shown_name(client, user)}.")


def _question_of_loss(
    client: AdministrationClient,
    user: JsonObject,
    question: str = "Delete the user with their access keys and roles?",
) -> str:
    """Return a confirmation question with the user's name and the number of certificates that will be revoked."""
    user_id = str(user["id"])
    who = f"{shown_user(user)} ({user_id})" if "name" in user else user_id
    return f"The user {who} {affected_certificates(client, user_id)}. {question}"


def _members(client: AdministrationClient, group: JsonObject) -> list[str]:
    members = client.list_all(path_of("groups", str(group["id"]), "members"), "members")
    return sorted(str(each["name"]) for each in members)


def _delete_group(
    client: AdministrationClient,
    name: GroupArgument,
    domain: DomainOption = None,
    revoke: RevokeOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a group. Its members lose the group's roles. Asks whether to revoke the members' certificates.

    Examples:
        clustercert group delete team-blue
    """
    group = find(client, "groups", name, domain)
    shown = shown_name(client, group)

    def question() -> str:
        members = len(_members(client, group))
        return (
            f"Delete the group {shown} ({group['id']}) with its roles? It has {members or 'no'} "
            f"member{'' if members == 1 else 's'}."
        )

    confirm(question, yes=yes)
    path, done = path_of("groups", str(group["id"])), f"Deleted the group {shown}."
    remove_role(client, path, _GROUP_PROJECTS, revoke, done, asks=not yes)


_GROUP_PROJECTS = "projects in which the group has a role"


def _add_user(
    client: AdministrationClient, name: GroupArgument, user: UserArgument, domain: DomainOption = None
) -> None:
    """Add a user to a group.

    Examples:
        clustercert group add-user team-blue alice
    """
    path, group, member = _membership(client, name, user, domain)
    client.put(path, {})
    print_note(f"Added the user {member} to the group {group}.")


def _remove_user(
    client: AdministrationClient,
    name: GroupArgument,
    user: UserArgument,
    domain: DomainOption = None,
    revoke: RevokeOption = None,
) -> None:
    """Remove a user from a group. Asks whether to revoke the user's certificates.

    Examples:
        clustercert group remove-user team-blue alice
    """
    path, group, member = _membership(client, name, user, domain)
    done = f"Removed the user {member} from the group {group}."
    remove_role(client, path, _GROUP_PROJECTS, revoke, done)


def _membership(
    client: AdministrationClient, name: str, user: str, domain: str | None
) -> tuple[str, str, str]:
    """Return the API path of a group membership, and the names of the group and the user."""
    group, member = find(client, "groups", name, domain), find(client, "users", user, domain)
    path = path_of("groups", str(group["id"]), "members", str(member["id"]))
    return path, shown_name(client, group), shown_name(client, member)


def _create_access_key(
    client: AdministrationClient,
    user: KeyOwnerOption,
    domain: DomainOption = None,
    description: DescriptionOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create an access key. Shows its secret once, and never again.

    Examples:
        clustercert access-key create --user alice
    """
    if output is Output.NAME:
        raise InvalidOption("The format `name` would not show the secret. Choose another format.")
    made = client.post(_keys_of_user(client, user, domain), {"description": description})
    row = {"access_key": made.pop("access_key"), "secret_key": made.pop("secret_key"), **made}
    show_one(with_times(row), output, name="access_key")


def _list_access_keys(
    client: AdministrationClient,
    user: KeyOwnerOption,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a user's access keys, including temporary ones.

    Examples:
        clustercert access-key list --user alice
    """
    found = [with_times(each) for each in client.list_all(_keys_of_user(client, user, domain), "access_keys")]
    columns = ("access_key", "enabled", "created_at", "expires_at", "description")
    show_list(found, output, columns=columns, name="access_key", keep=("enabled", "expires_at"))


def _keys_of_user(client: AdministrationClient, user: str, domain: str | None) -> str:
    """Return the API path of a user's access keys."""
    return path_of("users", str(find(client, "users", user, domain)["id"]), "access-keys")


def _question_of_access_key(_client: AdministrationClient, key: JsonObject) -> str:
    text = f" ({key['description']})" if key["description"] else ""
    return f"Delete the access key {key['access_key']}{text} of the user {key['user_id']}?"


def _loss_of_domain(client: AdministrationClient, named: JsonObject) -> str:
    domain = client.get(path_of("domains", str(named["id"])))
    in_domain = {"domain": str(domain["id"])}
    users = count_of(client.list_all("/users", "users", **in_domain), "user")
    projects = list(client.list_all("/projects", "projects", **in_domain))
    paths = [path_of("projects", str(each["id"])) for each in projects]
    clusters = count_of(
        chain.from_iterable(client.list_all(f"{path}/clusters", "clusters") for path in paths), "cluster"
    )
    logins = client.get(path_of("domains", str(domain["id"]), "logins"))
    return (
        f"The domain {domain['name']} has {users}, {counted(len(projects), 'project')}, {clusters} and"
        f" {_live(client, paths)}. {_ending(logins)} Until you enable the"
        " domain again, its users can't log in, their access keys don't work, and nobody gets certificates for its"
        " clusters. Certificates that exist stay valid. Disable the domain?"
    )


def _loss_of_project(client: AdministrationClient, project: JsonObject) -> str:
    path = path_of("projects", str(project["id"]))
    clusters = count_of(client.list_all(f"{path}/clusters", "clusters"), "cluster")
    return (
        f"The project {shown_name(client, project)} has {clusters} and {_live(client, [path])}. "
        f"{_ending(client.get(f'{path}/logins'))} Until you enable the project again, nobody can use the "
        "project or get certificates for its clusters. Certificates that exist stay valid. Disable the "
        "project?"
    )


def _live(client: AdministrationClient, projects: Sequence[str]) -> str:
    """Count the valid certificates for the clusters of projects, given by their API paths."""
    found = (client.list_all(f"{path}/certificates", "certificates", state="live") for path in projects)
    return count_of(chain.from_iterable(found), "valid certificate")


_LOGINS = {"sessions": "session", "tokens": "token", "temporary_keys": "temporary access key"}


def _ending(logins: JsonObject) -> str:
    """Return a sentence about the logins that end."""
    numbers = {noun: cast("int", logins[kind]) for kind, noun in _LOGINS.items()}
    counts = [counted(number, noun) for noun, number in numbers.items() if number]
    if not counts:
        return "No logins end."
    *others, last = counts
    subject = f"{', '.join(others)} and {last}" if others else last
    return f"{subject} {'ends' if sum(numbers.values()) == 1 else 'end'} permanently."


# The field that `show` adds to the fields of a resource, and the function that returns the field's value.
_DETAILS = {
    "user": ("projects", _projects),
    "group": ("members", _members),
}
# Functions that return the confirmation question before a deletion, if the question needs more than the object's
# fields.
_QUESTIONS: dict[str, Callable[[AdministrationClient, JsonObject], str]] = {
    "user": _question_of_loss,
    "access-key": _question_of_access_key,
}
# Functions that return the confirmation question before an object is disabled.
_LOSSES: dict[str, Callable[[AdministrationClient, JsonObject], str]] = {
    "domain": _loss_of_domain,
    "project": _loss_of_project,
}

domain = new_group("domain", {})
project = new_group("project", {})
user = new_group(
    "user",
    {
        "create": _create_user,
        "enable": _enable_user,
        "disable": _disable_user,
        "block": _block,
        "unblock": _unblock,
        "set-password": _set_password,
    },
)
group = new_group("group", {"delete": _delete_group, "add-user": _add_user, "remove-user": _remove_user})
access_key = new_group("access-key", {"create": _create_access_key, "list": _list_access_keys})
