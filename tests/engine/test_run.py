"""Running stacks: what is stored, resuming after a kill, damage, and two processes on one storage."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import Greys
from victims import SERVER, exit_code, wait_until

from lorae.draws import TFB
from lorae.engine.run import run_stack
from lorae.methods import Lora, Vera
from lorae.planning import memory
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan
from lorae.planning.stack import Progress, Stack, Stopped
from lorae.regularizers import KL, AdapterDropout, EarlyStopping
from lorae.sources import Files
from lorae.store.names import WEIGHTS, member_folder, reference_folder
from lorae.store.predictions import prediction_file
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Sweep, Trial

ONE_CPU = Devices("cpu", 1, 2)


@dataclass(frozen=True)
class Run:
    """`run_stack` in a process of its own, checkpointing at every step."""

    process: BaseProcess
    out: Path

    def counts(self) -> tuple[int, int]:
        """Members trained and members found, once it has ended."""
        assert exit_code(self.process) == 0
        trained, found = self.out.read_text().split()
        return int(trained), int(found)


def start(stack: Stack, storage: Path, tmp_path: Path) -> Run:
    out = tmp_path / f"out-{time.monotonic_ns()}"
    process = SERVER.Process(target=_run, args=(stack, str(storage), out))
    process.start()
    return Run(process, out)


def _run(stack: Stack, storage: str, out: Path) -> None:
    torch.set_num_threads(1)
    result = run_stack(stack, storage, checkpoint_seconds=0.0)
    out.write_text(f"{len(result.trained)} {len(result.found)}")


def contents(storage: Path, trial: Trial, members: range) -> dict[str, bytes]:
    """Adapters and predictions of some members, by name."""
    found = {}
    for m in members:
        folder = storage / member_folder(trial.member_id(m))
        for path in [folder / WEIGHTS, *sorted((folder / "predictions").iterdir())]:
            found[f"{m}/{path.name}"] = path.read_bytes()
    return found


@pytest.fixture
def trial(tiny_trial) -> Trial:
    return tiny_trial(regularizers=(KL(0.1), AdapterDropout(0.1)), members=3)


def greys(data_root: Path) -> Greys:
    return Greys().located(data_root)


def test_stack_stores_members_predictions_and_reference(trial, data_root, tmp_path):
    stack = Stack(trial, (0, 1, 2), (greys(data_root),))
    result = run_stack(stack, str(tmp_path))
    assert set(result.trained) == set(trial.member_ids()) and not result.failed
    store = Store(str(tmp_path))
    folders = [member_folder(m) for m in trial.member_ids()]
    for name, wanted in stack.eval_sets().items():
        predictions = store.predictions(folders, name)
        assert predictions.example_ids == tuple(e.id for e in wanted.task.examples(wanted.split))
        assert np.isfinite(predictions.logits_MNC).all()
    assert set(store.predictions(folders, greys(data_root).eval_set("test")).labels_N) == {-1}
    assert store.has_predictions(reference_folder(trial.reference_id()), stack.reference_sets())
    record = json.loads(store.read(folders[0], "member.json"))
    assert record["cost"]["train_tokens"] > 0 and record["cost"]["trainable_parameters"] == 3 * 8 * (
        32 + 32 + 32 + 16
    )
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
    assert run_stack(stack, str(tmp_path)).found == tuple(trial.member_ids()), "nothing is trained twice"


@pytest.mark.slow
@pytest.mark.parametrize("draws", [None, TFB(2)], ids=["plain", "samples"])
def test_predicting_tells_how_far_it_is_and_stops_in_the_middle(
    tiny_trial, data_root, tmp_path, monkeypatch, draws
):
    monkeypatch.setitem(memory.PREDICT_TOKENS, "cpu", 64)  # several forward passes for each set
    stack, told, stop = Stack(tiny_trial(draws=draws), (0, 1)), [], [False]

    def run(at: int, stack: Stack = stack) -> None:
        told.clear()

        def note(progress: Progress) -> None:
            if progress.phase == "predict":
                told.append(progress.step)
                stop[0] = progress.step >= at

        run_stack(stack, str(tmp_path), on_progress=note, should_stop=lambda: stop[0])

    with pytest.raises(Stopped):
        run(40)
    assert 40 <= told[-1] < 60
    stop[0] = False
    run(101)
    assert told == sorted(told) and len(set(told)) > 4 and told[-1] == 100
    run(101, replace(stack, eval_tasks=(greys(data_root),)))
    assert len(set(told)) > 1 and told[-1] == 100, "a width that is stored is not searched for"


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lora(rank=4), Vera(rank=8)], ids=["lora", "vera"])
def test_ood_set_that_is_added_later_is_predicted_without_training(tiny_trial, data_root, tmp_path, method):
    trial = tiny_trial(method=method, members=2)
    stack = Stack(trial, (0, 1))
    run_stack(stack, str(tmp_path))
    before = contents(tmp_path, trial, range(2))
    later = Stack(trial, (0, 1), (greys(data_root),))
    plan = make_plan(Sweep(base=trial, ood=[greys(data_root)]), Store(str(tmp_path)), ONE_CPU)
    assert plan.num_to_train == 0 and [s.members for s in plan.stacks] == [(0, 1)]
    assert run_stack(later, str(tmp_path)).trained == ()
    after = contents(tmp_path, trial, range(2))
    assert before.items() < after.items() and len(after) == len(before) + 2
    together = tmp_path / "together"
    run_stack(later, str(together))
    assert contents(together, trial, range(2)) == after, "predicted later is as predicted at once"


@pytest.mark.process
def test_killed_stack_resumes_to_the_same_bytes(tiny_trial, tmp_path):
    """kill -9 in the middle, with early stopping so that best states and a finished member must survive."""
    trial = tiny_trial(
        optimizer=AdamW(lr=3e-2),
        budget=Budget(batch_size=4, steps=120),
        regularizers=(KL(0.1), AdapterDropout(0.1), EarlyStopping(patience=3, every=10)),
        members=3,
    )
    stack = Stack(trial, (0, 1, 2))
    undisturbed = start(stack, tmp_path / "undisturbed", tmp_path)
    assert undisturbed.counts() == (3, 0)
    steps = []
    for _ in range(2):  # killed at different steps until a run is let through
        victim = start(stack, tmp_path / "killed", tmp_path)
        steps.append(kill_when_checkpoint_moves(victim, tmp_path / "killed", steps))
    assert steps == sorted(steps) and steps[0] > 0, "each run continued where the one before was killed"
    survivor = start(stack, tmp_path / "killed", tmp_path)
    assert survivor.counts() == (3, 0)
    assert contents(tmp_path / "killed", trial, range(3)) == contents(
        tmp_path / "undisturbed", trial, range(3)
    )


@pytest.mark.process
def test_damaged_checkpoint_is_not_used(tiny_trial, tmp_path, caplog):
    """A byte of the checkpoint that a killed run left flips: the next run starts anew and ends the same."""
    trial = tiny_trial(budget=Budget(batch_size=4, steps=80))
    victim = start(Stack(trial, (0,)), tmp_path / "killed", tmp_path)
    kill_when_checkpoint_moves(victim, tmp_path / "killed", [])
    (checkpoint,) = (tmp_path / "killed").glob("checkpoints/*.safetensors")
    content = bytearray(checkpoint.read_bytes())
    content[-1000] ^= 1
    checkpoint.write_bytes(content)
    run_stack(Stack(trial, (0,)), str(tmp_path / "killed"))
    assert "differs from its checksum" in caplog.text
    run_stack(Stack(trial, (0,)), str(tmp_path / "undisturbed"))
    assert contents(tmp_path / "killed", trial, range(1)) == contents(
        tmp_path / "undisturbed", trial, range(1)
    )


def test_a_stack_that_died_when_its_members_were_stored_leaves_nothing(tiny_trial, tmp_path):
    """Nor does any other run of the storage take it for one that goes on; one that does is left alone."""
    trial = tiny_trial(budget=Budget(batch_size=4, steps=1))
    store, stack = Store(str(tmp_path)), Stack(trial, (0, 1))
    run_stack(stack, str(tmp_path))
    for died in (stack, Stack(trial, (1, 2))):
        store.begin(died.id, died.member_ids())
        store.storage.write(f"checkpoints/{died.id}.safetensors", b"state")
    run_stack(Stack(trial, (0,)), str(tmp_path))
    assert store.storage.names("checkpoints") == [f"{died.id}.json", f"{died.id}.safetensors"]


def kill_when_checkpoint_moves(victim: Run, storage: Path, steps: list[int]) -> int:
    """SIGKILL a run after some steps beyond the last kill; returns the step of the checkpoint it leaves."""
    goal = (steps[-1] if steps else 0) + 7
    wait_until(lambda: checkpoint_step(storage) >= goal, victim.process)
    victim.process.kill()
    victim.process.join()
    return checkpoint_step(storage)


def checkpoint_step(storage: Path) -> int:
    for path in storage.glob("checkpoints/*.safetensors"):
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["header"])["step"]
    return 0


@pytest.mark.slow
def test_flipped_byte_is_found_and_the_member_trained_again(trial, tmp_path):
    stack = Stack(trial, (0, 1))
    run_stack(stack, str(tmp_path), num_threads=1)
    path = tmp_path / member_folder(trial.member_id(1)) / prediction_file(trial.task.eval_set("test"))
    good, content = path.read_bytes(), bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    plan = make_plan(Sweep(base=trial, axes={"members": [2]}), Store(str(tmp_path)), ONE_CPU)
    assert plan.num_to_train == 1 and len(plan.damaged) == 1 and trial.member_id(1) in plan.damaged[0]
    result = run_stack(stack, str(tmp_path), num_threads=1)
    assert result.trained == (trial.member_id(1),) and result.found == (trial.member_id(0),)
    assert (
        path.read_bytes()[:4] == good[:4]
        and Store(str(tmp_path)).damage(member_folder(trial.member_id(1))) is None
    )


@pytest.mark.process
def test_two_processes_sharing_members_train_each_once(tiny_trial, tmp_path):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=60), members=4)
    first = start(Stack(trial, (0, 1, 2)), tmp_path / "store", tmp_path)
    second = start(Stack(trial, (1, 2, 3)), tmp_path / "store", tmp_path)
    counts = [run.counts() for run in (first, second)]
    assert sum(trained for trained, _ in counts) == 4
    assert sum(found for _, found in counts) == 2
    store = Store(str(tmp_path / "store"))
    assert all(store.is_member(m) and not store.damage(member_folder(m)) for m in trial.member_ids())


@pytest.mark.slow
def test_member_that_fails_is_remembered_and_the_others_are_stored(tiny_trial, tmp_path, monkeypatch):
    trial = tiny_trial(method=Lora(b_std=0.1), members=3)
    original, poisoned = Lora.draw, trial.member_key(1)["init"]

    def draw(self, layer, d_in, d_out, key):
        a, b = original(self, layer, d_in, d_out, key)
        return (a * 1e30, b * 1e30) if key == poisoned else (a, b)

    monkeypatch.setattr(Lora, "draw", draw)
    result = run_stack(Stack(trial, (0, 1, 2)), str(tmp_path))
    store, ids = Store(str(tmp_path)), trial.member_ids()
    assert set(result.failed) == {ids[1]} and "step 1" in result.failed[ids[1]]
    assert [store.is_member(m) for m in ids] == [True, False, True]
    assert store.failure(ids[1]) == result.failed[ids[1]]
    monkeypatch.undo()
    assert run_stack(Stack(trial, (0, 1, 2)), str(tmp_path)).trained == (ids[1],)
    assert store.failure(ids[1]) is None, "a member that is stored at last is no failure"


def test_a_backbone_that_changes_after_it_was_planned_with_is_not_trained_on(trial, tiny_llama, tmp_path):
    """Or what was loaded would be stored under another one's name."""
    folder = shutil.copytree(tiny_llama.path, tmp_path / "model")
    trial = replace(trial, backbone=Files(str(folder)))
    planned, weights = trial.member_ids(), load_file(folder / "model.safetensors")
    save_file({name: 1.1 * value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="the files of model or colours have changed since they were read"):
        run_stack(Stack(trial, (0,)), str(tmp_path / "results"))
    assert not (tmp_path / "results" / "members").exists() and trial.member_ids() == planned
