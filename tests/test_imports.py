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


@pytest.mark.parametrize(
    "module",
    [
        "lorae.metrics",
        "lorae.trial",
        "lorae.planning.plan",
        "lorae.tasks",
        "lorae.tasks.encoding",
        "analysis.weights",
        "jobs.cli",
        "jobs.driver",
    ],
)
def test_light_modules_load_neither_torch_nor_ray(module):
    heavy = "{'torch', 'ray', 'transformers', 'mlflow', 'datasets'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_driver_of_a_sweep_does_not_wait_for_torch():
    code = "import sys, jobs.stack_trial; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
