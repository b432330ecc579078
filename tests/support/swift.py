"""OpenStack Swift on this machine, where it is installed, spoken to as S3: its servers, with one copy of each object.

On Debian: apt-get install swift-proxy swift-account swift-container swift-object. A proxy has to be before it, as there
is in practice: its own answer to HEAD for a missing object ends like one with a body, which aiohttp refuses.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.support.nodes import free_port, kill_tree, wait_until

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests:tests",  # Swift's account and user
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}
STORES = ("account", "container", "object")
KINDS = (*STORES, "proxy")
HASHES = """[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = tests
default = yes
"""
BOTH = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
[app:{kind}-server]
use = egg:swift#{kind}
account_autocreate = true
"""
STORE = """[pipeline:main]
pipeline = {kind}-server
"""
PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper cache s3api tempauth bulk slo proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:9
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_tests_tests = tests .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""
"""tempauth wants a cache: of memcached, which needn't run."""


def why_no_swift() -> str:
    """What of Swift isn't installed; empty if all is."""
    wanted = ["swift-ring-builder", *(f"swift-{kind}-server" for kind in KINDS)]
    missing = [name for name in wanted if not shutil.which(name)]
    return f"{', '.join(missing)}: not installed" if missing else ""


@contextmanager
def swift_server(folder: Path) -> Iterator[int]:
    """Run Swift with its files in a folder; yields the port of its S3 interface."""
    ports = {kind: free_port() for kind in KINDS}
    (folder / "swift.conf").write_text(HASHES)
    (folder / "devices" / "one").mkdir(parents=True)
    with ThreadPoolExecutor(len(STORES)) as pool:
        list(pool.map(lambda kind: make_ring(folder, kind, ports[kind]), STORES))
    servers = [start(folder, kind, port) for kind, port in ports.items()]
    try:
        for kind, server in zip(KINDS, servers, strict=True):
            log = folder / f"{kind}.log"
            wait_until(lambda: answers(server, ports[kind], log), f"Swift's {kind} server (see {log})")  # noqa: B023
        yield ports["proxy"]
    finally:
        for server in servers:
            kill_tree(server.pid)
            server.wait()


def make_ring(folder: Path, kind: str, port: int) -> None:
    """Write where the objects of a kind are: on one device."""
    for words in (("create", "4", "1", "1"), ("add", f"r1z1-127.0.0.1:{port}/one", "1"), ("rebalance",)):
        command = ["swift-ring-builder", str(folder / f"{kind}.builder"), *words]
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment())


def start(folder: Path, kind: str, port: int) -> subprocess.Popen[bytes]:
    """Start one of the servers."""
    configuration = folder / f"{kind}.conf"
    text = BOTH + (PROXY if kind == "proxy" else STORE)
    configuration.write_text(text.format(folder=folder, kind=kind, port=port, user=getpass.getuser()))
    with (folder / f"{kind}.log").open("wb") as log:
        command = [f"swift-{kind}-server", str(configuration), "--verbose"]
        return subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def environment() -> dict[str, str]:
    """This process's, without what is for its own Python: Swift may have the system's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def answers(server: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    """Whether a server, which has to run, accepts connections."""
    assert server.poll() is None, log.read_text()[-3000:]
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
