"""Our own API, below `/clustercert/v1`, and the operations endpoints."""

OWN = "/clustercert/v1"
IN_PROJECT = OWN + "/projects/{project_id}"
IN_CLUSTER = IN_PROJECT + "/clusters/{cluster_id}"
