"""The linearised Laplace approximation around trained LoRA members.

A member's weights theta get the Gaussian N(theta, (H + lambda I)^-1), and its logits, linearised in the
weights, get N(f(x), J(x) (H + lambda I)^-1 J(x)^T). H, the generalised Gauss-Newton matrix of the training
NLL, is block-diagonal over the factors A and B; each block is the Kronecker product of two sums over tokens:
of the factor's inputs and, over classes too, of its output gradients (K-FAC, Martens and Grosse 2015,
arXiv:1503.05671). One of the two has the size of LoRA's rank; the other is as wide as a layer, and its
largest eigenvalues are kept. Source: Yang et al. 2023, arXiv:2308.13111; the sums, and the mean over examples
in one of them, follow the authors' code (adamxyang/laplace-lora, c59665d, via ASDL). They treat the tokens of
a row as separate examples, so the trace of H exceeds the exact matrix's by about the number of tokens of a
row. The authors update a truncated SVD with every batch; here one product with a random matrix is summed
(Nystrom approximation, Tropp et al. 2017, arXiv:1706.05736), which depends neither on the batches nor on the
other members.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import root_scalar

from lorae import seeds
from lorae.backbone.devices import to_device
from lorae.backbone.encoders import EncoderBatch
from lorae.draws.laplace import Laplace
from lorae.draws.sampling import Fit, Sampler
from lorae.engine.adapters import Adapters, State
from lorae.engine.batches import class_logits, collate
from lorae.tasks.encoding import Row

PRECISIONS = 1e-8, 1e12  # bounds of the search for the prior precision


class Linearised(Sampler[Laplace]):
    """Draws of the logits of a stack's members, linearised in the weights."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, (rank, width) in shapes_of(self.adapters).items():
            kept = min(self.spec.rank, width)
            found |= {f"{name}.wide": (kept, width), f"{name}.narrow": (rank, rank)}
            found[f"{name}.curvature"] = kept, rank
        return found

    def _fitted(self, rows: Sequence[Row]) -> list[Fit]:
        num_classes, curvature = max(row.num_classes for row in rows), _Curvature(self.adapters, self.spec)
        for indices, real in self._parts(rows):
            part = [rows[n] for n in indices]
            curvature.add(_Pass(self.adapters, part, real, num_classes))
            self._report(part[:real], num_classes)
        self.adapters.backbone.ranks.sum_(curvature.sums())
        found = []
        for m, state in enumerate(self.states):
            tensors = curvature.of_member(m, len(rows))
            eigenvalues = [value.flatten() for name, value in tensors.items() if name.endswith(".curvature")]
            norms = [state[name].double().square().sum().item() for name in curvature.wide]
            precision = prior_precision(torch.cat(eigenvalues).cpu().numpy(), sum(norms))
            record = {"prior_precision": precision, "passes": self.spec.num_passes(num_classes)}
            found.append(Fit(record, {name: value.float().cpu() for name, value in tensors.items()}))
        return found

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        backbone, num_classes = self.adapters.backbone, max(row.num_classes for row in rows)
        size, device = (len(self.states), len(rows), num_classes), backbone.device
        mean_MNC = torch.zeros(size, device=device)
        covariance_MNCC = torch.zeros(*size, num_classes, dtype=torch.float64, device=device)
        posterior = {name: self._posterior(name) for name in shapes_of(self.adapters)}
        for indices, real in self._parts(rows):
            part, where = [rows[n] for n in indices], to_device(indices[:real], device)
            mean, covariance = _gaussian(_Pass(self.adapters, part, real, num_classes), posterior)
            mean_MNC.index_copy_(1, where, mean)
            covariance_MNCC.index_copy_(1, where, covariance)
            self._report(part[:real], num_classes)
        backbone.ranks.sum_([mean_MNC, covariance_MNCC])
        return self._drawn(rows, mean_MNC.cpu().numpy(), covariance_MNCC.cpu().numpy())

    def _parts(self, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, int]]:
        """Indices of this rank's rows, ordered by length, in parts whose Jacobians are not too large; and how
        many of the indices count."""
        ranks, num_classes = self.adapters.backbone.ranks, max(row.num_classes for row in rows)
        longest_first = np.argsort([-len(row.tokens) for row in rows], kind="stable")
        for part, real in ranks.parts(len(rows), self.spec.fitted_at_once(self.rows_at_once, num_classes)):
            yield longest_first[part], real

    def _report(self, rows: Sequence[Row], num_classes: int) -> None:
        for _ in range(self.spec.num_passes(num_classes)):
            self.on_rows(rows)

    def _posterior(self, name: str) -> _Posterior:
        def stacked(part: str) -> torch.Tensor:
            values = [fit.tensors[f"{name}.{part}"] for fit in self.fits]
            return torch.stack(values).to(self.adapters.backbone.device)

        precisions = [fit.record["prior_precision"] for fit in self.fits]
        prior_M = torch.tensor(precisions, dtype=torch.float64, device=self.adapters.backbone.device)
        return _Posterior(stacked("wide"), stacked("narrow"), stacked("curvature").double(), prior_M)

    def _drawn(self, rows: Sequence[Row], mean_MNC: np.ndarray, covariance_MNCC: np.ndarray) -> np.ndarray:
        """Logits (M, K, N, C) with this mean and covariance; each member and example has its own noise."""
        num_draws, sound_MN11 = self.spec.num_draws, np.isfinite(covariance_MNCC.sum((2, 3), keepdims=True))
        values, vectors = np.linalg.eigh(np.where(sound_MN11, covariance_MNCC, 0.0))
        roots = (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, 2, 3)
        noise = np.zeros((len(mean_MNC), num_draws, *mean_MNC.shape[1:]))
        for m, member_id in enumerate(self.member_ids):
            for n, row in enumerate(rows):
                drawn = seeds.stream(member_id, "laplace", row.id).normal(size=(num_draws, row.num_classes))
                noise[m, :, n, : row.num_classes] = drawn
        logits = mean_MNC[:, None] + np.einsum("mknc,mncd->mknd", noise, roots)
        return np.where(sound_MN11[:, None, ..., 0], logits, np.nan).astype(np.float32)


class _Pass:
    """One forward pass over rows of each member, with its graph kept for backward passes.

    Attributes:
        logits: (M, B, C) of the rows that count.
        inputs: layer -> inputs of A (M, B, T, D) and of B (M, B, T, R), fp32; zero where there is no token.
    """

    def __init__(self, adapters: Adapters, rows: Sequence[Row], real: int, num_classes: int) -> None:
        self.adapters, self.real, num_members = adapters, real, adapters.num_members
        self.shape = num_members, len(rows), num_classes
        self.batch = collate([*rows] * num_members, num_classes, adapters.backbone, num_members, share=False)
        read = self._forward()
        self.logits = self.graph.detach().view(self.shape)[:, :real]
        self.inputs = {}
        for layer, x in read.items():
            A_MRD, *_ = (factor.detach() for factor in adapters.factors(layer))
            of_rows = self._of_rows(x)
            self.inputs[layer] = of_rows, of_rows @ A_MRD[:, None].mT

    def _forward(self) -> dict[str, torch.Tensor]:
        """Layer -> its input; its output is kept with the graph from there to the logits."""
        backbone, self.outputs = self.adapters.backbone, dict[str, torch.Tensor]()
        read: dict[str, torch.Tensor] = {}

        def keep(layer: str, _: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            read[layer], self.outputs[layer] = inputs[0].detach(), output

        modules = {layer: backbone.lm.get_submodule(layer) for layer in self.adapters.layers}
        hooks = [m.register_forward_hook(functools.partial(keep, layer)) for layer, m in modules.items()]
        with torch.enable_grad():
            self.graph = class_logits(backbone, self.batch)
        for hook in hooks:
            hook.remove()
        return read

    def gradients(
        self, cotangent_MBC: torch.Tensor
    ) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Layer -> gradients of the outputs of A (M, B, T, R) and of B (M, B, T, E), for these gradients of
        the logits."""
        if not self.outputs:
            self._forward()
        once = self.adapters.backbone.ranks.size > 1  # DeepSpeed gathers for one backward pass only
        cotangent = torch.zeros(self.shape, device=self.graph.device)
        cotangent[:, : self.real] = cotangent_MBC
        layers, outputs = zip(*self.outputs.items())
        grads = torch.autograd.grad(self.graph, outputs, cotangent.flatten(0, 1), retain_graph=not once)
        if once:
            self.outputs = {}
        for layer, grad in zip(layers, grads):
            _, B_MER, *_ = (factor.detach() for factor in self.adapters.factors(layer))
            to_y = self.adapters.method.scale * self._of_rows(grad)
            yield layer, (to_y @ B_MER[:, None], to_y)

    def _of_rows(self, x: torch.Tensor) -> torch.Tensor:
        """A layer's tokens as (M, B, T, D), for the rows that count; zero where there is no token."""
        if self.batch.packing:
            x = self.batch.packing.padded(x)
        elif isinstance(self.batch, EncoderBatch) and "attention_mask" in self.batch.inputs:
            x = x * self.batch.inputs["attention_mask"][..., None]
        return x.reshape(*self.shape[:2], -1, x.shape[-1])[:, : self.real].float()


class _Curvature:
    """Sums over tokens for the Kronecker factors of every A and B.

    Attributes:
        wide: sums for the factor as wide as a layer: inputs of A, output gradients of B.
        narrow: (M, R, R) sums of A's output gradients and of B's inputs.
    """

    def __init__(self, adapters: Adapters, spec: Laplace) -> None:
        self.wide: dict[str, Products] = {}
        self.narrow: dict[str, torch.Tensor] = {}
        for name, (rank, width) in shapes_of(adapters).items():
            self.wide[name] = Products(adapters.num_members, width, spec, name, adapters.backbone.device)
            self.narrow[name] = self.wide[name].sums.new_zeros(adapters.num_members, rank, rank)

    def add(self, read: _Pass) -> None:
        """Add the sums of some rows: the exact Fisher information, class by class, from the rows of a root of
        the softmax's Hessian."""
        for layer, (x, h) in read.inputs.items():
            self.wide[f"{layer}.A"].add(x)
            self.narrow[f"{layer}.B"] += _gram(h)
        p_MBC = read.logits.double().softmax(-1)
        for c, one_hot_C in enumerate(torch.eye(p_MBC.shape[-1], device=p_MBC.device)):
            for layer, (to_h, to_y) in read.gradients(p_MBC[..., c, None].sqrt() * (one_hot_C - p_MBC)):
                self.narrow[f"{layer}.A"] += _gram(to_h)
                self.wide[f"{layer}.B"].add(to_y)

    def sums(self) -> list[torch.Tensor]:
        """All sums, to be summed over ranks."""
        return [*(products.sums for products in self.wide.values()), *self.narrow.values()]

    def of_member(self, member: int, num_examples: int) -> State:
        """The tensors of one member's `_Posterior` for each A and B, without the prior."""
        found: State = {}
        for name, products in self.wide.items():
            wide_K, found[f"{name}.wide"] = products.largest(member)
            narrow_R, found[f"{name}.narrow"] = _eigen(self.narrow[name][member])
            found[f"{name}.curvature"] = wide_K[:, None] * narrow_R / num_examples
        return found


def _gaussian(read: _Pass, posterior: dict[str, _Posterior]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (M, B, C) and covariance (M, B, C, C) of the logits of some rows."""
    jacobians: dict[str, list[torch.Tensor]] = {name: [] for name in posterior}  # of each class
    for one_hot_C in torch.eye(read.logits.shape[-1], device=read.logits.device):
        for layer, (to_h, to_y) in read.gradients(one_hot_C.expand_as(read.logits)):
            x, h = read.inputs[layer]
            jacobians[f"{layer}.A"].append(to_h.mT @ x)  # (M, B, R, D)
            jacobians[f"{layer}.B"].append(h.mT @ to_y)  # (M, B, R, E), B's transposed
    covariance = torch.zeros(*read.logits.shape, read.logits.shape[-1], dtype=torch.float64)
    covariance = covariance.to(read.logits.device)
    for name, of_class in jacobians.items():
        covariance += posterior[name].covariance(torch.stack(of_class, dim=2))
    return read.logits, covariance


class Products:
    """The sum of the outer products of the tokens' vectors, stored as its product with a random matrix, or
    exactly where that is no larger."""

    def __init__(self, num_members: int, width: int, spec: Laplace, name: str, device: torch.device) -> None:
        self.rank, probe = min(spec.rank, width), np.eye(width)
        if spec.columns < width:
            probe = seeds.stream("laplace", name).normal(size=(width, spec.columns))
        self.probe = torch.from_numpy(probe).to(device)
        self.sums = torch.zeros(num_members, *probe.shape, dtype=torch.float64, device=device)

    def add(self, x: torch.Tensor) -> None:  # (M, B, T, W)
        """Add the outer products of these vectors."""
        vectors = x.flatten(1, 2).double()
        self.sums += vectors.mT @ (vectors @ self.probe)

    def largest(self, member: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest eigenvalues (K,) of one member's sum, and their eigenvectors (K, W)."""
        sums = self.sums[member]
        values_K, vectors_KW = sums.new_zeros(self.rank), sums.new_zeros(self.rank, len(sums))
        if not sums.isfinite().all():
            return values_K + math.nan, vectors_KW + math.nan
        values, vectors = torch.linalg.eigh(self.probe.mT @ sums)  # symmetric but for rounding
        has = values > len(values) * torch.finfo(torch.float64).eps * values.max()
        root = (sums @ vectors[:, has]) * values[has].rsqrt()
        U, S, _ = torch.linalg.svd(root, full_matrices=False)
        num = min(self.rank, S.numel())
        values_K[:num], vectors_KW[:num] = S[:num].square(), U[:, :num].mT
        return values_K, vectors_KW


@dataclass(frozen=True)
class _Posterior:
    """The Gaussian of each member's A, or B, in one layer.

    Attributes:
        wide: (M, K, W) eigenvectors of the wide factor.
        narrow: (M, R, R) all eigenvectors of the narrow factor, in columns.
        curvature: (M, K, R) eigenvalues of their Kronecker product.
        prior: (M,) precision.
    """

    wide: torch.Tensor
    narrow: torch.Tensor
    curvature: torch.Tensor
    prior: torch.Tensor

    def covariance(self, jacobian: torch.Tensor) -> torch.Tensor:
        """Its contribution (M, B, C, C) to the logits' covariance, from their Jacobian (M, B, C, R, W)."""
        seen = self.narrow[:, None, None].mT @ jacobian @ self.wide[:, None, None].mT  # (M, B, C, R, K)
        unseen = jacobian - self.narrow[:, None, None] @ seen @ self.wide[:, None, None]
        precision_MRK = (self.curvature + self.prior[:, None, None]).mT
        scaled = seen.double() / precision_MRK[:, None, None].sqrt()
        rest = unseen.flatten(3).double()
        return scaled.flatten(3) @ scaled.flatten(3).mT + rest @ rest.mT / self.prior[:, None, None, None]


def prior_precision(curvature: np.ndarray, square_norm: float) -> float:
    """The prior precision lambda that maximises the Laplace approximation of the marginal likelihood: at the
    maximum, lambda times the squared norm of the weights equals the number of directions that the data
    determine, the sum of h / (h + lambda) over the curvatures h. It is unique. NaN if a curvature is not
    finite.

    Source: MacKay 1992, "The evidence framework applied to classification networks".
    """
    if not np.isfinite(curvature).all():
        return math.nan

    def excess(log_precision: float) -> float:
        precision = math.exp(log_precision)
        return precision * square_norm - float((curvature / (curvature + precision)).sum())

    low, high = map(math.log, PRECISIONS)
    if excess(low) >= 0:
        return PRECISIONS[0]
    return math.exp(root_scalar(excess, bracket=(low, high)).root)


def shapes_of(adapters: Adapters) -> dict[str, tuple[int, int]]:
    """Rank and width of every A and B."""
    layers, rank = adapters.layers.items(), adapters.method.rank
    return {f"{layer}.{f}": (rank, width) for layer, widths in layers for f, width in zip("AB", widths)}


def _gram(x: torch.Tensor) -> torch.Tensor:
    """Sum of the outer products (M, R, R) of vectors (M, B, T, R)."""
    vectors = x.flatten(1, 2).double()
    return vectors.mT @ vectors


def _eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (R,), clamped to >= 0, and eigenvectors (R, R) in columns; NaN if not finite."""
    if not matrix.isfinite().all():
        return matrix[0] * math.nan, matrix * math.nan
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0.0), vectors
