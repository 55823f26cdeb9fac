"""A sweep as users write it with Ray Tune and PEFT: every trial loads the model, trains its own members
sequentially, and evaluates with the model's logits over the whole vocabulary.

    python -m jobs.bench.naive_sweep FILE OUT [DATA_ROOT]

It reads the same sweep file as `lorae sweep`. To OUT it writes JSON with each trial's class probabilities of
the test examples and the seconds of its parts.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.request import read_request
from lorae.regularizers import KL, DecayB
from lorae.tasks.encoding import Row
from lorae.trial import Trial

AT_ONCE = 2  # with one CPU each: faster on two cores than sequential trials with two threads
EVAL_BATCH = 32


def main(file: str, out: str, data_root: str | None) -> None:
    """Run a sweep file as Ray Tune trials of one PEFT member each; their records go to `out`."""
    import ray
    from ray import tune

    started = time.perf_counter()
    trials = [t for t in read_request(file, [], "unused", data_root).sweep.trials() if t.members]
    ray.init(num_cpus=AT_ONCE, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(train_and_evaluate, trials=trials), {"cpu": 1}),
            param_space={"number": tune.grid_search(list(range(len(trials))))},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    found = sorted((r.metrics for r in results if r.metrics), key=lambda m: m["config"]["number"])
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} trials failed: {results.errors[0]}")
    rows = [
        {key: m[key] for key in ("probabilities", "load_seconds", "train_seconds", "predict_seconds")}
        for m in found
    ]
    Path(out).write_text(json.dumps({"rows": rows, "seconds": time.perf_counter() - started}))
    ray.shutdown()


def train_and_evaluate(config: dict[str, Any], trials: Sequence[Trial]) -> dict[str, Any]:
    """One trial: its members' mean class probabilities on the test examples, and seconds."""
    started = time.perf_counter()
    import torch
    from peft import get_peft_model

    from jobs.bench.peft_side import load_lm, lora_config
    from jobs.bench.setting import rows

    trial = trials[config["number"]]
    torch.set_num_threads(1)
    lm = load_lm(trial, "cpu")
    train, test = rows(trial, "train"), rows(trial, "test")
    loaded, train_seconds, predict_seconds, members = time.perf_counter(), 0.0, 0.0, []
    for member in range(trial.members):
        torch.manual_seed(member)
        began = time.perf_counter()
        model: Any = get_peft_model(lm, lora_config(trial))
        train_member(model, trial, train)
        trained = time.perf_counter()
        members.append(probabilities(model, test))
        lm = model.unload()
        train_seconds += trained - began
        predict_seconds += time.perf_counter() - trained
    return {
        "probabilities": torch.stack(members).mean(0).tolist(),
        "load_seconds": loaded - started,
        "train_seconds": train_seconds,
        "predict_seconds": predict_seconds,
    }


def train_member(model: Any, trial: Trial, train: Sequence[Row]) -> None:
    """Train on padded batches in random order with the loss over the whole vocabulary; KL from the model with
    its adapter disabled, decay of B as AdamW's weight decay."""
    import torch
    from torch.nn import functional as F
    from transformers import get_linear_schedule_with_warmup

    from lorae.regularizers.kl import kl_divergence

    spec, kl, decay = trial.optimizer, trial.regularizer(KL), trial.regularizer(DecayB)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for n, p in trained.items() if "lora_A" in n], "weight_decay": 0.0},
        {
            "params": [p for n, p in trained.items() if "lora_B" in n],
            "weight_decay": decay.strength if decay else 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    num_steps = trial.budget.num_steps(len(train))
    schedule = get_linear_schedule_with_warmup(optimizer, int(spec.warmup_frac * num_steps), num_steps)
    step = 0
    while step < num_steps:
        for chosen in torch.randperm(len(train)).split(trial.budget.batch_size):
            batch = [train[int(n)] for n in chosen]
            logits = last_logits(model, batch)
            answers = torch.tensor([row.answer_ids[row.label] for row in batch])
            loss = F.cross_entropy(logits, answers)
            if kl:
                with torch.no_grad(), model.disable_adapter():
                    reference = last_logits(model, batch)
                ids = torch.tensor([row.answer_ids for row in batch])
                both = logits.gather(1, ids), reference.gather(1, ids)
                loss = loss + kl.beta * kl_divergence(both[0], both[1], kl.direction).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), spec.max_grad_norm or float("inf"))
            optimizer.step()
            schedule.step()
            step += 1
            if step == num_steps:
                return


def probabilities(model: Any, test: Sequence[Row]) -> Any:
    """Class probabilities (N, C) of one member."""
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(test), EVAL_BATCH):
            batch = test[start : start + EVAL_BATCH]
            ids = torch.tensor([row.answer_ids for row in batch])
            found.append(last_logits(model, batch).gather(1, ids).softmax(1))
    return torch.cat(found)


def last_logits(model: Any, batch: Sequence[Row]) -> Any:
    """The vocabulary's logits (rows, V) at the last real position, in fp32."""
    import torch

    from jobs.bench.peft_side import padded

    ids, last = padded(batch, "cpu")
    mask = torch.arange(ids.shape[1]) <= last[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    return logits[torch.arange(len(batch)), last].float()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
