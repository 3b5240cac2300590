"""A second real OIDC issuer on loopback with TLS, for tests: PyPI's oidc-provider-mock.

Takes a PEM file with key and certificate and a JSON object with the claims of each user, by `sub`. Writes {"url": …}.
Ends at the end of standard input.
"""

import json
import sys
import threading

from oidc_provider_mock import User, app
from werkzeug.serving import make_server


def main(pem: str, claims: str) -> None:
    users = [User(sub=sub, claims=said) for sub, said in json.loads(claims).items()]
    server = make_server("127.0.0.1", 0, app(user_claims=users), threaded=True, ssl_context=(pem, pem))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"url": f"https://127.0.0.1:{server.server_port}"}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
