"""What the user asked for: a sweep file, the axes replaced on the command line, where results and data
are."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import secrets
import shlex
import subprocess
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jobs.labels import forms, spec_of_label
from jobs.zero import Zero, zero_devices
from lorae.draws import read_draws
from lorae.identity import digest
from lorae.near import did_you_mean
from lorae.planning.estimate import Devices
from lorae.planning.memory import Saving
from lorae.planning.stack import Stack
from lorae.trial import Sweep
from lorae.trial.axes import field_type, value_at
from lorae.uris import remember, shown

Watch = Callable[[Sequence[Stack], int, dict[str, Any]], None]  # a plan's stacks, which one, its progress
MAX_NAME = 100
MAX_OVERRIDE = 5000  # characters
INSTALLED = ("lorae", "jobs", "pipelines", "analysis")  # on every node, though a checkout is a folder, too


@dataclass(frozen=True)
class Request:
    """A sweep as asked for on the command line.

    Attributes:
        name: of the sweep: the file's, followed by the axes that were replaced.
        command: the line that repeats it.
        module: the sweep file; None = a Python program asked, whose own modules workers may lack.
        recompute: trade time for memory, see `lorae.engine.run.run_stack`.
        zero: spread each stack's backbone over several workers; None = one device holds it.
        watch: told how each stack gets on; must return at once.
    """

    name: str
    sweep: Sweep
    storage: str
    command: str
    module: types.ModuleType | None
    recompute: bool = False
    zero: Zero | None = None
    watch: Watch | None = field(default=None, compare=False)

    def on(self, devices: Devices) -> Devices:
        """The devices as this request's stacks use them.

        Raises:
            ValueError: a stack takes more than there are.
        """
        return zero_devices(replace(devices, saving=Saving(self.recompute)), self.zero)


def read_request(
    file: str,
    overrides: Sequence[str],
    storage: str,
    data_root: str | None,
    smoke: bool = False,
    recompute: bool = False,
    zero: Zero | None = None,
    where: Sequence[str] = (),
) -> Request:
    """Load the sweep file, apply `--set axis=v1,v2`, and fix every source.

    Args:
        smoke: take the file's SMOKE, the small variant of its SWEEP.
        where: what else the command line says, of where stacks run and what is told; for `Request.command`.
    Raises:
        ValueError: no such file, no SWEEP in it, an unknown axis or value, or a source that cannot be had.
    """
    path = sweep_file(file)
    module = load_module(path)
    sweep = sweep_of(module, smoke)
    for override in overrides:
        sweep = with_override(sweep, override)
    name = sweep_name(path.stem, ["smoke", *overrides] if smoke else overrides)
    storage = absolute(storage)
    words = ["lorae", "sweep", str(path), "--storage", shown(storage)]
    words += ["--data-root", str(Path(data_root).resolve())] if data_root else []
    words += ["--smoke"] if smoke else []
    words += [word for o in overrides for word in ("--set", o)]
    words += (["--recompute"] if recompute else []) + (zero.words if zero else [])
    words += map(shown, where)
    located = sweep.located(Path(data_root) if data_root else None)
    return Request(name, located, storage, shlex.join(words), module, recompute, zero)


def absolute(storage: str) -> str:
    """A storage as other processes find it; credentials in its URI are hidden from now on."""
    remember(storage)
    return storage if "://" in storage else str(Path(storage).expanduser().resolve())


@functools.cache
def driver_id() -> str:
    """Of this process."""
    return secrets.token_hex(8)


def member_provenance(request: Request) -> dict[str, Any]:
    """`provenance`, and which driver had a member trained: several may work on one storage."""
    return provenance(request) | {"driver": driver_id()}


def sweep_name(stem: str, overrides: Sequence[str]) -> str:
    """Name of the sweep's folder: the file's and the replaced axes; a long one is cut and hashed."""
    name = re.sub(r"[^A-Za-z0-9.+_]+", "-", "-".join([stem, *overrides])).lstrip(".") or "sweep"
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{digest(name)}"


def sweep_file(file: str) -> Path:
    """The file as given, or below the folder that lorae's own pipelines are in (`ray submit` changes
    folder)."""
    import pipelines

    own = Path(next(iter(pipelines.__path__))).parent
    for path in (Path(file).expanduser(), own / file):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(p.name for p in (own / "pipelines").glob("[!_]*.py")))
    raise ValueError(f"{file} is no file; give a sweep file's path, or one of pipelines/: {known}")


def sweep_of(module: types.ModuleType, smoke: bool) -> Sweep:
    """The SWEEP of a sweep file, or its SMOKE.

    Raises:
        ValueError: it defines none.
    """
    wanted = "SMOKE" if smoke else "SWEEP"
    sweep = getattr(module, wanted, None)
    if not isinstance(sweep, Sweep):
        missing = f"{module.__file__} defines no {wanted}"
        raise ValueError(f"{missing}; write {wanted} = Sweep(base=Trial(...), axes={{...}}) in it")
    return sweep


def load_module(path: Path) -> types.ModuleType:
    """Execute a sweep file as a module; its folder can be imported from.

    Raises:
        ValueError: whatever it raises, with the line.
    """
    spec = importlib.util.spec_from_file_location(f"lorae_sweep_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; give one whose name ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ValueError(f"{_line(error, path)}: {_one_line(error)}{_takes(error, module)}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """`file:line` of the sweep file, or of a module beside it, where an error comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).parent == path.parent]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)


def _one_line(error: BaseException) -> str:
    """What an error says: of ours the message, else also its kind, and the name that was meant."""
    told = "".join(traceback.TracebackException.from_exception(error).format_exception_only()).strip()
    first, last = (str(error) or type(error).__name__).splitlines()[0], told.splitlines()[-1]
    if isinstance(error, SyntaxError):
        return f"{last}; correct that line"
    return first if type(error) is ValueError else last


def modules_of(request: Request) -> list[types.ModuleType]:
    """The sweep file and what it imported from its own folder, which other nodes may lack; of a Python
    program the modules of its tasks."""
    if request.module is None:
        tasks = [task for trial in request.sweep.trials() for task in request.sweep.eval_tasks(trial)]
        kinds = {kind for task in tasks for kind in type(task).__mro__}
        names = {kind.__module__ for kind in kinds} - {"__main__", "builtins"}
        return [sys.modules[name] for name in sorted(names) if name.partition(".")[0] not in INSTALLED]
    assert request.module.__file__
    folder, found = Path(request.module.__file__).parent, [request.module]
    for name, module in sys.modules.copy().items():  # MLflow is imported meanwhile
        file = getattr(module, "__file__", None)
        places = (folder / f"{name}.py", folder / name / "__init__.py")
        if name not in INSTALLED and file and Path(file) in places:
            found.append(module)
    return found


def _takes(error: BaseException, module: types.ModuleType) -> str:
    """What a spec takes that was given an argument which it does not know."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = getattr(module, found[1], None) if found else None
    if not found or not is_dataclass(kind):
        return ""
    known = [f.name for f in fields(kind)]
    return f"; {did_you_mean(found[2], known)}it takes {', '.join(known)}"


def with_override(sweep: Sweep, override: str) -> Sweep:
    """The sweep with an axis replaced or added: `members=1,2`, `method.rank=4,8`, `regularizers=none,kl-0.1`,
    `draws=none,tfb-10x0.003`.

    Numbers and words are read by the field's type. A field that holds a spec takes the labels of the values
    that the file gives for it, and every label from which its spec can be made: kl-0.5, vera, TREC.

    Raises:
        ValueError: no such axis, or a value that it cannot take.
    """
    if len(override) > MAX_OVERRIDE:
        raise ValueError(
            f"--set {override[:60]}...: {len(override)} characters, at most {MAX_OVERRIDE} are read"
        )
    axis, equals, words = override.partition("=")
    if not equals or not words:
        raise ValueError(f"--set {override}: write axis=value, or axis=value,value")
    *path, leaf = axis.split(".")
    owner: Any = value_at(sweep.base, ".".join(path)) if path else sweep.base
    if not is_dataclass(owner) or leaf not in owner.__dataclass_fields__:
        raise ValueError(f"--set {override}: {axis!r} is no axis; {_meant(sweep.base, axis)}")
    declared = field_type(owner, leaf)
    given = [*sweep.grid.get(axis, []), getattr(owner, leaf)]
    values = [_value(axis, word, declared, given) for word in words.split(",")]
    return replace(sweep, axes=sweep.axes | {axis: values})


def _meant(base: Any, axis: str) -> str:
    """The axis nearest to one that does not exist, and where they are listed."""
    axes, leaf = [*_axes(base)], axis.rpartition(".")[2]
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(axes)}
    near = get_close_matches(axis, axes, cutoff=0.8) or [a for a in axes if a.endswith(f".{leaf}")]
    near = near or [by_leaf[name] for name in get_close_matches(leaf, by_leaf)]
    known = ", ".join(f.name for f in fields(base))
    return (f"did you mean {near[0]}? " if near else "") + f"the trial has {known} (dotted for their fields)"


def _axes(spec: Any, before: str = "") -> Iterator[str]:
    """Dotted paths to all fields of a spec, those of a tuple's specs by their types."""
    for name in (f.name for f in fields(spec)):
        yield before + name
        value = getattr(spec, name)
        if is_dataclass(value):
            yield from _axes(value, f"{before}{name}.")
        for part in value if isinstance(value, tuple) else ():
            if is_dataclass(part):
                yield from _axes(part, f"{before}{name}.{type(part).__name__}.")


def _value(axis: str, word: str, declared: Any, given: list[Any]) -> Any:
    if axis == "draws":
        if word != "none" and read_draws(word) is None:
            raise ValueError(
                f"--set {axis}={word}: write none, mc-10, tfb-10x0.003, laplace-100x10 or posterior-10"
            )
        return read_draws(word)
    by_label = {_label(v): v for v in given if is_dataclass(v) or isinstance(v, tuple)}
    if by_label:
        if word in by_label:
            return by_label[word]
        if (made := spec_of_label(axis, word)) is not None:
            return made
        known = [*by_label, *(form for form in forms(axis) if form not in by_label)]
        raise ValueError(
            f"--set {axis}={word}: {did_you_mean(word, known)}the file gives it the values "
            f"{', '.join(by_label)}; others are {', '.join(known[len(by_label) :]) or 'written in the file'}"
        )
    kinds = typing.get_args(declared) or (declared,)
    if word in kinds:
        return word
    try:
        return None if word == "none" and type(None) in kinds else ast.literal_eval(word)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: too deep for Python
        return word


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(_label(v) for v in value) or "none"
    return getattr(value, "label", str(value))


def provenance(request: Request) -> dict[str, Any]:
    """What is recorded with each result: the command and the commit of the code."""
    return {"command": request.command, "commit": commit(Path(__file__).parent)}


def commit(folder: Path) -> str:
    """Commit of a git checkout, with "-dirty" if files differ from it; "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
