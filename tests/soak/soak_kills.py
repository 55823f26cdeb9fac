"""Kills by the hundred: `make soak`, or

    SOAK_KILLS=100 SOAK_SEED=0 pytest tests/soak/soak_kills.py -k "local or search or tune or zero"

Each round starts a sweep, kills the driver, a worker, one of Ray's daemons or all of them at a random time,
repeats the command, and so on, until a command is left alone. Then the storage must hold the bytes of an
undisturbed sweep; what was stored before a kill is untouched; at most what came after the last checkpoint was
trained twice; and no process is left. A round is named by its seed, which decides victims and times (as
fractions of what an undisturbed sweep takes).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from ray_processes import descendants, ray_folder  # noqa: F401
from victims import (
    CHECKPOINT_SECONDS,
    SWEEP_FILE,
    contents,
    exit_code,
    lines,
    lorae_process,
    printed,
    wait_until,
)

from lorae.store.names import WEIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_folder")]

KILLS, SEED = int(os.environ.get("SOAK_KILLS", "4")), int(os.environ.get("SOAK_SEED", "0"))
KILLS_PER_ROUND = 4
STEPS = 16
PATIENCE = 900  # seconds that Ray may take to notice that one of its daemons is gone, on a busy machine
ASHA = """
from dataclasses import replace
from lorae.search import ASHA
SWEEP = replace(SWEEP, search=ASHA(every=4, reduction=1.5))
"""
OPTUNA = """
from dataclasses import replace
from lorae.search import LogUniform, Optuna
axes = {"regularizers": [(KL(Watched(0.1)),)], "optimizer.lr": LogUniform(1e-3, 1e-1)}
SWEEP = replace(SWEEP, axes=axes, search=Optuna(num_samples=3))
"""
MANY = """
from dataclasses import replace
regularizers = [(KL(Watched(0.1)),)]
SWEEP = replace(SWEEP, axes={"regularizers": regularizers, "optimizer.lr": [n / 1000 for n in range(1, 65)]})
"""


@dataclass(frozen=True)
class Host:
    """Where a sweep runs, what may be killed there, and what is appended to the sweep file. ASHA ends other
    stacks early than in an undisturbed sweep."""

    words: tuple[str, ...] = ()
    victims: tuple[str, ...] = ("driver", "worker", "daemon", "all")
    search: str = ""


HOSTS = {
    "local": Host(("--local",), ("driver",)),
    "search": Host(("--local",), ("driver",), OPTUNA),
    "tune": Host(),
    "asha": Host(search=ASHA),
    "zero": Host(("--zero", "2")),
}


@dataclass
class Swept:
    """An undisturbed sweep: its command line without the storage, how long it took, its members' bytes, and
    how many steps were logged for each regulariser."""

    words: tuple[object, ...]
    seconds: float
    members: dict[str, bytes]
    steps: Counter[str]


class Undisturbed(dict[str, Swept]):
    """By host, each made when it is asked for."""

    def __init__(self, backbone: str, data_root: Path, folder: Path) -> None:
        self.backbone, self.data_root, self.folder = backbone, data_root, folder

    def __missing__(self, host: str) -> Swept:
        folder = self.folder / host
        folder.mkdir()
        file = folder / "soak.py"
        file.write_text(SWEEP_FILE.format(backbone=self.backbone, steps=STEPS) + HOSTS[host].search)
        words = ("sweep", file, *HOSTS[host].words, "--data-root", self.data_root, "--storage")
        started, log = time.monotonic(), folder / "log"
        assert exit_code(lorae_process((*words, folder / "store"), log), PATIENCE) == 0, printed(log)
        seconds, members = time.monotonic() - started, contents(folder / "store")
        if HOSTS[host].search == ASHA:
            members = self["tune"].members
        self[host] = Swept(words, seconds, members, steps_of(log))
        return self[host]


def steps_of(log: Path) -> Counter[str]:
    """How many were logged for each regulariser, by all ranks."""
    return Counter(line.split()[1] for line in lines(log))


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, data_root, tmp_path_factory) -> Undisturbed:
    return Undisturbed(tiny_llama.path, data_root, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("seed", range(SEED, SEED + -(-KILLS // KILLS_PER_ROUND)))
@pytest.mark.parametrize("host", HOSTS)
def test_kills(undisturbed, tmp_path, monkeypatch, host, seed):
    monkeypatch.setenv(CHECKPOINT_SECONDS, "0")
    rng, swept, round_ = random.Random(f"{host} {seed}"), undisturbed[host], Round(HOSTS[host], tmp_path)
    while round_.kills.total() < KILLS_PER_ROUND:
        round_.disturb(rng, swept)
    driver = lorae_process((*swept.words, round_.storage), round_.log)
    assert exit_code(driver, PATIENCE) == 0, printed(round_.log)
    print(f"\n{host} {seed}: {dict(round_.kills)}")
    round_.check(swept)


@dataclass
class Round:
    """A storage, the log of its training, and what was killed and started so far."""

    host: Host
    folder: Path
    kills: Counter[str] = field(default_factory=Counter)
    started: set[psutil.Process] = field(default_factory=set)

    @property
    def storage(self) -> Path:
        return self.folder / "store"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def disturb(self, rng: random.Random, swept: Swept) -> None:
        """Run the command and kill something on its way; what is stored by then must stay as it is."""
        victim, delay = rng.choice(self.host.victims), rng.uniform(0, swept.seconds)
        driver = lorae_process((*swept.words, self.storage), self.log)
        driver.join(delay)
        targets = self._targets(driver.pid, victim, rng)
        before = weights(self.storage)
        for target in targets:
            target.kill()
        self.kills[victim] += bool(targets)
        assert exit_code(driver, PATIENCE) in (-9, 0, 1), printed(self.log)
        assert weights(self.storage).items() >= before.items(), "a stored member was lost or trained again"

    def _targets(self, driver: int | None, victim: str, rng: random.Random) -> list[psutil.Process]:
        try:
            root = psutil.Process(driver)
            family = descendants(driver)
        except psutil.NoSuchProcess:  # the sweep was faster
            return []
        self.started |= {root, *family}
        training = [p for p in family if str(p.pid) in {line.split()[0] for line in lines(self.log)}]
        daemons = [p for p in family if p.name() in ("raylet", "gcs_server")]
        found = {"driver": [root], "worker": training[-1:], "daemon": daemons and [rng.choice(daemons)]}
        return [root, *family] if victim == "all" else found[victim]

    def check(self, swept: Swept) -> None:
        found, asha = contents(self.storage), self.host.search == ASHA
        assert found.items() <= swept.members.items() if asha else found == swept.members
        (table,) = self.storage.glob("sweeps/*/trials.parquet")
        status = set(pq.read_table(table)["status"].to_pylist())
        assert "done" in status and status <= ({"done", "pruned"} if asha else {"done"})
        steps, ranks = steps_of(self.log), 2 if "--zero" in self.host.words else 1
        again = ranks * self.kills.total()
        full = dict.fromkeys(steps, STEPS) if asha else swept.steps
        assert all(steps[beta] <= num + again for beta, num in full.items()), "checkpoints were not used"
        _, alive = psutil.wait_procs(self.started, timeout=120)
        for process in alive:
            process.kill()
        assert not alive, "processes of killed sweeps are left"


def weights(storage: Path) -> dict[str, int]:
    """When each stored member's weights were written."""
    members = (done.parent for done in storage.glob("members/*/DONE.json"))
    return {m.name: (m / WEIGHTS).stat().st_mtime_ns for m in members}


@pytest.fixture
def many(tiny_llama, data_root, tmp_path) -> tuple[object, ...]:
    """Words of a sweep of 64 stacks of two members; the storage is to be appended."""
    file = tmp_path / "many.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path, steps=4) + MANY)
    return ("sweep", file, "--local", "--data-root", data_root, "--storage")


def test_two_drivers_share_64_stacks_and_the_tracking_server_goes(many, tmp_path, monkeypatch, server):
    """Each stack is trained by one of them; the table is there, and the next command writes MLflow's runs."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    words, log = (*many, tmp_path / "store"), tmp_path / "log"
    drivers = [lorae_process((*words, "--tracking-uri", server), log) for _ in range(2)]
    wait_until(lambda: len(weights(tmp_path / "store")) >= 64, drivers[0])
    kill_server(server)
    assert [exit_code(d) for d in drivers] == [0, 0], printed(log)
    assert "MLflow" in printed(log) and "mlflow-rebuild" in printed(log)
    assert len(lines(log)) == 64 * 4 and len({line.split()[0] for line in lines(log)}) == 2
    (table,) = (tmp_path / "store").glob("sweeps/*/trials.parquet")
    assert pq.read_table(table)["status"].to_pylist() == ["done"] * 65  # the untouched backbone is one

    assert exit_code(lorae_process((*many, tmp_path / "alone"), tmp_path / "alone.log")) == 0
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    later = f"sqlite:///{tmp_path}/later.db"
    assert exit_code(lorae_process((*words, "--tracking-uri", later), log)) == 0
    assert len(lines(log)) == 64 * 4, "nothing is trained again"
    client = MlflowClient(later)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(client.search_runs(experiments)) == 65 + 1, "the trials' and their parent"


def kill_server(uri: str) -> None:
    port = int(uri.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        try:
            sockets = process.net_connections("inet")
        except psutil.Error:  # it has just ended
            continue
        if any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets):
            os.killpg(os.getpgid(process.pid), signal.SIGKILL)
            return
    raise AssertionError(f"nobody listens at {uri}")
