"""`clustercert demo`: from nothing to a kubeconfig, with no configuration.

It makes what an operator would make by hand, keeps its secrets in a file of mode 0600 in the data folder, serves on
loopback, and then is its own first client over HTTP. Everything lies in one folder, the key-encryption key beside what
it protects: a demo's, not production's.
"""

import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from clustercert import server
from clustercert.demo.guide import SERVER_LOG, Guide
from clustercert.demo.tenants import KEK_FILE, REGION, Say, prepared
from clustercert.private_file import make_private_folder, write_private
from clustercert.settings import DEMO_FILE, Settings, SettingsError, load

__all__ = ["KEK_FILE", "DemoOptions", "run"]

# A documentation address (RFC 5737): no API server of the demo's answers anywhere.
EXTERNAL_URL = "https://203.0.113.10:5443"
TLS_NAMES = {"127.0.0.1", "localhost"}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says.

    Attributes:
        port: 0 takes any free one.
        with_eip: the cluster has an external address.
        tenants: further projects, each with a user and a cluster.
        tls: serve https, with a pair that is made in the data folder.
        as_json: one JSON object on standard output, everything else on standard error.
    """

    data_dir: Path
    port: int
    workers: int = 1
    with_eip: bool = False
    tenants: int = 0
    tls: bool = False
    as_json: bool = False


def run(options: DemoOptions) -> None:
    """Set up, serve, show, until Ctrl-C. Raises ClustercertError with one sentence for what is in the way."""

    def say(line: str = "") -> None:
        print(line, file=sys.stderr if options.as_json else sys.stdout, flush=True)

    folder = _folder(options.data_dir, say)
    settings = _settings(options, folder)
    listener = server.listener(settings.server.host, options.port)
    tenants = server.run_interruptible(
        prepared(settings, options.tenants, EXTERNAL_URL if options.with_eip else None, say)
    )
    files = server.self_signed(folder, TLS_NAMES) if options.tls else None
    url = f"{'https' if files else 'http'}://{settings.server.host}:{listener.getsockname()[1]}"
    say(f"Starting {settings.server.workers} worker(s) on {url}; their log is {folder / SERVER_LOG}")
    guide = Guide(url, files.ca if files else None, folder, tenants, as_json=options.as_json, say=say)
    show = threading.Thread(target=guide.show, daemon=True)
    server.run(settings, listener, files, on_start=show.start)
    if guide.failure is not None:
        raise guide.failure
    say("Stopped.")


def _folder(data_dir: Path, say: Say) -> Path:
    """The data folder, made if need be. Raises SettingsError where it isn't ours to use."""
    folder = data_dir.absolute()
    fresh = not folder.exists()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / DEMO_FILE).exists():
            if any(folder.iterdir()):
                raise SettingsError(
                    f"The folder {folder} has something else in it. Choose another with --data-dir."
                )
            make_private_folder(folder)
            write_private(folder / DEMO_FILE, json.dumps({"tenants": []}))
    except OSError as error:
        raise SettingsError(
            f"The data folder {folder} can't be used: {error.strerror}. Choose another with --data-dir."
        ) from error
    say(f"{'Made' if fresh else 'Using'} the data folder {folder}")
    return folder


def _settings(options: DemoOptions, folder: Path) -> Settings:
    # What the environment says of another store, its keys and its address is not the demo's.
    address = {"host": "127.0.0.1", "port": options.port, "public_url": None}
    return load(
        None,
        data_dir=folder,
        database_url=None,
        kek=None,
        kek_file=folder / KEK_FILE,
        server=address | {"workers": options.workers, "tls_certificate": None, "tls_key": None},
        identity={"region": REGION},
        log={"file": folder / SERVER_LOG, "format": "json"},
    )
