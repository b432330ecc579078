"""Where the training workers meet."""

import sys

import pytest

from raymae.cluster import process_group
from raymae.cluster.process_group import interface_of, use_interface


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces can be asked for their addresses on Linux alone")
def test_collectives_use_the_interface_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None
    monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface()
    assert process_group.os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert process_group.os.environ["NCCL_SOCKET_IFNAME"] == "ib0", "a given one is kept"
