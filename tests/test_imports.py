"""Who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "lorae": {"ray", "deepspeed", "mlflow", "jobs", "pipelines", "analysis"},
    "pipelines": {"ray", "deepspeed", "mlflow", "torch", "jobs", "analysis"},
    "analysis": {"ray", "deepspeed", "mlflow", "torch", "transformers", "jobs", "pipelines"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_layers_import_only_what_they_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): bad for f in files if (bad := imported(f) & FORBIDDEN[package])}
    assert not wrong


# Floors of lorae: a module imports from its own and from those above it in this list. What a hook imports
# when it runs, and what only a type checker reads, does not count.
FLOORS = [
    (
        "identity",
        "seeds",
        "noise",
        "uris",
        "files",
        "cache",
        "shards",
        "shapes",
        "sources",
        "media",
        "augmentation",
        "search",
        "untrusted",
        "near",
    ),
    ("metrics",),
    ("tasks",),
    ("combinations",),
    ("methods", "regularizers", "draws"),
    ("trial",),
    ("store",),
    ("ensemble",),
    ("recalibration",),
    ("texts",),
    ("backbone",),
    ("planning",),
    ("results",),
    ("lookup",),
    ("engine",),
]
HOOKS = {"lorae.draws.laplace.linearised"}  # loaded by a hook alone


def imported_at_once(path: Path) -> set[str]:
    """Modules of lorae that are imported when this one is."""
    found, bodies = set(), [ast.parse(path.read_text()).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                bodies += [node.body, node.orelse]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lorae":
                found |= {node.module} if node.module != "lorae" else {f"lorae.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.startswith("lorae.")}
    return found


def test_a_floor_of_lorae_imports_from_itself_and_those_above():
    level = {part: number for number, floor in enumerate(FLOORS) for part in floor}
    wrong, seen = [], set()
    for path in (ROOT / "lorae").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "lorae" or module in HOOKS:
            continue
        part = module.split(".")[1]
        seen.add(part)
        others = {other.split(".")[1] for other in imported_at_once(path) if other != "lorae"}
        wrong += [f"{module} imports {other}" for other in others if level[other] > level[part]]
        wrong += [
            f"{module} imports {other}, beside it"
            for other in others
            if level[other] == level[part] != 0 and other != part and (part, other) not in BESIDE
        ]
    assert seen == level.keys() and not wrong, wrong


# Within a floor: draws name the methods and regularisers that they are of
BESIDE = {("draws", "methods"), ("draws", "regularizers")}


@pytest.mark.process
@pytest.mark.parametrize(
    "module",
    [
        "lorae",
        "lorae.metrics",
        "lorae.trial",
        "lorae.planning.plan",
        "lorae.tasks",
        "lorae.tasks.encoding",
        "analysis.weights",
        "analysis.table",
        "analysis.audit",
        "analysis.report",
        "analysis.generation",
        "jobs.cli",
        "jobs.driver",
    ],
)
def test_light_modules_load_neither_torch_nor_ray(module):
    heavy = "{'torch', 'ray', 'deepspeed', 'transformers', 'mlflow', 'datasets'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.process
def test_the_driver_of_a_sweep_does_not_wait_for_torch():
    code = "import sys, jobs.stack_trial; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
