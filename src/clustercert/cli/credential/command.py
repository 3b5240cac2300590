"""The arguments, options and help of `clustercert credential`, the exec plugin of kubectl."""

import sys
from typing import Annotated

import typer


def credential(
    cluster: Annotated[
        str | None,
        typer.Argument(
            metavar="[CLUSTER]",
            help="Name, DOMAIN/PROJECT/CLUSTER or id of the cluster. [default: from provideClusterInfo]",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[str | None, typer.Option(metavar="NAME", help="Login to use.")] = None,
    project: Annotated[
        str | None, typer.Option(metavar="ID", help="Project of the cluster. [default: the login's project]")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            metavar="DOMAIN/NAME",
            help="User who must be logged in. [default: any user]",
            show_default=False,
        ),
    ] = None,
    expires_in: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Lifetime such as 30m or 8h. [default: 8h, or the policy's limit if it is shorter]",
        ),
    ] = None,
    service_key: Annotated[
        bool, typer.Option("--service-key", help="Let the service create the private key.")
    ] = False,
    access_request: Annotated[
        str | None,
        typer.Option("--request", metavar="REQUEST", help="Id of the access request to use. Only for jobs."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Get a new certificate, even if the cache has a valid one.")
    ] = False,
) -> None:
    """Print a client certificate, as an exec plugin of kubectl.

    kubectl runs this command. `clustercert kubeconfig merge` writes kubeconfig entries that name the command.

    Examples:
        clustercert credential prod --profile default --refresh
    """
    import os

    from clustercert.cli.credential.entry import print_credential
    from clustercert.cli.credential.request import CredentialRequest

    request = CredentialRequest()
    request.cluster, request.profile, request.project = cluster, profile, project
    request.user, request.expires_in, request.service_key, request.refresh = (
        user,
        expires_in,
        service_key,
        refresh,
    )
    request.access_request = access_request
    sys.exit(print_credential(request, os.environ.get("KUBERNETES_EXEC_INFO")))
