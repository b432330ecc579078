"""cluster.yaml: Ray's own check of the file, and consistency with the project."""

import re
from typing import Any

import pytest
import yaml

from raymae.config import ComputeConfig
from tests.support.paths import ROOT

PATH = ROOT / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The parsed file."""
    config: dict[str, Any] = yaml.safe_load(PATH.read_text())
    return config


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray's check of cluster files is private")
    if not (hasattr(util, "prepare_config") and hasattr(util, "validate_config")):
        pytest.skip("this version of Ray has no such check")
    util.validate_config(util.prepare_config(cluster))
    with pytest.raises(Exception, match="unexpected"):
        util.validate_config(util.prepare_config(cluster | {"no_such_key": 1}))


def test_the_groups_are_consistent(cluster: dict[str, Any]) -> None:
    groups = cluster["available_node_types"]
    workers = {name: group for name, group in groups.items() if name != cluster["head_node_type"]}
    assert sum(group["max_workers"] for group in workers.values()) == cluster["max_workers"]
    assert all(group["min_workers"] <= group["max_workers"] for group in workers.values())
    assert groups["gpu_spot"]["resources"] == groups["gpu_on_demand"]["resources"]
    assert groups["gpu_spot"]["priority"] > groups["gpu_on_demand"]["priority"]
    assert groups["gpu_spot"]["node_config"]["InstanceType"] == groups["gpu_on_demand"]["node_config"]["InstanceType"]
    assert "InstanceMarketOptions" in groups["gpu_spot"]["node_config"]
    assert "InstanceMarketOptions" not in groups["gpu_on_demand"]["node_config"]
    assert len({group["node_config"]["ImageId"] for group in groups.values()}) == 1


def test_dashboard_is_private_and_authenticated(cluster: dict[str, Any]) -> None:
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in command for command in (head, worker))


def test_nodes_install_nothing(cluster: dict[str, Any]) -> None:
    names = ("initialization", "setup", "head_setup", "worker_setup")
    assert not any("install" in command for name in names for command in cluster.get(f"{name}_commands", []))


def test_the_options_that_it_names_exist() -> None:
    named = set(re.findall(r"--compute\.([\w-]+)", PATH.read_text()))
    assert named
    assert all(hasattr(ComputeConfig(), name.replace("-", "_")) for name in named)


def test_the_manifest_for_kubernetes(cluster: dict[str, Any]) -> None:
    """Without a schema of KubeRay: what its documentation requires, and what has to agree with cluster.yaml."""
    page = (ROOT / "raymae/cluster/README.md").read_text()
    text = re.search(r"<!-- rayjob -->\n```yaml\n(.*?)```", page, re.DOTALL)
    assert text
    job = yaml.safe_load(text[1])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    (script,) = re.findall(r"jobs/\w+\.py", job["spec"]["entrypoint"])
    assert (PATH.parent / script).is_file()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == cluster["docker"]["image"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for group in groups]
    assert gpus == [None, None, "1"]
    assert all(group["minReplicas"] <= group["maxReplicas"] for group in spec["workerGroupSpecs"])


def test_every_command_with_a_storage_at_a_url_names_an_mlflow() -> None:
    """Without one a job ends at once: the default is a file in a local storage."""
    for file in ("README.md", "jobs/README.md", "raymae/cluster/README.md", "cluster.yaml"):
        text = (ROOT / file).read_text()
        places = [found.end() for found in re.finditer(r"--storage s3://BUCKET", text)]
        assert places
        assert all("--tracking.uri" in text[place : place + 160] for place in places), file
