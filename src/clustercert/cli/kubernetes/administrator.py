"""The options that name an administrator's kubeconfig, for clusters whose credentials are tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import FollowFilesOption, KubeContextOption, require_kubeconfig

if TYPE_CHECKING:
    from clustercert.cli.cluster.token_access import Administrator
    from clustercert.model import Cluster


@dataclass(frozen=True, slots=True)
class AdministratorOptions:
    """The administrator's kubeconfig.

    Only this command uses the credential in the kubeconfig, and does not store it.
    """

    from_kubeconfig: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Kubeconfig of an administrator of the whole cluster, or standard input (-), for a cluster whose"
            " credentials are tokens. Programs in the kubeconfig are not run.",
        ),
    ] = None
    kube_context: KubeContextOption = None
    follow_files: FollowFilesOption = False

    @property
    def is_given(self) -> bool:
        """Whether one of the options was given."""
        return self.from_kubeconfig is not None or self.kube_context is not None or self.follow_files

    def administrator(self, cluster: "Cluster") -> "Administrator | None":
        """Return the administrator's access to a cluster, or None without a kubeconfig.

        Raises CommandError, also if the kubeconfig is of another cluster.
        """
        from clustercert.cli.cluster.token_access import Administrator, require_known_server
        from clustercert.cli.kubeconfig import cluster_import

        if self.from_kubeconfig is None:
            require_kubeconfig(self.kube_context, follow_files=self.follow_files)
            return None
        found = cluster_import.read(
            self.from_kubeconfig,
            self.kube_context,
            need_ca=True,
            follow_files=self.follow_files,
            need_credential=True,
        )
        administrator = Administrator(found.server, found.ca_pem or b"", found)
        addresses = {cluster.internal_url, cluster.external_url, *cluster.san_urls}
        require_known_server(administrator, addresses, cluster.server_ca_pem)
        return administrator
