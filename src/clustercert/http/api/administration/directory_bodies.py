"""Bodies of the administration API for domains, projects, users and groups."""

from pydantic import BaseModel, Field

from clustercert.http.api.administration.changes import ResourceBody
from clustercert.model import Domain, Group, JsonObject, Project, User

Labels = dict[str, str]
LABELS = "Labels, as in Kubernetes."
KEPT = "If it is not sent, an existing object stays as it is."


class DomainRequest(ResourceBody):
    """The wanted state of a domain."""

    enabled: bool = Field(
        default=True, description=f"False locks out its users and disables its projects. {KEPT}"
    )


class ProjectRequest(ResourceBody):
    """The wanted state of a project."""

    id: str | None = Field(
        default=None,
        description="For a new project, the id that it has in Keystone. By default, it gets a new one.",
        json_schema_extra={"pattern": "^[0-9a-f]{32}$"},
    )
    description: str = Field(default="", json_schema_extra={"maxLength": 255})
    enabled: bool = Field(default=True, description=f"Roles in a disabled project have no effect. {KEPT}")
    labels: Labels = Field(default={}, description=LABELS)


class UserRequest(ResourceBody):
    """The wanted state of a user."""

    enabled: bool = Field(default=True, description=f"Disabling revokes all certificates of the user. {KEPT}")
    labels: Labels = Field(default={}, description=LABELS)
    password: str | None = Field(
        default=None,
        description="Only for a new user, who can otherwise use only access keys.",
        json_schema_extra={"minLength": 8, "maxLength": 1024},
    )


class GroupRequest(ResourceBody):
    """The wanted state of a group."""

    labels: Labels = Field(default={}, description=LABELS)


class DomainBody(BaseModel):
    """A domain, which owns projects, users and groups."""

    id: str
    name: str
    enabled: bool


class _InDomain(BaseModel):
    id: str
    name: str
    domain: str
    domain_id: str
    labels: Labels


class ProjectBody(_InDomain):
    """A project, which owns clusters."""

    description: str
    enabled: bool


class UserBody(_InDomain):
    """A user. The id is in the user's certificates."""

    enabled: bool


class GroupBody(_InDomain):
    """A group of users, who have its roles."""


class _Page(BaseModel):
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


class DomainListBody(_Page):
    """A page of domains, sorted by id."""

    domains: list[DomainBody]


class ProjectListBody(_Page):
    """A page of projects, sorted by id."""

    projects: list[ProjectBody]


class UserListBody(_Page):
    """A page of users, sorted by id."""

    users: list[UserBody]


class GroupListBody(_Page):
    """A page of groups, sorted by id."""

    groups: list[GroupBody]


def domain_view(domain: Domain) -> JsonObject:
    return {"id": domain.id, "name": domain.name, "enabled": domain.enabled}


def project_view(project: Project) -> JsonObject:
    return {**group_view(project), "description": project.description, "enabled": project.enabled}


def user_view(user: User) -> JsonObject:
    return {**group_view(user), "enabled": user.enabled}


def group_view(entity: Project | User | Group) -> JsonObject:
    return {
        "id": entity.id,
        "name": entity.name,
        "domain": entity.domain.name,
        "domain_id": entity.domain.id,
        "labels": dict(sorted(entity.labels.items())),
    }
