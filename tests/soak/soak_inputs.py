"""Hostile inputs for every parser, by the thousand: none may end the process, hang, or fill the memory.

    make soak, or: PYTHONPATH=tests/support python tests/soak/soak_inputs.py --number 100000 --seed 0

Input i of a seed is always the same: a valid file with bytes changed, a valid record with a part replaced, or
one made by a grammar. A parser may refuse it by a ValueError or OSError, in which the file is named; whatever
else it does is a fault: another exception, the end of its process, over 5 s of processor time, or 500 MB.
Parsers run in a forked child, many inputs in each; the parent sees which one was the last.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import select
import signal
import string
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from sweeps import make_sweep

from analysis import escape, report, tuned
from analysis.backbone import stored_tensors
from analysis.data import load_trials
from jobs.mlflow_runs import key
from jobs.request import sweep_name, with_override
from jobs.tracking import STORAGE_ID, storage_id
from lorae import untrusted
from lorae.backbone.gguf import check_header
from lorae.backbone.weights import WEIGHT_MAP, stored_names
from lorae.draws import TFB, read_draws
from lorae.engine.checkpoints import StackCheckpoints
from lorae.files import read_json
from lorae.regularizers import KL
from lorae.results import read_trials
from lorae.shapes import CONFIG, linear_shapes
from lorae.sources import Files
from lorae.store.names import trials_file
from lorae.store.peft_format import read_state, read_update
from lorae.store.predictions import PREDICTIONS, draws_of, parquet_bytes, prediction_bytes
from lorae.store.records import CURVE, DONE, FIT, SOUP
from lorae.store.store import Store
from lorae.store.tables import table as as_table
from lorae.tasks.readers import file_rows
from lorae.tasks.trec import TREC
from lorae.trial import Budget, Sweep, Trial
from lorae.uris import shown

CPU_SECONDS, MEMORY_BYTES, PER_CHILD = 5.0, 500 * 10**6, 5000
WAIT_SECONDS = 60.0  # of a clock, after which a child is ended; others may have the processor
REFUSED = ValueError, OSError


@dataclass(frozen=True)
class Parser:
    """A reader, valid inputs of it, and how they are made hostile.

    Args:
        named: what a refusal must say; "" = nothing.
    """

    read: Callable[[bytes, Path], Any]
    valid: tuple[bytes, ...]
    hostile: Callable[[bytes, random.Random], bytes]
    named: str = ""


# Hostile inputs --------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**50, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes replaced, mostly of the end, where footers are; or a part cut out, repeated, or moved."""
    if not content:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
    changed, at = bytearray(content), rng.randrange(len(content))
    kind = rng.randrange(8)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + rng.randrange(1, 9) :]
    if kind == 2:
        return content[:at] + content[max(0, at - rng.randrange(1, 64)) :]
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed))
        if kind >= 5:
            at = max(0, len(changed) - 1 - int(rng.expovariate(1 / 400)))
        byte = changed[at] ^ (1 << rng.randrange(8))
        changed[at] = byte if rng.random() < 0.6 else rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed)


def value_of(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, and numbers that JSON has not."""
    kind = rng.randrange(12 if depth < 4 else 8)
    if kind < 3:
        return rng.choice([*NUMBERS, -1, -(2**63), 10**400, 0.5, 1e308, 1e-320, float("nan"), float("inf")])
    if kind < 6:
        return rng.choice([None, True, False, "", "x", "\0", "../..", "\ud800", "a" * 5000, text_of(rng)])
    if kind < 8:
        return rng.choice([[], {}, [[]], {"type": 3}, {"": None}])
    if kind < 10:
        return [value_of(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {text_of(rng)[:9]: value_of(rng, depth + 1) for _ in range(rng.randrange(4))}


def record(content: bytes, rng: random.Random) -> bytes:
    """A record with a part replaced or removed, one that is nested deep or very long, or changed bytes."""
    kind = rng.randrange(20)
    if kind == 0:
        return rng.choice([b"[", b'{"a":', b'[{"":']) * rng.choice([30, 50, 900, 5000, 100_000])
    if kind == 1:
        return rng.choice([b"[]", b"{}", b'"",', b"1,"]) * rng.choice([10, 10**5, 2 * 10**6])
    if kind < 5:
        return mutated(content, rng)
    value = json.loads(content)
    for _ in range(rng.randrange(1, 4)):
        value = replaced(value, rng)
    return json.dumps(value).encode()


def replaced(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts, or all of it, replaced."""
    places = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    if not places or rng.random() < 0.25:
        return value_of(rng)
    place, changed = rng.choice(places), value.copy()
    if isinstance(value, dict) and rng.random() < 0.2:
        del changed[place]
        return changed
    changed[place] = replaced(value[place], rng)
    return changed


def text_of(rng: random.Random) -> str:
    """Characters that mean something to one format or another."""
    signs = (
        "$\\{}%&#_^~|*`<>[]()'\"=+-@!?/:;,. \n\r\t\x0b\x1b\x00\u2028\u202e\x85é漢🙂"
        + string.ascii_letters[:8]
    )
    return "".join(rng.choice(signs) for _ in range(rng.choice([1, 3, 10, 40, 300])))


def text(content: bytes, rng: random.Random) -> bytes:
    """Text around or in place of a valid one."""
    if rng.random() < 0.05:
        return (rng.choice("-([{+~!'\"") * rng.choice([100, 4000, 100_000])).encode()
    if rng.random() < 0.3:
        axes = (
            "members",
            "seed",
            "optimizer.lr",
            "method.rank",
            "draws",
            "precision",
            "budget.epochs",
            "x.y",
        )
        words = ("1", "2,3", "0", "-1", "1e-3", "tfb-10x0.003", "mc-0", "fp32", "None", "[]", "9" * 400)
        return f"{rng.choice(axes)}={rng.choice(words)}".encode()
    words = content.decode()
    at = rng.randrange(len(words) + 1)
    part = rng.choice([text_of(rng), "://", "s3://a:b c@d", "=1+1", ",", "none", "1e999", "9" * 4400])
    return (words[:at] + part + words[at + rng.randrange(3) :]).encode()


def header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is another record, with its length or a wrong one."""
    if rng.random() < 0.4:
        return mutated(content, rng)
    size = int.from_bytes(content[:8], "little")
    changed = record(content[8 : 8 + size], rng)
    claimed = len(changed) if rng.random() < 0.8 else rng.choice(NUMBERS)
    return struct.pack("<Q", claimed) + changed + content[8 + size :]


def checkpoint(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint whose checksum is right, mostly, whatever is in it."""
    changed = header(content, rng)
    return changed + (hashlib.sha256(changed).digest() if rng.random() < 0.9 else b"\0" * 32)


def gguf(content: bytes, rng: random.Random) -> bytes:
    """Changed bytes, or settings of any type and any claimed length."""
    if rng.random() < 0.4:
        return mutated(content, rng)

    def number() -> bytes:
        return struct.pack("<Q", rng.choice(NUMBERS) if rng.random() < 0.4 else rng.randrange(9))

    parts = [b"GGUF", struct.pack("<I", rng.choice([0, 1, 2, 3, 2**31])), number(), number()]
    for _ in range(rng.randrange(6)):
        parts += [struct.pack("<Q", 3), b"key", struct.pack("<I", rng.choice([*range(14), 2**32 - 1]))]
        parts += [struct.pack("<I", rng.randrange(14)), number(), number(), bytes(rng.randrange(64))]
    return b"".join(parts)


# Parsers ---------------------------------------------------------------------------------------------------


def written(name: str, content: bytes, folder: Path) -> Store:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    store = Store(str(folder))
    store.storage.retry_seconds = 0.0
    return store


def of_shape(shape: untrusted.Shape) -> Callable[[bytes, Path], Any]:
    return lambda content, _: untrusted.json_object(content, "record.json", shape)


def a_gguf() -> bytes:
    words = [b"a", b"bb"]
    listed = b"".join(struct.pack("<Q", len(w)) + w for w in words)
    setting = struct.pack("<Q", 3) + b"key" + struct.pack("<IIQ", 9, 8, len(words)) + listed
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 8, 0, 0)
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + setting + tensor
    return content + bytes(-len(content) % 32 + 32)


def tables() -> tuple[bytes, ...]:
    ids, logits = ["a", "b"], np.zeros((2, 2, 3), np.float32)
    curve = [{"step": 1, "split": "train", "loss": 1.0}]
    return (
        prediction_bytes("m", "colours__test__12345678", ids, [0, 1], [3, 2], logits),
        parquet_bytes(pa.Table.from_pylist(curve, schema=CURVE)),
        parquet_bytes(pa.table({"text": ["x", "y" * 100], "nested": [[1, 2], []], "at": [{"a": 1}, None]})),
    )


def toy_trials() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory(prefix="lorae-soak-") as folder:
        storage = make_sweep(Path(folder), {"regularizers": [(), (KL(),)], "members": [0, 1, 2]})
        return (Store(storage).storage.read(trials_file("toy")),)


def any_table(content: bytes, _: Path) -> None:
    for schema in (PREDICTIONS, CURVE, None):
        with contextlib.suppress(ValueError):
            found = as_table(content, "t.parquet", schema)
            if schema is PREDICTIONS:
                draws_of(found, "t.parquet")
    as_table(content, "t.parquet")


def dataset(suffix: str) -> Callable[[bytes, Path], Any]:
    def read(content: bytes, folder: Path) -> None:
        path = folder / f"data{suffix}"
        path.write_bytes(content)
        file_rows(path)

    return read


def weights(content: bytes, folder: Path) -> None:
    for read in (lambda: read_state(content), lambda: read_update(ADAPTER, content).factors("q_proj")):
        with contextlib.suppress(ValueError):
            read()
    store = written("w.safetensors", content, folder)
    with contextlib.suppress(ValueError):
        stored_names(folder / "w.safetensors")
    for tensor in stored_tensors(store.storage, "w.safetensors").values():
        with contextlib.suppress(ValueError):
            tensor.read()


def a_checkpoint(content: bytes, folder: Path) -> None:
    store = written("checkpoints/s.safetensors", content, folder)
    StackCheckpoints(store.storage, "s", 1.0, lambda: False).load()


def done(content: bytes, folder: Path) -> None:
    store = written("members/m/DONE.json", content, folder)
    store.files("members/m")
    store.damage("members/m", changed_only=True)
    store.size_bytes("members/m")


def config(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    found = read_json(folder / "config.json", CONFIG)
    with contextlib.suppress(KeyError, TypeError):  # which `check_recipe` turns into a message
        if found.get("model_type") in ("llama", "gpt2", "bert", "vit", "gpt_neox"):
            linear_shapes(found | {"num_hidden_layers": min(found.get("num_hidden_layers") or 1, 100)})


def labels(content: bytes, _: Path) -> None:
    words = content.decode(errors="replace")
    for write in (escape.latex, escape.markdown, escape.markdown_cell, escape.page, escape.csv_cell, key):
        assert "\n" not in str(write(words))
    shown(words)
    read_draws(words)
    assert len(sweep_name("x", [words])) <= 120


def override(content: bytes, _: Path) -> None:
    with_override(SWEEP, content.decode(errors="replace")).trials()


def trials(content: bytes, folder: Path) -> None:
    """What an analysis asks of the rows alone, without members."""
    store = written(trials_file("toy"), content, folder)
    read_trials(store, "toy")
    found = load_trials(str(folder), "toy", allow_missing=True)
    report.facts(found, "results")
    for cell in found.cells:
        assert cell.settings and cell.test_set and tuned.tuning_notes([cell]) is not None


def cells_of_trials(content: bytes, rng: random.Random) -> bytes:
    """A table of trials whose bytes are changed, or some of its cells."""
    if rng.random() < 0.4:
        return mutated(content, rng)
    table = pq.read_table(io.BytesIO(content))
    rows = table.to_pylist()
    for _ in range(rng.randrange(1, 3)):
        row, name = rng.choice(rows), rng.choice(table.column_names)
        cell, kind = row[name], table.schema.field(name).type
        if name in ("recipe", "eval_sets", "provenance", "tuning"):
            row[name] = record((cell or "{}").encode(), rng).decode(errors="replace")[: 2**16]
        elif kind == pa.string():
            row[name] = rng.choice([None, text_of(rng), ""])
        elif pa.types.is_list(kind):
            row[name] = rng.choice([[], [None], [text_of(rng)], cell + cell])
        else:
            limit = {pa.int32(): 2**31 - 1, pa.float64(): 1e308}.get(kind, 2**62)
            row[name] = rng.choice([None, 0, -1, 1, limit, -limit])
    return parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema))


def mlflow_id(content: bytes, folder: Path) -> None:
    storage_id(written(STORAGE_ID, content, folder).storage)


SWEEP = Sweep(base=Trial(backbone=Files("/nowhere"), task=TREC(), budget=Budget(epochs=1)), axes={})
ADAPTER = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}).encode()
TENSORS = safetensors.numpy.save(
    {
        "base_model.model.q_proj.lora_A.weight": np.ones((1, 4), np.float32),
        "base_model.model.q_proj.lora_B.weight": np.ones((4, 1), np.float32),
    },
    metadata={"header": json.dumps({"step": 1, "active": [0], "runs": [{"member": 0, "curve": 1}]})},
)
MODEL = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
MODEL |= {"intermediate_size": 16, "vocab_size": 32, "architectures": ["LlamaForCausalLM"]}


def as_json(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def parsers() -> dict[str, Parser]:
    listed = as_json({"schema": 1, "files": {"a": {"sha256": "0" * 64, "bytes": 1}}, "written": 1.0})
    sums = as_json({"members": {"m": "0" * 64}, "cost": {"predict_seconds": 1.0}})
    fit = as_json({"sigma": 0.1, "search_seconds": 1.0, "search_flops": None})
    index = as_json({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    update = as_json(json.loads(ADAPTER))
    rows = as_json([{"id": 1, "text": "a"}]), (b'{"id": 1}\n{"id": 2}\n',), (b'id,text\n1,"a\nb"\n',)
    return {
        "parquet": Parser(any_table, tables(), mutated, "t.parquet"),
        "trials.parquet": Parser(trials, toy_trials(), cells_of_trials, "trials.parquet"),
        "dataset.parquet": Parser(dataset(".parquet"), tables(), mutated, "data.parquet"),
        "safetensors": Parser(weights, (TENSORS,), header, "w.safetensors"),
        "checkpoint": Parser(a_checkpoint, (TENSORS,), checkpoint),
        "gguf": Parser(lambda c, f: _gguf(c, f), (a_gguf(),), gguf, "m.gguf"),
        "DONE.json": Parser(done, listed, record, "members/m"),
        "done": Parser(of_shape(DONE), listed, record, "record.json"),
        "soup.json": Parser(of_shape(SOUP), sums, record, "record.json"),
        "fit": Parser(of_shape({**TFB.record, **FIT}), fit, record, "record.json"),
        "adapter_config.json": Parser(lambda c, _: read_update(c, TENSORS), update, record),
        "config.json": Parser(config, as_json(MODEL), record, "config.json"),
        "index.json": Parser(_index, index, record, "index.json"),
        "mlflow-id.json": Parser(mlflow_id, as_json({"storage_id": "0" * 16}), record, STORAGE_ID),
        "data.json": Parser(dataset(".json"), rows[0], record, "data.json"),
        "data.jsonl": Parser(dataset(".jsonl"), rows[1], mutated, "data.jsonl"),
        "data.csv": Parser(dataset(".csv"), rows[2], mutated, "data.csv"),
        "labels": Parser(labels, (b"kl-0.1", b"decay_b-50", b"s3://bucket/a?b=c"), text),
        "--set": Parser(override, (b"members=1,2", b"optimizer.lr=1e-3", b"seed=0"), text),
    }


def _gguf(content: bytes, folder: Path) -> None:
    (folder / "m.gguf").write_bytes(content)
    check_header(folder / "m.gguf")


def _index(content: bytes, folder: Path) -> None:
    (folder / "index.json").write_bytes(content)
    read_json(folder / "index.json", WEIGHT_MAP)


# Children and their parent ---------------------------------------------------------------------------------


def hostile(known: dict[str, Parser], seed: int, number: int) -> tuple[str, bytes]:
    """Input `number` of a seed, and the parser that gets it."""
    rng, name = random.Random(f"{seed}-{number}"), [*known][number % len(known)]
    parser = known[name]
    return name, parser.hostile(rng.choice(parser.valid), rng)


def outcome(parser: Parser, content: bytes, folder: Path) -> str:
    """ "read", "refused", or what is wrong."""
    try:
        parser.read(content, folder)
    except REFUSED as error:
        return "refused" if parser.named in str(error) else f"no file named: {error!r}"[:300]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "read"


def child(seed: int, numbers: range, told: int, folder: Path) -> None:
    """Parse inputs and tell of each, before it its parser and after it the outcome. The parent has not used
    pyarrow: a fork of one that has waits for threads that it has not."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tempfile.tempdir = str(folder)
    known = parsers()
    grown = 8 * MEMORY_BYTES + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in numbers:
        name, content = hostile(known, seed, number)
        os.write(told, f"{name}\n".encode())
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = outcome(known[name], content, folder)
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if seconds > CPU_SECONDS:
            found = f"{seconds:.0f} s"
        if (grown := 1024 * (after.ru_maxrss - before.ru_maxrss)) > MEMORY_BYTES:
            found = f"{grown / 1e6:.0f} MB"
        os.write(told, (found.replace("\n", " ") + "\n").encode(errors="replace"))


def hangs(pid: int, since: float) -> bool:
    """Whether a process that is silent waits for something, or has had its time; else others have the
    processor."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "RD" or processor_seconds(pid) - since > 2 * CPU_SECONDS


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_child(seed: int, numbers: range, folder: Path) -> list[tuple[str, str]]:
    """(parser, outcome) of a child's inputs, the last of which may have ended it."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(seed, numbers, tell, folder)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    lines, rest, hung, since = list[str](), b"", False, 0.0
    while True:
        if not select.select([told], [], [], WAIT_SECONDS)[0]:
            if not hangs(pid, since):
                continue
            hung = True
            os.kill(pid, signal.SIGKILL)
        since = processor_seconds(pid)
        if not (part := os.read(told, 2**16)):
            break
        *whole, rest = (rest + part).split(b"\n")
        lines += [line.decode(errors="replace") for line in whole]
    os.close(told)
    _, status = os.waitpid(pid, 0)
    if not lines:
        raise SystemExit("the soak cannot begin: its child ended before the first input")
    if len(lines) % 2:
        killed = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status >> 8}"
        lines.append(f"no end within {WAIT_SECONDS:.0f} s" if hung else killed)
    return [*zip(lines[::2], lines[1::2])]


def memory_folder() -> str | None:
    """Where files cost nothing, if there is such a folder."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def soak(number: int, seed: int) -> tuple[Counter[tuple[str, str]], dict[int, str]]:
    """How often each parser read or refused its inputs, and the faults by the number of their input."""
    counts, faults, at = Counter[tuple[str, str]](), dict[int, str](), 0
    while at < number:
        with tempfile.TemporaryDirectory(prefix="lorae-soak-", dir=memory_folder()) as folder:
            outcomes = run_child(seed, range(at, min(number, at + PER_CHILD)), Path(folder))
        for name, found in outcomes:
            counts[name, found if found in ("read", "refused") else "fault"] += 1
            if found not in ("read", "refused"):
                faults[at] = f"{name}: {found}"
            at += 1
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, metavar="I", help="write input I to stdout and stop")
    arguments = parser.parse_args()
    if arguments.show is not None:
        sys.stdout.buffer.write(hostile(parsers(), arguments.seed, arguments.show)[1])
        return 0
    started = time.monotonic()
    counts, faults = soak(arguments.number, arguments.seed)
    for name in dict.fromkeys(name for name, _ in counts):
        print(f"{name:20} " + " ".join(f"{w} {counts[name, w]}" for w in ("read", "refused", "fault")))
    for number, fault in [*faults.items()][:50]:
        print(f"input {number}: {fault}")
    seconds = time.monotonic() - started
    print(f"{arguments.number} inputs of seed {arguments.seed} in {seconds:.0f} s: {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
