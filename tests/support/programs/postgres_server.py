"""A PostgreSQL server with an empty database, for tests in another environment. Runs until standard input ends."""

import json
import sys

from support.postgres import server


def main() -> None:
    with server() as running:
        print(json.dumps({"url": running.create()}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
