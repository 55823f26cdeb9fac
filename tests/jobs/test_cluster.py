"""Several nodes: Ray's schema of cluster.yaml, what nodes can run, nodes that disagree, two real hosts."""

from __future__ import annotations

import contextlib
import copy
import getpass
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ssh_hosts
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.autoscaler._private.providers import _get_default_config
from ray.autoscaler._private.util import validate_config

from jobs.cluster import Agreement, software, startable_workers
from jobs.devices import GPUS, ray_devices
from lorae.planning.estimate import Devices
from lorae.sources import Files
from lorae.store.storage import Storage

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def own_machines() -> dict[str, Any]:
    """cluster.yaml changed as docs/cluster.md says for machines of one's own."""
    section = (ROOT / "docs" / "cluster.md").read_text()
    changes = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])  # type: ignore[index]
    gone = ("available_node_types", "head_node_type", "max_workers", "initialization_commands")
    return {key: value for key, value in copy.deepcopy(AWS).items() if key not in gone} | changes


@pytest.mark.parametrize("config", [AWS, own_machines()], ids=["aws", "own machines"])
def test_ray_accepts_the_file_and_it_keeps_to_itself(config):
    validate_config(_get_default_config(config["provider"]) | config)
    start = config["head_start_ray_commands"][-1]
    assert (
        "--dashboard-host=127.0.0.1" in start and "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    )
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


L40S_NODE = {"CPU": 4, "GPU": 1, "accelerator_type:L40S": 1}


def test_aws_head_has_no_gpu_and_spot_workers_start_from_zero():
    head, worker = (AWS["available_node_types"][name] for name in ("head", "worker"))
    assert AWS["head_node_type"] == "head" and head["resources"] == {"CPU": 0}
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["min_workers"] == 0 and worker["max_workers"] == AWS["max_workers"]
    assert startable_workers(AWS) == 8 * [L40S_NODE]
    l40s = GPUS["l40s"]
    planned = Devices("cuda", 8, 4, l40s.memory_bytes, 1, l40s.peak_flops)
    assert ray_devices([head["resources"], *startable_workers(AWS)]) == planned


def test_startable_workers_keep_to_the_cluster_wide_limit():
    assert startable_workers(AWS | {"max_workers": 3}) == 3 * [L40S_NODE]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([(64, 0), (8, 1)], Devices("cuda", 1, 8)),  # not 72 CPUs beside a GPU, which no node has
        ([(8, 1), (64, 4)], Devices("cuda", 5, 8)),
        ([(2, 0), (16, 0)], Devices("cpu", 4, 1)),
        ([(0, 0), (4, 0)], Devices("cpu", 2, 2)),
        ([(1, 0)], Devices("cpu", 1, 1)),
    ],
)
def test_a_stack_asks_for_no_more_than_each_node_has(nodes, expected):
    assert ray_devices([{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes]) == expected


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"memory": 1e9}], "without GPU or CPU"),
        ([{"CPU": 2, "GPU": 4}, {"CPU": 8, "GPU": 1}], "4 GPUs and 2 CPUs"),
    ],
)
def test_a_cluster_that_could_never_start_a_stack_is_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        ray_devices(nodes)


def test_a_node_with_other_software_or_another_storage_says_so(tmp_path):
    Storage(str(tmp_path)).write("locks/driver-1", b"secret")
    agreed = Agreement(str(tmp_path), "locks/driver-1", "secret", software())
    assert agreed.broken() is None
    elsewhere = replace(agreed, storage=str(tmp_path / "other"))
    assert f"does not see the driver's storage {tmp_path}/other" in str(elsewhere.broken())
    assert "does not see" in str(replace(agreed, token="of another driver").broken())
    assert replace(agreed, folders=(str(tmp_path),)).broken() is None
    lacking = replace(agreed, folders=(str(tmp_path / "model"),))
    assert f"has no folder {tmp_path}/model" in str(lacking.broken())
    older = replace(agreed, software=software() | {"torch": "2.0.0"})
    assert f"has torch {software()['torch']}, the driver 2.0.0" in str(older.broken())


DEMO = """
from dataclasses import replace
from toys import Colours, Greys
from lorae.regularizers import KL, DecayB
from lorae.sources import Files
from pipelines.demo import SWEEP as DEMO
base = replace(DEMO.base, backbone=Files({backbone!r}), task=Colours(), precision="fp32")
regularizers = [(), (KL(beta=0.3),), (DecayB(strength=50.0),)]
axes = {{"regularizers": regularizers, "members": [1, 2, 4]}}
SWEEP = replace(DEMO, base=base, axes=axes, tune={{}}, ood=[Greys()])
"""


@pytest.mark.ray(alone=True)
def test_submitted_where_there_is_no_cluster_is_an_error_not_a_one_node_run(tiny_llama, data_root, tmp_path):
    process = sweep("jobs.sweep", tiny_llama, data_root, tmp_path)
    _, printed = process.communicate(timeout=120)
    assert (
        process.returncode == 2 and "no Ray cluster at 'auto'" in printed and "ray up cluster.yaml" in printed
    )
    assert not (tmp_path / "results/members").exists()


@dataclass(frozen=True)
class Laptop:
    """Where `ray up` and `ray submit` are typed: a home of its own, the checkout, and a cluster file."""

    home: Path
    file: Path

    def ray(self, *words: str | Path, code: int = 0) -> str:
        """Run `ray WORDS`; what it printed, line ends as they are on a terminal."""
        command = [Path(sys.executable).parent / "ray", *words]
        environment = os.environ | {
            "HOME": str(self.home),
            "RAY_TMPDIR": str(self.home),
            "RAY_AUTH_MODE": "token",
            "PYTHONUNBUFFERED": "1",
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, timeout=600, stdout=-1, stderr=subprocess.STDOUT
        )
        assert done.returncode == code, done.stdout
        return done.stdout


@contextlib.contextmanager
def hosts_or_skip(*names: str) -> Iterator[tuple[Path, list[ssh_hosts.Host]]]:
    if reason := ssh_hosts.why_not():
        pytest.skip(reason)
    with ssh_hosts.ssh_hosts(names) as hosts:
        yield hosts


@pytest.fixture
def two_hosts() -> Iterator[tuple[Path, list[ssh_hosts.Host]]]:
    with hosts_or_skip("head", "worker") as hosts:
        yield hosts


@pytest.fixture
def one_host() -> Iterator[tuple[Path, list[ssh_hosts.Host]]]:
    with hosts_or_skip("head") as hosts:
        yield hosts


# The hosts' environment sees this one's packages, except an editable lorae; pip puts the checkout's into it
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
SEEN = f"echo {sysconfig.get_path('purelib')} > ~/lorae-env/lib/{VERSION}/site-packages/packages.pth"
PROGRAM = (
    "printf '#!/bin/sh\\nexec ~/lorae-env/bin/python -m {module} \"$@\"\\n' > ~/lorae-env/bin/{name}; "
    "chmod +x ~/lorae-env/bin/{name}"
)


def laptop(folder: Path, hosts: list[ssh_hosts.Host], data_root: Path) -> Laptop:
    """The file for one's own machines, for these hosts; what it installs needs no network."""
    head, worker = hosts
    config = own_machines() | {
        "cluster_name": folder.name,
        "provider": {"type": "local", "head_ip": head.address, "worker_ips": [worker.address]},
        "auth": {"ssh_user": getpass.getuser(), "ssh_private_key": str(folder / "key")},
    }
    environment, install, path = config["setup_commands"]
    pinned, offline = "--constraint ~/lorae-checkout/constraints.txt", "--no-deps --no-build-isolation"
    config["setup_commands"] = [
        environment.replace("python3 -m venv", f"{sys.executable} -m venv --without-pip"),
        SEEN,
        PROGRAM.format(name="pip", module="pip"),
        PROGRAM.format(name="ray", module="ray.scripts.scripts"),
        install.replace(pinned, offline),
        path,
        "echo 'export PYTHONPATH=$HOME/lorae-checkout/tests/support' >> ~/.bashrc",
        "echo 'export MLFLOW_DISABLE_TELEMETRY=true' >> ~/.bashrc",
        f"echo 'export LORAE_DATA_ROOT={data_root} AUTOSCALER_UPDATE_INTERVAL_S=1' >> ~/.bashrc",
    ]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        commands[-1] = commands[-1].replace("ray start", "ray start --num-cpus=4")
    home = folder / "laptop"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text(os.urandom(16).hex())
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return Laptop(home, file)


NODES = """
import time, ray
ray.init(address="auto", log_to_driver=False)
for _ in range(240):
    if sum(node["Alive"] for node in ray.nodes()) == 2:
        break
    time.sleep(1)
else:
    raise SystemExit("the worker has not come")
"""


@pytest.mark.slow
def test_ray_up_submit_and_down_on_two_hosts(two_hosts, tiny_llama, data_root):
    """The commands of docs/cluster.md over ssh; both hosts train, and nothing is left on them at the end."""
    folder, hosts = two_hosts
    private = hosts[0].private
    (folder / "demo.py").write_text(DEMO.format(backbone=tiny_llama.path))
    user = laptop(folder, hosts, data_root)
    user.ray("up", "-y", user.file)
    (folder / "nodes.py").write_text(NODES)
    user.ray("exec", user.file, f"python {folder}/nodes.py")  # `ray up` does not wait for the worker

    submit = ("submit", user.file, "jobs/sweep.py", "--", str(folder / "demo.py"), "--json", "--storage")
    changed = hosts[0].home / "lorae-checkout/lorae/uris.py"
    original = changed.read_text()
    changed.write_text(original + "# of the head alone")
    refused = user.ray(*submit, str(private / "results"), code=1)
    assert re.search(
        r"node worker has lorae .* \(source .*, the driver .* \(source .*`ray up` again", refused
    )
    assert f"node worker does not see the driver's storage {private}/results" in refused
    changed.write_text(original)

    printed = user.ray(*submit, str(folder / "results"))
    outcome = json.loads(re.search(r'\{\s+"sweep".*\}', printed, re.DOTALL)[0])  # type: ignore[index]
    assert (outcome["trials"], outcome["trained"], outcome["incomplete"]) == (10, 12, 0), printed
    rows = pq.read_table(folder / "results/sweeps/demo/trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == 10 * ["done"]
    members = [json.loads(f.read_text())["provenance"] for f in folder.glob("results/members/*/member.json")]
    assert {m["host"] for m in members} == {"head", "worker"} and len(members) == 12
    assert {m["threads"] for m in members} == {2}, "4 CPUs for 2 stacks, though `ray submit` exports 1"
    assert not list(folder.glob("results/locks/driver-*"))

    user.ray("down", "-y", user.file)
    stopped = hosts[1].run("~/lorae-env/bin/ray stop")
    assert stopped.returncode == 0, stopped.stdout
    left = [words for host in hosts for words in host.processes().values() if "sshd" not in words]
    assert not left, "what docs/cluster.md says of `ray down` and workers"


CLOUD = {  # Ray's stand-in for a cloud: its nodes are processes on the head's machine
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "max_workers": 2,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}
ON_THE_HEAD = """
export PATH={bin}:$PATH PYTHONPATH={root}:{root}/tests/support
export LORAE_DATA_ROOT={data} MLFLOW_DISABLE_TELEMETRY=true
export RAY_AUTH_MODE=disabled RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1
export RAY_enable_autoscaler_v2=1 RAY_CLOUD_INSTANCE_ID={id} RAY_OVERRIDE_NODE_ID_FOR_TESTING={id}
"""


@pytest.mark.slow
def test_from_no_worker_to_as_many_as_the_plan_counts_on(one_host, tiny_llama, data_root):
    """A head without CPUs: stacks are planned for workers to come, and Tune's demand makes them come."""
    folder, (head,) = one_host
    (folder / "demo.py").write_text(DEMO.format(backbone=tiny_llama.path))
    bin_, id_ = Path(sys.executable).parent, FAKE_HEAD_NODE_ID
    (head.home / ".bashrc").write_text(ON_THE_HEAD.format(bin=bin_, root=ROOT, data=data_root, id=id_))
    (head.home / "ray_bootstrap_config.yaml").write_text(
        json.dumps(_get_default_config({"type": "local"}) | CLOUD)
    )
    start = "ray start --head --num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml"
    assert (started := head.run(start)).returncode == 0, started.stdout

    words = f"{folder}/demo.py --storage {folder}/results"
    done = head.run(f"python {ROOT}/jobs/sweep.py {words}")
    assert done.returncode == 0, done.stdout
    assert "12 members trained" in done.stdout


def sweep(
    module: str, tiny_llama: Files, data_root: Path, folder: Path, *words: str
) -> subprocess.Popen[str]:
    """The demo on a tiny model in a process of its own, whose home and Ray are its own as well."""
    (folder / "demo.py").write_text(DEMO.format(backbone=tiny_llama.path))
    given = ["sweep"] if module == "jobs.cli" else []
    command = [sys.executable, "-m", module, *given, str(folder / "demo.py"), *words]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
        "LORAE_DATA_ROOT": str(data_root),
        "HOME": str(folder),
    }
    if module == "jobs.sweep":
        environment["RAY_TMPDIR"] = str(folder)  # where no cluster has left its address
    return subprocess.Popen(
        [*command, "--storage", str(folder / "results")], env=environment, text=True, stdout=-1, stderr=-1
    )
