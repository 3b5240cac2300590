"""HTTP: translates requests into calls of use cases, and their results into responses."""

OWN = "/clustercert/v1"
IN_PROJECT = OWN + "/projects/{project_id}"
IN_CLUSTER = IN_PROJECT + "/clusters/{cluster_id}"
