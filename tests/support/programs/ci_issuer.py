"""An OIDC issuer for jobs: tokens like those of GitHub, GitLab and a Kubernetes service account. Argument: FOLDER.

Prints a JSON object, and serves until the end of its standard input.

    keys_file: the public keys, for settings.
    ca_file: of the server at request_url.
    request_url: answers like GitHub's address for a job's token, with the audience `clustercert`.
    gitlab, service_account: tokens.
"""

import json
import sys
from pathlib import Path

from support.issuer_tokens import GITHUB, GITLAB, KUBERNETES, fresh
from support.oidc import IssuerServer, Response, key_set, signed

PROTECTED = {"ref_path": "refs/heads/main", "ref_protected": "true"}


def main(folder: Path) -> None:
    with IssuerServer(folder).running() as issuer:
        key, keys = issuer.keys[-1], folder / "jwks"
        keys.write_bytes(key_set(key))
        github = signed(fresh(GITHUB), key)
        issuer.responses["/token?api-version=2.0&audience=clustercert"] = Response(
            json.dumps({"value": github}).encode()
        )
        account = KUBERNETES["kubernetes.io"] | {
            "namespace": "argocd",
            "serviceaccount": {"name": "clustercert", "uid": "1"},
        }
        changed = {"kubernetes.io": account, "sub": "system:serviceaccount:argocd:clustercert"}
        report = {
            "keys_file": str(keys),
            "ca_file": str(issuer.ca_file),
            "request_url": f"{issuer.url}/token?api-version=2.0",
            "gitlab": signed(fresh(GITLAB, **PROTECTED), key),
            "service_account": signed(fresh(KUBERNETES, **changed), key),
        }
        print(json.dumps(report), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
