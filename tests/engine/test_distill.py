"""Distillation: the right targets for the right rows, teachers first, identities that name the teacher."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from stacks import largest_difference, prepared

from analysis.audit import audit
from jobs.driver import run_sweep
from jobs.request import Request
from lorae.engine.order import DataOrder
from lorae.engine.run import run_stack
from lorae.engine.training import train_stack
from lorae.metrics import combine, log_softmax
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan
from lorae.planning.stack import Stack, Stopped
from lorae.planning.teachers import students_of
from lorae.regularizers import KL, DecayB, Distill
from lorae.results import read_trials
from lorae.search import ASHA
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.peft_format import read_stages
from lorae.store.store import Store
from lorae.tasks import STSB, Value
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial

ONE_CPU = Devices("cpu", 1, 2)
SHORT = Budget(batch_size=4, steps=4, max_tokens=64)


@pytest.fixture
def student(tiny_trial) -> Trial:
    return tiny_trial(regularizers=(Distill(members=3, beta=0.5), DecayB(1.0)), budget=SHORT, seed=5)


def test_the_penalty_is_the_teachers_divergence_and_pulls_towards_the_teacher():
    teacher = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]).log()
    logits = torch.tensor([[0.3, -1.0, 0.4], [1.0, 0.0, -torch.inf]], requires_grad=True)
    penalty = Distill(beta=2.0).penalty(logits, teacher)
    p, q = teacher.exp(), logits.detach().softmax(1)
    expected = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1)
    torch.testing.assert_close(penalty, 2 * expected)
    penalty.sum().backward()
    torch.testing.assert_close(logits.grad, 2 * (q - p), msg="at the teacher's distribution the pull is zero")


def test_the_identity_names_the_teachers_members(student):
    teacher = student.teacher
    assert teacher.regularizers == (DecayB(1.0),) and (teacher.members, teacher.seed) == (3, 5)
    assert student.recipe()["teacher"] == {"members": teacher.member_ids(), "combine": "probs"}
    shared = Diversity(init="shared")  # of the teacher's members, and of the student's one
    others = [
        student,
        replace(student, seed=6),
        replace(student, diversity=shared),
        replace(student, regularizers=(Distill(members=4, beta=0.5), DecayB(1.0))),
        replace(student, regularizers=(Distill(members=3, beta=0.5, lr=1e-3), DecayB(1.0))),
        teacher,
    ]
    assert len({trial.member_id(0) for trial in others}) == len(others)
    assert replace(student, members=4, combine="weights").member_id(0) == student.member_id(0)
    assert replace(student, diversity=shared).recipe()["teacher"]["members"] == (
        replace(student, diversity=shared).teacher.member_ids()
    )


def test_students_wait_for_their_teachers_and_learn_from_their_predictions(student, tmp_path):
    store, sweep = Store(str(tmp_path)), Sweep(base=student)
    plan = make_plan(sweep, store, ONE_CPU)
    assert plan.num_to_train == 4 and [s.members for s in plan.students] == [(0,)]
    assert {m for s in plan.stacks for m in s.member_ids()} == set(student.teacher.member_ids())
    assert not students_of(plan, store).pending
    with pytest.raises(ValueError, match="has no predictions"):
        run_stack(plan.students[0], str(tmp_path))
    assert not store.is_member(student.member_id(0))
    for stack in plan.stacks:
        run_stack(stack, str(tmp_path))
    (ready,) = students_of(plan, store).pending
    run_stack(ready, str(tmp_path))
    assert make_plan(sweep, store, ONE_CPU).is_done

    # The first step computes the backbone itself: its divergence from the teacher on the first batch
    name = student.task.eval_set("train")
    folders = [member_folder(m) for m in student.teacher.member_ids()]
    teacher_NC = combine(store.predictions(folders, name).logits_MNC)
    backbone, data = prepared(student)
    backbone_NC = log_softmax(data.reference_logits_NC)
    divergence_N = (np.exp(teacher_NC) * (teacher_NC - backbone_NC)).sum(axis=1)
    curve = store.curve(member_folder(student.member_id(0))).to_pylist()
    first = next(step for step in curve if step["split"] == "train")
    plain = store.curve(folders[0]).to_pylist()[0]  # the same batch
    assert first["nll"] == pytest.approx(plain["nll"], abs=1e-4)
    run = train_stack(backbone, student, [0], replace(data, reference_logits_NC=teacher_NC))[0]
    trained = read_stages(store, [student.member_id(0)])[-1][0]
    for key, value in run.state.items():
        torch.testing.assert_close(trained[key], value, rtol=0, atol=1e-5)
    lengths = np.array([len(row.tokens) for row in data.train])
    rows = DataOrder(student.member_key(0)["order"], student.seed, lengths, 4).batch(0)
    assert first["loss"] - first["nll"] == pytest.approx(0.5 * divergence_N[rows].mean(), rel=1e-3)


def test_students_of_a_stack_equal_students_alone(student):
    backbone, data = prepared(student)
    data = replace(data, reference_logits_NC=np.roll(data.reference_logits_NC, 1, axis=1))
    together = train_stack(backbone, student, [0, 1, 2], data)
    assert largest_difference(train_stack(backbone, student, [1], data)[0], together[1]) < 1e-5
    plain = train_stack(backbone, student.teacher, [1], data)[0]
    assert largest_difference(plain, together[1]) > 1e-3, "the targets matter"


def test_a_killed_student_resumes_to_the_same_bytes(student, tmp_path):
    stores = []
    for name in ("whole", "killed"):
        uri = str(tmp_path / name)
        for stack in make_plan(Sweep(base=student), Store(uri), ONE_CPU).stacks:
            run_stack(stack, uri)
        stores.append(Store(uri))
    stack, steps = Stack(student, (0,)), []
    run_stack(stack, stores[0].storage.uri)
    with pytest.raises(Stopped):
        run_stack(
            stack,
            stores[1].storage.uri,
            checkpoint_seconds=0.0,
            on_progress=lambda progress: steps.append(progress.step),
            should_stop=lambda: bool(steps) and steps[-1] == 2,
        )
    run_stack(stack, stores[1].storage.uri)
    whole, killed = (s.read(member_folder(student.member_id(0)), WEIGHTS) for s in stores)
    assert whole == killed


@pytest.mark.process
def test_teachers_are_tuned_before_their_students(tiny_trial, tmp_path):
    sweep = Sweep(
        base=tiny_trial(budget=SHORT, optimizer=AdamW(lr=1e-2)),
        axes={"regularizers": [(), (Distill(2),)], "members": [1, 2], "seed": [0, 1]},
        tune={"optimizer.lr": (1e-3, 1e-2, 3e-2)},
        tune_members=1,
    )
    store = Store(str(tmp_path))
    tuning = make_plan(sweep, store, ONE_CPU).tuning
    assert len(tuning.needed) == 3 and not tuning.students, "the plain recipe at its three values"
    request = Request("distil", sweep, str(tmp_path), "lorae sweep distil", toys)
    assert run_sweep(request, local=True, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db") == 0
    rows = read_trials(store, "distil").to_pylist()
    chosen = {row["lr"] for row in rows if row["regularizers"] == "none" and row["members"]}
    assert len(chosen) == 1
    students = [row for row in rows if row["regularizers"].startswith("distill")]
    for row in students:
        recipe = json.loads(row["recipe"])
        assert {spec["lr"] for spec in recipe["regularizers"]} == chosen
        (teacher,) = (
            r for r in rows if (r["regularizers"], r["members"]) == ("none", 2) and r["seed"] == row["seed"]
        )
        assert recipe["teacher"]["members"] == teacher["member_ids"]
        assert len(json.loads(row["tuning"])["points"]) == 3
    assert len(students) == 4 and {row["status"] for row in rows} == {"done"}
    assert [f.what for f in audit(str(tmp_path)) if f.status == "failed"] == []
    assert {f.what for f in audit(str(tmp_path)) if "teachers" in f.check} == {"4 trials of students"}
    assert make_plan(sweep, store, ONE_CPU).is_done
    # A teacher that was trained again, elsewhere
    folder = member_folder(students[0]["member_ids"][0])
    record = json.loads(store.read(folder, "member.json"))
    teacher = next(iter(record["teacher"]))
    record["teacher"][teacher] = 64 * "0"
    store.write_entry(folder, {"member.json": json.dumps(record, indent=1).encode()})
    (fault, *_) = (f for f in audit(str(tmp_path)) if f.status == "failed")
    assert fault.check == "students have their teachers" and f"other weights of {teacher}" in fault.what


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda trial: Distill(members=0), "members=0: a teacher without members"),
        (lambda trial: Distill(beta=0.0), "beta=0.0: must be > 0"),
        (lambda trial: Distill(lr=-1.0), "lr=-1.0: must be > 0"),
        (lambda trial: replace(trial, regularizers=(Distill(), KL(0.1))), "a member has one reference"),
        (
            lambda trial: replace(trial, regularizers=(Distill(),), task=STSB(scoring=Value())),
            "Distill with .*Value.* no distribution over classes",
        ),
        (
            lambda trial: Sweep(
                base=replace(trial, regularizers=(Distill(),)), tune={"optimizer.lr": (1e-3, 1e-2)}
            ),
            "the teacher's recipe, which lacks Distill, is no row of the sweep",
        ),
        (
            lambda trial: Sweep(
                base=trial,
                axes={"regularizers": [(), (Distill(),)]},
                tune={"optimizer.lr": (1e-3, 1e-2), "optimizer.weight_decay": (0.0, 0.1)},
            ),
            "only 'optimizer.lr' is tuned",
        ),
        (lambda trial: Sweep(base=replace(trial, regularizers=(Distill(),)), search=ASHA()), "with a search"),
    ],
)
def test_bad_teachers_are_refused_before_training(tiny_trial, make, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_trial())
