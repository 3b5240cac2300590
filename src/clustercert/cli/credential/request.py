"""The options of a call of the exec plugin. Each call imports this module, so it imports almost nothing."""

from clustercert.cli.credential import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clustercert.model.choices import CredentialKind


class CredentialRequest:
    """The options of one call of the exec plugin.

    Attributes:
        cluster: the cluster's id or name; the module `renewal` replaces a name by the id. `None` if kubectl sends the
            id, which needs `provideClusterInfo` in the kubeconfig.
        project: the project's id or name; the module `renewal` replaces a name by the id. `None` for the default
            project.
        profile: name of the saved login; `None` for the default profile.
        user: the user who must be logged in, as DOMAIN/NAME; `None` for any user.
        access_request: the access request whose groups the certificate has; `None` for only the standing groups. The
            option `--request` names it for a job; with a saved login, the mark beside the cache file names it.
        kind: the kind of the cluster's credentials, `certificate` or `token`; `None` if it is not known yet.
        version: API version of the ExecCredential.
    """

    __slots__ = (
        "access_request",
        "cluster",
        "expires_in",
        "kind",
        "profile",
        "project",
        "refresh",
        "service_key",
        "user",
        "version",
    )

    def __init__(self) -> None:
        self.cluster: str | None = None
        self.profile: str | None = None
        self.project: str | None = None
        self.user: str | None = None
        self.expires_in: str | None = None
        self.access_request: str | None = None
        self.kind: CredentialKind | None = None
        self.service_key = False
        self.refresh = False
        self.version = "v1"

    def cache_path(self) -> str | None:
        """Return the cache file of this credential, or `None` if the cluster, profile or project is not known yet.

        Cache files are named by ids, so a cluster or project given by name has no cache file.
        """
        if self.cluster is None or self.profile is None or self.project is None:
            return None
        return cache.path_of(self.profile, self.project, self.cluster)
