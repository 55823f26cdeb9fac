"""How well LoRA and VeRA fit random square matrices with equally many parameters, by their exact optima.

    python -m analysis.matrix_fit --out figures

After the appendix of arXiv:2310.11454, which trains both by gradient descent. Here no learning rate decides:
LoRA's best fit of rank r is the truncated singular value decomposition (Eckart and Young 1936), with
2 r width parameters; VeRA's vectors d and b, width + rank parameters around fixed random matrices, are each
the solution of a linear least-squares problem given the other, solved in turns until nothing changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.columns import Column
from analysis.plotting import Plot, axes_of, legend_above, look, save, styled
from analysis.render import markdown, save_table
from analysis.table import Entry, Line, Table

STEPS = 200  # at most; a fit ends earlier if a step gains less than `TOLERANCE`
TOLERANCE = 1e-6
RANKS = 4  # of LoRA

Errors = dict[str, list[np.ndarray]]  # method -> errors of the matrices (N,), at each number of parameters


def lora_error(W_DD: np.ndarray, rank: int) -> float:
    """Smallest squared error of a matrix of this rank, as a share of the squared norm of W."""
    squared = np.linalg.svd(W_DD, compute_uv=False) ** 2
    return float(squared[rank:].sum() / squared.sum())


def vera_error(W_DD: np.ndarray, A_RD: np.ndarray, B_DR: np.ndarray, steps: int = STEPS) -> float:
    """Squared error of diag(b) B diag(d) A after alternating least squares, as a share of that of W; d starts
    at 1."""
    d_R, rows, error = np.ones(len(A_RD)), A_RD @ A_RD.T, np.inf
    b_D = _scales(W_DD, B_DR @ A_RD)
    for _ in range(steps):
        wide_DR = b_D[:, None] * B_DR
        gram_RR = (wide_DR.T @ wide_DR) * rows
        target_R = np.einsum("dr,de,re->r", wide_DR, W_DD, A_RD, optimize=True)
        d_R = np.linalg.solve(gram_RR, target_R)
        made_DD = B_DR @ (d_R[:, None] * A_RD)
        b_D = _scales(W_DD, made_DD)
        before, error = error, float(np.sum((W_DD - b_D[:, None] * made_DD) ** 2) / np.sum(W_DD**2))
        if before - error < TOLERANCE:
            break
    return error


def _scales(W_DD: np.ndarray, made_DD: np.ndarray) -> np.ndarray:
    """The best factor of each row."""
    return np.sum(W_DD * made_DD, axis=1) / np.maximum(np.sum(made_DD**2, axis=1), 1e-30)


def fits(width: int, num_matrices: int, seed: int = 0) -> tuple[list[int], Errors]:
    """Numbers of parameters, and both methods' errors on Gaussian matrices at each of them."""
    rng, counts = np.random.default_rng(seed), [2 * rank * width for rank in range(1, RANKS + 1)]
    matrices = rng.normal(size=(num_matrices, width, width))
    errors: Errors = {"LoRA": [], "VeRA": []}
    for count in counts:
        errors["LoRA"].append(np.array([lora_error(W, count // (2 * width)) for W in matrices]))
        rank = count - width  # so that rank + width are as many
        drawn = ((rng.normal(size=(rank, width)), rng.normal(size=(width, rank))) for _ in matrices)
        errors["VeRA"].append(np.array([vera_error(W, A, B) for W, (A, B) in zip(matrices, drawn)]))
    return counts, errors


def fit_table(width: int, counts: Sequence[int], errors: Errors) -> Table:
    """A line for each number of parameters."""
    lines: list[Line] = [
        {"parameters": Entry(str(count)), **{name: _over(errors[name][n]) for name in errors}}
        for n, count in enumerate(counts)
    ]
    return Table(
        name="matrix-fit",
        title=f"Fitting random {width} x {width} matrices",
        caption=(
            "Squared error over the matrix's squared norm, mean ± standard error over "
            f"{len(errors['LoRA'][0])} Gaussian matrices; lower is better. LoRA: truncated "
            "singular value decomposition; VeRA: alternating least squares for d and b."
        ),
        columns=(Column("parameters", "text"), *(Column(name, "metric", decimals=4) for name in errors)),
        blocks=(tuple(lines),),
    )


def _over(errors_N: np.ndarray) -> Entry:
    return Entry(float(errors_N.mean()), float(errors_N.std(ddof=1) / np.sqrt(len(errors_N))))


@styled
def fit_figure(width: int, counts: Sequence[int], errors: Errors) -> Plot:
    """Error against parameters, a line for each method."""
    figure, axes = axes_of()
    for number, (name, found) in enumerate(errors.items()):
        axes.plot(counts, [float(e.mean()) for e in found], label=name, **look(number))
    axes.set(xlabel="parameters", ylabel="squared error (share of the norm)")
    legend_above(figure, axes)
    caption = f"Best fit of random {width} x {width} matrices by LoRA and VeRA with equally many parameters."
    return Plot("matrix-fit", caption, figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it with its figure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.matrix_fit", description=fits.__doc__)
    parser.add_argument("--width", type=int, default=64, help="of the matrices (default: 64)")
    parser.add_argument("--matrices", type=int, default=3, help="how many, 2 or more (default: 3)")
    parser.add_argument("--out", type=Path, help="folder of the files (default: none are written)")
    args = parser.parse_args(argv)
    if args.width <= RANKS or args.matrices < 2:
        parser.error(f"--width {args.width} --matrices {args.matrices}: must be above {RANKS}, and 2 or more")
    counts, errors = fits(args.width, args.matrices)
    table = fit_table(args.width, counts, errors)
    print(markdown(table))
    if args.out:
        save_table(table, args.out)
        save(fit_figure(args.width, counts, errors), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
