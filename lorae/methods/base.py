"""What every method says of itself; what it leaves out, it has from here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lorae.shapes import SAME_INPUT

if TYPE_CHECKING:
    import torch

    from lorae import seeds
    from lorae.backbone.loading import Backbone
    from lorae.engine.adapters import Adapters, Stacked, State
    from lorae.noise import Noise
    from lorae.tasks.base import Task
    from lorae.trial import Trial

Regime = Literal["together", "features", "alone", "prompted"]
Linears = Mapping[str, tuple[int, int]]  # name of a linear layer -> (d_in, d_out)
Factors = tuple[np.ndarray, np.ndarray]  # B (d_out, R) and A (R, d_in) of an update B A

# What the query, key, value and output projections of attention are called in transformers' models
ROLES = {
    "q": ("q_proj", "query", "query_proj", "q_lin"),
    "k": ("k_proj", "key", "key_proj", "k_lin"),
    "v": ("v_proj", "value", "value_proj", "v_lin"),
    "o": ("o_proj", "out_proj", "out_lin", "attention.output.dense", "attention.dense"),
}


@dataclass(frozen=True)
class Step:
    """Where a training is when a method's hook is called.

    Args:
        number: optimiser steps done before this one.
        num_steps: of the training.
        num_train: training examples.
        batch_size: examples per step and member.
        lr_frac: learning rate of this step over the peak one, in [0, 1].
    """

    number: int
    num_steps: int
    num_train: int
    batch_size: int
    lr_frac: float


class Method:
    """How a member differs from the frozen backbone.

    A method is a frozen dataclass with a file of its own and a place in `lorae.methods.AnyMethod`. Its module
    needs numpy only; a hook that gets tensors imports torch itself, if it needs it.

    Attributes:
        label: its name in a row.
        names: what tables call a single member of it, and an ensemble.
        regime: how the members of a stack run: "together" in one pass through the backbone, on the backbone's
            "features" that are computed once, each "alone" with all weights its own, or "prompted", where
            nothing is trained.
        rank, targets: as tables print them.
        shots, calibrated: of what is prompted, see `InContext`.
        factors: names of the trained factors of an adapted layer, in the order of `draw`.
        zero_factor: of those the one that starts at zero, so that members start as the backbone; `DecayB`
            decays it.
        streams: random streams that members have of their own, beside "init" and "order": name in a member's
            record -> name of the stream.
        is_bayesian: members learn a distribution of their weights, of which `Posterior` draws.
        is_low_rank: what a member adds is `scale` times B A, around which draws can be fitted.
        has_update: what a stored member adds to a weight is a matrix, which `update_reader` finds.
        scales_inputs: it changes what the frozen weight itself reads.
        peft_type: of PEFT's adapter that a member is stored as; None = stored under our own names.
        peft_names: factor -> PEFT's name of it. Other factors are stored in a file of their own.
        peft_frozen: PEFT's names of what `draw_frozen` draws.
    """

    label: ClassVar[str]
    names: ClassVar[tuple[str, str]]
    regime: ClassVar[Regime] = "together"
    rank: ClassVar[int] = 0
    targets: ClassVar[tuple[str, ...]] = ()
    shots: ClassVar[int] = 0
    calibrated: ClassVar[bool] = False
    factors: ClassVar[tuple[str, ...]] = ()
    zero_factor: ClassVar[str | None] = None
    streams: ClassVar[Mapping[str, str]] = {}
    is_bayesian: ClassVar[bool] = False
    is_low_rank: ClassVar[bool] = False
    has_update: ClassVar[bool] = False
    scales_inputs: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = None
    peft_names: ClassVar[Mapping[str, str]] = {}
    peft_frozen: ClassVar[tuple[str, ...]] = ()

    # What it is called, and what it refuses

    @property
    def init_label(self) -> str:
        """How its trained parts begin, in tables."""
        raise NotImplementedError  # abstract: every method defines it

    @property
    def effective_alpha(self) -> float:
        """LoRA's alpha, by which B A x / rank is multiplied; 0 where there is no such thing."""
        return 0.0

    @property
    def scale(self) -> float:
        """What B A x is multiplied by, where it `is_low_rank`."""
        return 1.0

    @property
    def trains(self) -> bool:
        """Whether members are trained at all."""
        return self.regime != "prompted"

    @property
    def starts_apart(self) -> bool:
        """Whether members differ by their init streams."""
        return True

    def check(self, trial: Trial) -> None:
        """Refuse a trial that it makes no sense in; ValueError says what to write."""

    def check_backbone(self, trial: Trial, ood: Sequence[Task], config: Mapping[str, Any]) -> None:
        """Refuse a backbone or examples that it cannot work on; ValueError says what to write.

        Args:
            ood: tasks that members also predict.
            config: the backbone's config.json.
        """

    def times(self, factor: int) -> Method | None:
        """The same with `factor` times as many parameters; None where it has no size to match."""
        return None

    # What is trained

    def adapted_layers(self, linears: Linears, backbone: str) -> dict[str, tuple[int, int]]:
        """The linear layers that it adapts, name -> (d_in, d_out), in the backbone's order.

        Raises:
            ValueError: a target matches nothing, or the rank exceeds a layer's smaller side.
        """
        return {}

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained numbers of one member in one adapted layer."""
        return 0

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """The factors of one member in one layer before the first step; `key` names its init stream."""
        raise NotImplementedError  # of adapters: each defines it

    def draw_frozen(self, layers: Linears, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """What a member has that is drawn, shared by its layers and never trained."""
        return ()

    def initial_state(
        self, backbone: Backbone, layers: Linears, answer_ids: Sequence[int], key: seeds.Key
    ) -> State:
        """Parameters of one member before the first step, without its classification head."""
        return {}

    # What it computes

    def forward(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        """What an adapted layer of a stack gives, (M, S, D) -> (M, S, E); `layer` has all that it needs."""
        raise NotImplementedError  # of adapters: each defines it

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> Noise | None:
        """Noise of its own that members train and draw with; None = that of a regulariser, if any.

        Args:
            streams: each member's named random streams.
        """
        return None

    def before_clip(self, adapters: Adapters, step: Step) -> None:
        """Change the gradients of the stack's mean loss, before they are clipped."""

    def after_step(self, adapters: Adapters, step: Step) -> None:
        """Change the parameters after the optimiser's step."""

    # What it costs

    def num_trained(self, config: Mapping[str, Any], layers: Linears) -> int:
        """Trained numbers of one member without its head."""
        return sum(self.num_parameters(*shape) for shape in layers.values())

    def frozen_bytes(self, layers: Linears, size: int) -> int:
        """Of what one member has besides, with numbers of `size` bytes."""
        return 0

    def kept_beside(self, d_in: int, d_out: int) -> int:
        """Numbers that autograd keeps of a branch for each token, beside what it reads and A x."""
        return 0

    def kept_bytes(self, layers: Linears, size: int, noisy: bool) -> int:
        """Bytes that autograd keeps of the branches for each token: their inputs (one for layers that read
        the same, each its own with a mask under noise), A x, and what is beside."""
        beside = sum(self.kept_beside(*shape) for shape in layers.values())
        if noisy:
            masked = sum((size + 1) * d_in + size * self.rank for d_in, _ in layers.values())
            return size * beside + masked
        inputs = {}
        for name, (d_in, _) in layers.items():
            path, _, leaf = name.rpartition(".")
            inputs[path, SAME_INPUT.get(leaf, leaf)] = d_in
        return size * (sum(inputs.values()) + self.rank * len(layers) + beside)

    def branch_flops(self, d_in: int, d_out: int) -> int:
        """Operations of a member's branch at one layer for each token; multiplying by vectors is not
        counted."""
        return 0

    def branch_backward_flops(self, d_in: int, d_out: int, reads: bool) -> int:
        """Of the branch's own gradients, and of those of what it reads if that has one."""
        return 0

    # How it is stored

    def peft_settings(self) -> dict[str, Any]:
        """What PEFT's config of its type has beside rank and targets."""
        return {}

    @classmethod
    def update_reader(
        cls,
        settings: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        parameters: Mapping[str, np.ndarray],
        d_in: Callable[[str], int] | None,
    ) -> Callable[[str], Factors]:
        """Gives layer -> the member's update there from a stored PEFT adapter.

        Args:
            settings: of adapter_config.json.
            tensors: of adapter_model.safetensors by their names there.
            parameters: the trained ones among them by ours, "<layer>.<factor>".
            d_in: layer -> width of its input; None = not known.
        Raises:
            ValueError: it has no low-rank update, or that needs `d_in`.
        """
        raise ValueError(
            f"an adapter of type {cls.peft_type} has no low-rank update; allowed are LORA and VERA"
        )


class Adapter(Method):
    """A method that changes some linear layers: those whose path ends in one of its `targets`.

    "q", "k", "v" and "o" are the projections of attention, whatever an architecture calls them. The output
    head is never adapted.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.targets, tuple) or not self.targets:
            raise ValueError(
                f"targets={self.targets!r}: must be a tuple of layer names; write "
                'targets=("q_proj", "v_proj")'
            )

    def adapted_layers(self, linears: Linears, backbone: str) -> dict[str, tuple[int, int]]:
        for target in self.targets:
            if not any(_matches(name, target) for name in linears):
                known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears))
                raise ValueError(
                    f"targets={self.targets} : {target!r} matches no Linear of {backbone}; it has {known}"
                )
        return {n: shape for n, shape in linears.items() if any(_matches(n, t) for t in self.targets)}

    def initial_state(
        self, backbone: Backbone, layers: Linears, answer_ids: Sequence[int], key: seeds.Key
    ) -> State:
        return drawn_state(self, layers, key)


def drawn_state(method: Method, layers: Linears, key: seeds.Key) -> State:
    """Factors of one member in these layers before the first step, from its init stream."""
    import torch

    state: State = {}
    for layer, (d_in, d_out) in layers.items():
        for factor, values in zip(method.factors, method.draw(layer, d_in, d_out, key)):
            state[f"{layer}.{factor}"] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def frozen_tensors(method: Method, layers: Linears, key: seeds.Key) -> tuple[torch.Tensor, ...]:
    """What `draw_frozen` draws of one member, fp32."""
    import torch

    return tuple(torch.from_numpy(part.astype(np.float32)) for part in method.draw_frozen(layers, key))


def target_modules(method: Method, layers: Iterable[str]) -> list[str]:
    """The targets as other libraries know them: of a role, the names that `layers` have."""
    dotted = [f".{name}" for name in layers]
    known = [name for target in method.targets for name in (target, *ROLES.get(target, ()))]
    return [name for name in known if any(layer.endswith(f".{name}") for layer in dotted)]


def _matches(name: str, target: str) -> bool:
    return any(name == known or name.endswith("." + known) for known in (target, *ROLES.get(target, ())))


def check_rank(method: Any) -> None:
    """Refuse a rank below 1."""
    if method.rank < 1:
        raise ValueError(f"rank={method.rank}: must be >= 1; write {type(method).__name__}(rank=8)")


def check_positive(spec: Any, *names: str) -> None:
    """Refuse a spec whose numbers of these names are not above 0."""
    for name in names:
        if not (value := getattr(spec, name)) > 0:
            kind = type(spec)
            default = getattr(kind, name, 1.0)
            raise ValueError(f"{name}={value}: must be > 0; write {kind.__name__}({name}={default})")


def check_not_negative(spec: Any, name: str) -> None:
    """Refuse a spec whose number of this name is below 0."""
    if (value := getattr(spec, name)) < 0:
        raise ValueError(
            f"{name}={value}: must be >= 0; write {type(spec).__name__}({name}=0) to start as the backbone"
        )
