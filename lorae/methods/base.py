"""What every method declares, and the defaults."""

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

# Names of the query, key, value and output projections of attention in transformers' models
ROLES = {
    "q": ("q_proj", "query", "query_proj", "q_lin"),
    "k": ("k_proj", "key", "key_proj", "k_lin"),
    "v": ("v_proj", "value", "value_proj", "v_lin"),
    "o": ("o_proj", "out_proj", "out_lin", "attention.output.dense", "attention.dense"),
}


@dataclass(frozen=True)
class Step:
    """The training step at which a method's hook is called.

    Args:
        number: optimiser steps done before this one.
        num_steps: optimiser steps of the whole training.
        num_train: training examples.
        batch_size: examples per step and member.
        lr_frac: learning rate of this step over the peak learning rate, in [0, 1].
    """

    number: int
    num_steps: int
    num_train: int
    batch_size: int
    lr_frac: float


class Method:
    """How a member differs from the frozen backbone.

    A method is a frozen dataclass in its own file, listed in `lorae.methods.AnyMethod`. Its module needs
    only numpy; a hook that uses torch imports it itself.

    Attributes:
        label: name of the method in a row.
        names: what tables call a single member and an ensemble.
        regime: how the members of a stack run: "together" in one pass through the backbone, on the backbone's
            "features", which are computed once, "alone" with a full set of weights each, or "prompted",
            without training.
        rank, targets: as printed in tables.
        shots, calibrated: settings of prompted methods, see `InContext`.
        factors: names of the trained factors of an adapted layer, in the order of `draw`.
        zero_factor: the factor that starts at zero, so that members start as the backbone; `DecayB` decays
            it.
        streams: each member's own random streams besides "init" and "order": name in a member's record ->
            name of the stream.
        is_bayesian: members learn a distribution over their weights, which `Posterior` samples.
        is_low_rank: a member's update is `scale` times B A, and draws can be fitted around it.
        has_update: a stored member's update of a weight is a matrix, which `update_reader` returns.
        scales_inputs: the method changes the input of the frozen weight itself.
        peft_type: type of the PEFT adapter that a member is stored as; None = stored under our own names.
            See `is_peft`.
        peft_names: factor -> PEFT's name for it. Other factors are stored in a separate file.
        peft_frozen: PEFT's names for what `draw_frozen` draws.
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

    # Names, and what the method refuses

    @property
    def init_label(self) -> str:
        """Name of the initialisation in tables."""
        raise NotImplementedError  # abstract: every method defines it

    @property
    def effective_alpha(self) -> float:
        """LoRA's alpha, which multiplies B A x / rank; 0 for methods without one."""
        return 0.0

    @property
    def scale(self) -> float:
        """Factor that multiplies B A x, if the method `is_low_rank`."""
        return 1.0

    @property
    def trains(self) -> bool:
        """Whether members are trained at all."""
        return self.regime != "prompted"

    @property
    def starts_apart(self) -> bool:
        """Whether different init streams give different members."""
        return True

    def check(self, trial: Trial) -> None:
        """Refuse a trial in which the method makes no sense; ValueError says what to write."""

    def check_backbone(self, trial: Trial, ood: Sequence[Task], config: Mapping[str, Any]) -> None:
        """Refuse a backbone or examples that the method cannot handle; ValueError says what to write.

        Args:
            ood: tasks that members also predict.
            config: the backbone's config.json.
        """

    def times(self, factor: int) -> Method | None:
        """The method with `factor` times as many parameters; None if it has no size to change."""
        return None

    # What is trained

    def adapted_layers(self, linears: Linears, backbone: str) -> dict[str, tuple[int, int]]:
        """The adapted linear layers, name -> (d_in, d_out), in the backbone's order.

        Raises:
            ValueError: a target matches nothing, or the rank exceeds a layer's smaller side.
        """
        return {}

    def num_parameters(self, d_in: int, d_out: int) -> int:
        """Trained parameters of one member in one adapted layer."""
        return 0

    def draw(self, layer: str, d_in: int, d_out: int, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """The factors of one member in one layer before the first step; `key` names its init stream."""
        raise NotImplementedError  # every adapter defines it

    def draw_frozen(self, layers: Linears, key: seeds.Key) -> tuple[np.ndarray, ...]:
        """A member's frozen random matrices, shared by its layers."""
        return ()

    def initial_state(
        self, backbone: Backbone, layers: Linears, answer_ids: Sequence[int], key: seeds.Key
    ) -> State:
        """Parameters of one member before the first step, without its classification head."""
        return {}

    # What it computes

    def forward(self, layer: Stacked, x: torch.Tensor) -> torch.Tensor:
        """Output of an adapted layer of a stack, (M, S, D) -> (M, S, E); `layer` holds the parameters."""
        raise NotImplementedError  # every adapter defines it

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> Noise | None:
        """The method's own noise, for training and draws; None = the noise of a regulariser, if any.

        Args:
            streams: each member's named random streams.
        """
        return None

    def before_clip(self, adapters: Adapters, step: Step) -> None:
        """Change the gradients of the stack's mean loss before they are clipped."""

    def after_step(self, adapters: Adapters, step: Step) -> None:
        """Change the parameters after the optimiser's step."""

    # What it costs

    def num_trained(self, config: Mapping[str, Any], layers: Linears) -> int:
        """Trained parameters of one member without its head."""
        return sum(self.num_parameters(*shape) for shape in layers.values())

    def frozen_bytes(self, layers: Linears, size: int) -> int:
        """Bytes of one member's further tensors, with `size` bytes per number."""
        return 0

    def kept_beside(self, d_in: int, d_out: int) -> int:
        """Numbers per token that autograd keeps for a branch, besides its input and A x."""
        return 0

    def kept_bytes(self, layers: Linears, size: int, noisy: bool) -> int:
        """Bytes per token that autograd keeps for the branches: their inputs (shared by layers with the same
        input; under noise each layer keeps its own and a mask), A x, and `kept_beside`."""
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
        """FLOPs per token of a member's branch at one layer, without multiplications by vectors."""
        return 0

    def branch_backward_flops(self, d_in: int, d_out: int, reads: bool) -> int:
        """FLOPs per token of the branch's own gradients, and of its input's gradient if `reads`."""
        return 0

    # How it is stored

    @property
    def is_peft(self) -> bool:
        """Whether members are stored as PEFT adapters of `peft_type`."""
        return self.peft_type is not None

    def peft_settings(self) -> dict[str, Any]:
        """Fields of PEFT's config for this type, besides rank and targets."""
        return {}

    @classmethod
    def update_reader(
        cls,
        settings: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        parameters: Mapping[str, np.ndarray],
        d_in: Callable[[str], int] | None,
    ) -> Callable[[str], Factors]:
        """Returns a function layer -> the member's update there, read from a stored PEFT adapter.

        Args:
            settings: contents of adapter_config.json.
            tensors: contents of adapter_model.safetensors, by their names there.
            parameters: the trained tensors among them, by our names, "<layer>.<factor>".
            d_in: layer -> width of its input; None = not known.
        Raises:
            ValueError: the adapter has no low-rank update, or the update needs `d_in`.
        """
        raise ValueError(
            f"an adapter of type {cls.peft_type} has no low-rank update; allowed are LORA and VERA"
        )

    def drawn_update(
        self, parameters: Mapping[str, np.ndarray], layers: Linears, key: seeds.Key
    ) -> Callable[[str], Factors]:
        """Returns a function layer -> the member's update, for a method whose members are stored without
        the matrices that their streams draw (`has_update`, but not `is_peft`).

        Args:
            parameters: the stored tensors, "<layer>.<factor>".
            layers: the adapted layers.
            key: the member's init stream.
        """
        raise NotImplementedError  # every such method defines it


class Adapter(Method):
    """A method that changes the linear layers whose path ends in one of its `targets`.

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
    """What `draw_frozen` draws for one member, fp32."""
    import torch

    return tuple(torch.from_numpy(part.astype(np.float32)) for part in method.draw_frozen(layers, key))


def target_modules(method: Method, layers: Iterable[str]) -> list[str]:
    """The targets as other libraries know them: a role becomes the names that occur in `layers`."""
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
    """Refuse a spec in which one of these fields is not above 0."""
    for name in names:
        if not (value := getattr(spec, name)) > 0:
            default = getattr(type(spec), name, 1.0)
            raise ValueError(f"{name}={value}: must be > 0; write {type(spec).__name__}({name}={default})")


def check_not_negative(spec: Any, name: str) -> None:
    """Refuse a spec in which this field is below 0."""
    if (value := getattr(spec, name)) < 0:
        kind = type(spec).__name__
        raise ValueError(f"{name}={value}: must be >= 0; write {kind}({name}=0) to start as the backbone")
