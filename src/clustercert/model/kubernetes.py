"""Reserved names of Kubernetes and of this service."""

# Source: kube-apiserver, staging/src/k8s.io/apiserver/pkg/authentication/user/user.go.
MASTERS = "system:masters"
NODES = "system:nodes"
"""The group of kubelets. The Node authorizer limits its members, whose user names begin with `NODE_PREFIX`."""

NODE_PREFIX = "system:node:"

AUTHENTICATED = "system:authenticated"
# Every caller is in one of these groups.
GROUPS_OF_EVERYBODY = (AUTHENTICATED, "system:unauthenticated")

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
"""The `extra` key with a request's credential id, since kube-apiserver 1.32."""

X509_ID = "X509SHA256="
"""The prefix of a client certificate's credential id; the fingerprint follows."""

OUR_PREFIX = "clustercert:"
"""The prefix of the user and group names that this service assigns itself."""

SERVICE = "clustercert:service"
"""The user name and the group of this service in clusters."""
