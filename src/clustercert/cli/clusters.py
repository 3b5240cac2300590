"""`clustercert clusters`: lists the clusters that the logged-in user can reach."""

from clustercert.cli.commands import expand_options
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.options import OnlyProjectOption, ProjectDomainOption
from clustercert.cli.output import Output, OutputOption, show_list, with_domain


@expand_options
def clusters(
    login: LoginOptions,
    project: OnlyProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the clusters in all your projects."""
    from clustercert.cli.lookup import reachable_clusters

    chosen = login.profile()
    with chosen.explain_rejection(), chosen.client() as client:
        found = reachable_clusters(client, project, domain)
    rows = [
        {
            "name": each.name,
            "project": each.project,
            "domain": each.domain,
            "id": each.id,
            "project_id": each.project_id,
        }
        for each in found
    ]
    show_list(rows, output, columns=with_domain(("name", "project", "id"), rows))
