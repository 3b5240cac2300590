"""`clustercert demo`: a service and a first kubeconfig, without any configuration.

The demo sets up a service as an operator would, serves it on loopback, and then requests a kubeconfig over HTTP. The
data and the key-encryption key are in the same folder, which is not safe in production.
"""

import functools
import json
import sys
import threading
from pathlib import Path

from clustercert.demo.guide import SERVER_LOG, Guide
from clustercert.demo.tenants import KEK_FILE, REGION, Say, set_up_tenants
from clustercert.secure_file import make_private_folder, write_private
from clustercert.server import serving, tls_files
from clustercert.server.file_watch import FileWatch
from clustercert.settings import DEMO_FILE, Settings, SettingsError, load

# An address that RFC 5737 reserves for documentation. No API server runs at this address.
EXTERNAL_URL = "https://203.0.113.10:5443"
# Something to ask for. The demo's only user in a project can't approve a request of their own, so it needs no approval.
_ON_REQUEST = {
    "name": "debug-on-request",
    "when": {"roles": ["admin"]},
    "offer": {"groups": ["demo:debuggers"], "max_lifetime": "1h", "approvals": []},
}
TLS_NAMES = {"127.0.0.1", "localhost"}


def run(
    data_dir: Path,
    port: int,
    *,
    workers: int = 1,
    with_eip: bool = False,
    tenants: int = 0,
    tls: bool = False,
    as_json: bool = False,
) -> None:
    """Set up and serve the demo until Ctrl-C. Raises ClustercertError.

    Args:
        port: the port on loopback; 0 for any free port.
        with_eip: give the clusters an external address.
        tenants: number of additional projects, each with a user and a cluster.
        tls: serve HTTPS with a self-signed certificate.
        as_json: print one JSON object to standard output, and all other text to standard error.
    """

    def say(line: str = "") -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    serving.end_on_interrupt()
    folder = _folder(data_dir, say)
    load_settings = functools.partial(_settings, folder, port, workers)
    settings = load_settings()
    listener = serving.listener(settings.server.host, port)
    known = serving.run_interruptible(
        set_up_tenants(settings, tenants, EXTERNAL_URL if with_eip else None, say)
    )
    files = tls_files.self_signed(folder, TLS_NAMES) if tls else None
    url = f"{'https' if files else 'http'}://{settings.server.host}:{listener.address[1]}"
    say(f"Starting {settings.server.workers} worker(s) on {url}; their log is {folder / SERVER_LOG}")
    guide = Guide(url, files.ca if files else None, folder, known, as_json, say)
    show = threading.Thread(target=guide.show, daemon=True)
    serving.run(
        settings,
        listener,
        files,
        load=load_settings,
        watch=FileWatch(None),
        on_start=show.start,
        keep_process=True,
    )
    if guide.failure is not None:
        raise guide.failure
    say("Stopped.")


def _folder(data_dir: Path, say: Say) -> Path:
    """Create the data folder, or use the folder of an earlier demo. Raises SettingsError."""
    folder = data_dir.absolute()
    fresh = not folder.exists()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / DEMO_FILE).exists():
            if any(folder.iterdir()):
                raise SettingsError(
                    f"The folder {folder} contains other files. Choose another folder with --data-dir."
                )
            make_private_folder(folder)
            write_private(folder / DEMO_FILE, json.dumps({"tenants": []}))
    except OSError as error:
        raise SettingsError(
            f"Can't use the data folder {folder}: {error.strerror}. Choose another folder with --data-dir."
        ) from error
    say(f"{'Created' if fresh else 'Using'} the data folder {folder}")
    return folder


def _settings(folder: Path, port: int, workers: int) -> Settings:
    # Override settings in environment variables, which may be meant for another service.
    address = {"host": "127.0.0.1", "port": port, "public_url": None}
    return load(
        None,
        data_dir=folder,
        database_url=None,
        kek=None,
        kek_file=folder / KEK_FILE,
        server=address | {"workers": workers, "tls_certificate": None, "tls_key": None},
        identity={"region": REGION},
        console={"enabled": True},
        policy={"role_groups": True, "rules": [_ON_REQUEST]},
        metrics={"loopback": True},
        log={"file": folder / SERVER_LOG, "format": "json"},
    )
