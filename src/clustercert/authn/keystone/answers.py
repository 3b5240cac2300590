"""Models of Keystone's answers, parsed strictly. Members that the service does not need are ignored.

Source: Identity API v3.14.
"""

from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

MAX_ROLES = 1000
MAX_GROUPS = 500
# Keystone generates secrets of 32 hex digits. Users can choose their own secrets: reject short secrets.
MIN_SECRET = 16

Id = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
Name = Annotated[str, Field(min_length=1, max_length=255)]
M = TypeVar("M", bound=BaseModel)


class UnusableAnswer(Exception):
    """An answer from Keystone does not have the documented format. The message says what is wrong, without secrets."""


class UnusableObject(UnusableAnswer):
    """The answer contains an object, such as a token or a user, with an unexpected format."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)


class DomainReference(_Answer):
    """The domain that an object, such as a user, belongs to."""

    id: Id
    name: Name


class UserReference(_Answer):
    """The user of a token."""

    id: Id
    name: Name
    domain: DomainReference


class IdReference(_Answer):
    """A reference to an object by its id."""

    id: Id


class RoleReference(_Answer):
    """A role of a token or an assignment."""

    name: Name


class ApplicationCredential(_Answer):
    """The application credential that created a token.

    Access rules limit an application credential to some paths of OpenStack services.
    """

    id: Id
    access_rules: list[Any] | None = None


class TokenBody(_Answer):
    """Keystone's description of a token."""

    methods: Annotated[list[Name], Field(max_length=16)]
    user: UserReference
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    project: IdReference | None = None
    domain: IdReference | None = None
    system: dict[str, bool] | None = None
    roles: Annotated[list[RoleReference], Field(max_length=MAX_ROLES)] = []
    application_credential: ApplicationCredential | None = None
    trust: dict[str, Any] | None = Field(default=None, alias="OS-TRUST:trust")
    oauth1: dict[str, Any] | None = Field(default=None, alias="OS-OAUTH1")
    oauth2: dict[str, Any] | None = Field(default=None, alias="oauth2_credential")


class TokenAnswer(_Answer):
    """The answer to GET and POST /v3/auth/tokens."""

    token: TokenBody


class GroupBody(_Answer):
    """A group that a user belongs to."""

    id: Id
    name: Name
    domain_id: Id


class _List(_Answer):
    """A list. Keystone truncates a list that exceeds a limit in Keystone's configuration, and sets `truncated`."""

    truncated: bool = False


class GroupsAnswer(_List):
    """The answer to GET /v3/users/{id}/groups."""

    groups: list[GroupBody]


class UserBody(_Answer):
    """A user."""

    id: Id
    name: Name
    domain_id: Id
    enabled: bool


class UserAnswer(_Answer):
    """The answer to GET /v3/users/{id}."""

    user: UserBody


class ProjectBody(_Answer):
    """A project."""

    id: Id
    name: Name
    domain_id: Id
    enabled: bool


class ProjectAnswer(_Answer):
    """The answer to GET /v3/projects/{id}."""

    project: ProjectBody


class ProjectsAnswer(_Answer):
    """The answer to GET /v3/auth/projects."""

    projects: list[ProjectBody]


class DomainBody(_Answer):
    """A domain."""

    id: Id
    name: Name
    enabled: bool


class DomainAnswer(_Answer):
    """The answer to GET /v3/domains/{id}."""

    domain: DomainBody


class AssignmentScope(_Answer):
    """The scope of a role assignment. Scopes other than projects are ignored."""

    project: IdReference | None = None


class Assignment(_Answer):
    """A role assignment. Effective role assignments always have a user."""

    role: RoleReference
    scope: AssignmentScope
    user: IdReference | None = None


class AssignmentsAnswer(_List):
    """The answer to GET /v3/role_assignments?effective&include_names."""

    role_assignments: Annotated[list[Assignment], Field(max_length=MAX_ROLES)]


class Ec2Blob(_Answer):
    """The content of an EC2 credential.

    If the credential was created under a delegation, `trust_id`, `app_cred_id` or `access_token_id` is set.
    """

    access: Annotated[str, Field(min_length=1, max_length=64)]
    secret: Annotated[str, Field(min_length=MIN_SECRET, max_length=255, repr=False)]
    trust_id: str | None = None
    app_cred_id: str | None = None
    access_token_id: str | None = None

    @property
    def is_delegated(self) -> bool:
        return bool(self.trust_id or self.app_cred_id or self.access_token_id)


class CredentialBody(_Answer):
    """A credential. The field `blob` is parsed only if `type` is `ec2`."""

    id: Id
    type: Name
    user_id: Id
    project_id: Id | None = None
    blob: Annotated[str, Field(max_length=65535, repr=False)]


class CredentialAnswer(_Answer):
    """The answer to GET /v3/credentials/{id}."""

    credential: CredentialBody


def parsed(model: type[M], content: bytes) -> M:
    """Parse an answer.

    Raises UnusableAnswer or UnusableObject. The error's message names the first wrong member of the answer, but does
    not contain the member's value.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        kind = UnusableObject if len(first["loc"]) > 1 else UnusableAnswer
        raise kind(f"{model.__name__} {where}: {first['type']}") from None
