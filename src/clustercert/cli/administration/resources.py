"""The resources of the administration API, with the texts of commands and the fields of YAML documents.

The administration commands, `apply`, `export` and the completion of names use the table `RESOURCES`. The command line
imports this module at start-up, so the module imports no package except Typer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, get_args

import typer

from clustercert.cli.options import DescriptionOption
from clustercert.model.choices import WebhookMode
from clustercert.model.clusters import cluster_properties

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
MAPPING: Schema = {"type": "object", "additionalProperties": {"type": "string"}}

# Marks a field without a default. `None` can't be the mark, because some fields have the default `None`.
NO_DEFAULT = object()
# Marks a command with its own function in `administration`. The function's docstring is the help text.
_SPECIAL = ""


@dataclass(frozen=True, slots=True)
class Field:
    """A field that the owner of a resource sets.

    Attributes:
        schema: JSON Schema of the field in YAML documents; `None` if the documents don't have the field.
        default: the value if the field is not given; `NO_DEFAULT` for a field without a default.
        is_required: whether YAML documents must have the field.
        option: the annotated type of the option that the command `create` has for this field; `None` for no option.
    """

    name: str
    schema: Schema | None = None
    default: object = NO_DEFAULT
    is_required: bool = False
    option: Any = None


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object in the API.

    Attributes:
        noun: the name of the resource in commands, in the singular.
        plural: the name of the resource in API paths.
        help: help text of the command group.
        commands: help text of each command, in the order in which the commands are listed.
        columns: columns that the command `list` shows.
        is_in_domain: whether names are unique only within a domain.
        key: the field by which commands name an object.
        argument: help text of the argument that names an object.
        new_name: help text of the argument of `create` that names the new object.
        example: the name of an object in the examples of the help texts.
        question: the question before a deletion, with fields of the object in braces.
        after_deletion: the end of the message after a deletion.
        after_disabling: the end of the message after an object was disabled.
        kind: the `kind` of YAML documents for this resource; empty if the resource has no YAML documents.
        metadata: the fields in `metadata` of a YAML document besides the name.
        fields: the fields that the owner of an object sets.
    """

    noun: str
    plural: str
    help: str
    commands: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    is_in_domain: bool = False
    key: str = "name"
    argument: str = ""
    new_name: str = ""
    example: str = ""
    question: str = ""
    after_deletion: str = ""
    after_disabling: str = ""
    kind: str = ""
    metadata: tuple[Field, ...] = ()
    fields: tuple[Field, ...] = ()

    @property
    def title(self) -> str:
        """The name of the resource in messages."""
        return self.noun.replace("-", " ")

    @property
    def metavar(self) -> str:
        """The metavar of arguments and options that name an object."""
        return self.noun.replace("-", "_").upper()

    @property
    def name_argument(self) -> Any:
        """The argument that names an object."""
        forms = "Name, DOMAIN/NAME or id" if self.is_in_domain else "Name or id"
        return typer.Argument(metavar=self.metavar, help=self.argument or f"{forms} of the {self.title}.")

    @property
    def new_name_argument(self) -> Any:
        """The argument that names a new object."""
        return typer.Argument(metavar="NAME", help=self.new_name or f"Name of the {self.title}.")

    @property
    def has_labels(self) -> bool:
        return _LABELS in self.metadata

    @property
    def defaults(self) -> dict[str, object]:
        """The values of fields that are not given."""
        return {each.name: each.default for each in self.fields if each.default is not NO_DEFAULT}


_ENABLED = Field(
    "enabled",
    FLAG
    | {"description": "Without this field, a new object is enabled, and an existing object keeps its state."},
    default=True,
)
_DOMAIN = Field(
    "domain",
    NAME | {"description": "The domain in which names are looked up. By default, the caller's domain."},
)
_LABELS = Field("labels", MAPPING)
_CLUSTER_PROJECT = Field(
    "project", NAME | {"description": "The project that owns the cluster."}, is_required=True
)
_ID_OPTION = typer.Option(
    "--id", metavar="ID", help="Id of the project in Keystone, 32 hex digits. [default: a new id]"
)

_SCHEMAS: dict[Any, Schema] = {
    bool: FLAG,
    tuple[str, ...]: TEXTS,
    Mapping[str, str]: MAPPING,
    Mapping[str, str] | None: MAPPING,
    Mapping[str, tuple[str, ...]]: {"type": "object", "additionalProperties": TEXTS},
    WebhookMode: {"enum": list(get_args(WebhookMode))},
}


def _cluster_fields() -> Iterator[Field]:
    """Yield the fields of a cluster's YAML document, from the declarations in `clustercert.model.clusters`."""
    for each in cluster_properties():
        limits = {"minimum": each.declaration.minimum, "maximum": each.declaration.maximum}
        text = TEXT if each.default == "" else NAME
        schema = {"type": "integer", **limits} if each.type is int else _SCHEMAS.get(each.type, text)
        if each.name != "labels":
            yield Field(each.name, schema, NO_DEFAULT if each.default is MISSING else each.default)


# All resources, in the order in which `apply` creates their objects.
RESOURCES = {
    resource.noun: resource
    for resource in (
        Resource(
            noun="domain",
            example="acme",
            plural="domains",
            help="Manage domains, which own users and projects.",
            commands={
                "create": "Create a domain.",
                "list": "List the domains.",
                "enable": "Enable a domain, so that its users can log in again.",
                "disable": "Disable a domain with its users and projects, and end the logins of its users. "
                "Issued certificates stay valid until they expire. If the command is "
                "interrupted, run the command again.",
                "delete": "Delete a domain that has no projects, users or groups.",
            },
            columns=("id", "name", "enabled"),
            question="Delete the domain {name} ({id})?",
            after_disabling=" Certificates that were issued before stay valid until they expire. List them with"
            " `clustercert certificate list --all --state live`, and revoke them with `clustercert certificate"
            " revoke --user USER --everywhere` or `--cluster CLUSTER`.",
            kind="Domain",
            fields=(_ENABLED,),
        ),
        Resource(
            noun="project",
            example="eu-de",
            plural="projects",
            help="Manage projects, which own clusters.",
            commands={
                "create": "Create a project. For a project of Keystone, give its id in Keystone with --id.",
                "list": "List the projects.",
                "show": "Show a project.",
                "enable": "Enable a project, so that its members can use it again.",
                "disable": "Disable a project: its members can't use the project, and its tokens end. "
                "Issued certificates stay valid until they expire. If the command is "
                "interrupted, run the command again.",
                "delete": "Delete a project that has no clusters.\n\nAlso deletes its role assignments and tokens.",
            },
            columns=("id", "name", "domain", "enabled", "description"),
            is_in_domain=True,
            new_name="Name of the project. The vendors' SDKs expect the region's name.",
            question="Delete the project {name} ({id}) with its role assignments and tokens?",
            after_disabling=" Certificates that were issued before stay valid until they expire. List them with"
            " `clustercert certificate list --project PROJECT --state live`, and revoke them with `clustercert"
            " certificate revoke --cluster CLUSTER`.",
            kind="Project",
            metadata=(_DOMAIN, _LABELS),
            fields=(
                Field("id", option=Annotated[str | None, _ID_OPTION]),
                Field("description", TEXT, default="", option=DescriptionOption),
                _ENABLED,
            ),
        ),
        Resource(
            noun="user",
            example="alice",
            plural="users",
            help="Manage users of the built-in identity service.",
            commands={
                "create": _SPECIAL,
                "list": "List the users.",
                "show": "Show a user. The id is the common name of their certificates.",
                "enable": _SPECIAL,
                "disable": _SPECIAL,
                "block": _SPECIAL,
                "unblock": _SPECIAL,
                "delete": "Delete a user, and revoke their certificates.\n\nAlso deletes their tokens, access keys, "
                "roles and memberships.",
                "set-password": _SPECIAL,
            },
            columns=("id", "name", "domain", "enabled"),
            is_in_domain=True,
            after_deletion=" Their certificates are revoked.",
            kind="User",
            metadata=(_DOMAIN, _LABELS),
            fields=(_ENABLED,),
        ),
        Resource(
            noun="group",
            example="team-blue",
            plural="groups",
            help="Manage groups, which give their roles to all their members.",
            commands={
                "create": "Create a group.",
                "list": "List the groups.",
                "show": "Show a group and its members.",
                "delete": _SPECIAL,
                "add-user": _SPECIAL,
                "remove-user": _SPECIAL,
            },
            columns=("id", "name", "domain"),
            is_in_domain=True,
            kind="Group",
            metadata=(_DOMAIN, _LABELS),
            fields=(
                Field(
                    "members",
                    TEXTS
                    | {
                        "description": "All members, by name, DOMAIN/NAME or id. Without this field, members do not "
                        "change."
                    },
                ),
            ),
        ),
        Resource(
            noun="role",
            example="deployer",
            plural="roles",
            help="Manage roles, which the policy maps to Kubernetes groups.",
            commands={
                "create": "Create a role, which rules of the policy can name. `admin`, `member` and `reader` exist "
                "already.",
                "delete": "Delete a role that is not assigned.",
                "assign": _SPECIAL,
                "unassign": _SPECIAL,
                "list": _SPECIAL,
            },
            argument="Role: admin, member, reader, operator or any other.",
            question="Delete the role {name} ({id})?",
            kind="Role",
        ),
        Resource(
            noun="role-binding",
            plural="assignments",
            help="Assignments of a role to users and groups.",
            key="id",
            kind="RoleBinding",
            metadata=(_DOMAIN,),
            fields=(
                Field("role", NAME, is_required=True),
                Field("project", NAME | {"description": "The project. Give either `project` or `service`."}),
                Field("service", {"const": True, "description": "The role is valid in the whole service."}),
                Field("users", TEXTS | {"description": "Users, by name, DOMAIN/NAME or id."}),
                Field("groups", TEXTS | {"description": "Groups, by name, DOMAIN/NAME or id."}),
            ),
        ),
        Resource(
            noun="access-key",
            example="HPUA7VDZXJQ2M4KTBN5C",
            plural="access-keys",
            help="Manage access keys (AK/SK), which sign requests.",
            commands={
                "create": _SPECIAL,
                "list": _SPECIAL,
                "enable": "Enable an access key.",
                "disable": "Disable an access key, and delete all temporary keys of its user.",
                "delete": "Delete an access key, and all temporary keys of its user.",
            },
            key="access_key",
            argument="The access key (AK).",
        ),
        Resource(
            noun="cluster",
            plural="clusters",
            help="Manage the clusters for which certificates are issued.",
            kind="Cluster",
            metadata=(_DOMAIN, _CLUSTER_PROJECT, _LABELS),
            fields=(
                Field(
                    "kubeconfig",
                    NAME
                    | {
                        "description": "A kubeconfig file that contains the address and the CA. The path "
                        "is relative to the document's file."
                    },
                ),
                Field(
                    "context",
                    NAME
                    | {"description": "The context in the kubeconfig file. By default, its current context."},
                ),
                *_cluster_fields(),
            ),
        ),
    )
}
