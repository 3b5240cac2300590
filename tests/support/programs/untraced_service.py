"""A service without traces issues a certificate. Prints the names of all loaded modules. Argument: FOLDER."""

import json
import sys
from pathlib import Path

from support import world as worlds
from support.service import Service


def main(folder: Path) -> None:
    world = worlds.make(folder)
    with Service(world.settings()).running() as service:
        headers = world.people["admin"].headers
        assert service.client.post(world.path(), json={"duration": 1}, headers=headers).status_code == 200
        assert service.client.get("/v3").status_code == 200
    sys.stdout.write(json.dumps(sorted(sys.modules)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
