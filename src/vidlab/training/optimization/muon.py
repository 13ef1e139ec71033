"""Muon for the matrices and kernels inside a network, AdamW for everything else, as one optimizer."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch

from vidlab.errors import UserError
from vidlab.parallel.shards import is_shard, local, sharded_like, whole
from vidlab.precision import uses_bf16
from vidlab.training.optimization.newton_schulz import orthogonalize

log = logging.getLogger(__name__)


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, its settings and its state, with one product for all matrices of a shape, in a chosen precision.

    torch orthogonalizes matrix by matrix, and always in bfloat16, which a CPU without such instructions emulates four
    times slower than float32.

    Args:
        params: as torch's.
        precision: as ``resolve_precision`` takes it: products are in bfloat16 where it resolves to bf16, else float32.
        settings: as torch's.
    """

    def __init__(self, params: Any, precision: str | int = "auto", **settings: Any) -> None:
        super().__init__(params, **settings)
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; ``closure`` recomputes the loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            momenta: list[torch.Tensor] = []
            self._init_group(group, params, gradients, momenta)
            if params:
                self._update(group, params, gradients, momenta)
        return loss

    def _update(
        self,
        group: Mapping[str, Any],
        params: list[torch.Tensor],
        gradients: list[torch.Tensor],
        momenta: list[torch.Tensor],
    ) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        looked_ahead = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])  # decoupled, as AdamW's
        shapes: dict[torch.Size, list[int]] = {}
        for place, parameter in enumerate(params):
            shapes.setdefault(parameter.shape, []).append(place)
        for shape, places in shapes.items():
            device = params[places[0]].device.type
            dtype = torch.bfloat16 if uses_bf16(self.precision, device) else torch.float32
            directions = orthogonalize(torch.stack([whole(looked_ahead[place]) for place in places]), dtype)
            rate = group["lr"] * 0.2 * max(shape) ** 0.5  # the root mean square of an Adam update (Liu et al. 2025)
            taken = [params[place] for place in places]
            parts = zip(taken, directions.to(taken[0].dtype), strict=True)
            steps = [local(sharded_like(direction, parameter)) for parameter, direction in parts]
            torch._foreach_add_([local(parameter) for parameter in taken], steps, alpha=-rate)


class MuonWithAdamW(torch.optim.Optimizer):
    """Orthogonalized momentum for hidden matrices (Jordan et al. 2024; Liu et al. 2025 for the scale of its updates).

    Muon's update is scaled to the root mean square of an Adam update, so that one learning
    rate and one schedule serve both. A convolution's kernel is the matrix from its patches to its output channels.
    Embeddings, the first and last layers, biases, gains and tables stay with AdamW, as its authors advise. A network of
    which nothing matches is named in a warning.

    Args:
        params: groups with ``params``, ``names``, ``hidden``, ``weight_decay`` and ``lr``, of ``OptimizerFactory``.
        lr: learning rate of groups that name none.
        matrices: shell-style patterns of names; None is what the networks declare, which ``OptimizerFactory`` lists in
            ``hidden`` of each group. A ``weight`` of two dimensions or more goes to Muon.
        momentum: of Muon, Nesterov.
        betas, eps: of AdamW.
        precision: of Muon's products, as the run's: bfloat16 where it resolves to that, else float32.

    Raises:
        UserError: no parameter is left for one of the two.
    """

    def __init__(
        self,
        params: Sequence[Mapping[str, Any]],
        lr: float,
        matrices: Sequence[str] | None = None,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.99),
        eps: float = 1e-8,
        precision: str | int = "auto",
    ) -> None:
        declared = frozenset(name for group in params for name in group.get("hidden", ()))

        def hidden(name: str, parameter: torch.Tensor) -> bool:
            matched = name in declared if matrices is None else any(fnmatch(name, pattern) for pattern in matrices)
            return matched and parameter.ndim >= 2 and name.endswith("weight")

        inside = _selected(params, hidden)
        outside = _selected(params, lambda name, parameter: not hidden(name, parameter))
        if not inside or not outside:
            raise UserError(
                f"optimizer.algorithm.matrices={matrices and list(matrices)} takes {'no' if not inside else 'every'} "
                "trainable parameter. Use optimizer=adamw, or patterns of the matrices inside the blocks."
            )
        _say_who_is_left_out(inside, outside)
        super().__init__([*inside, *outside], {"lr": lr})
        decay = inside[0]["weight_decay"]
        self.inside = inside
        self.muon = BatchedMuon(
            [{**group, "params": [_as_matrix(p) for p in group["params"]]} for group in inside], precision,
            lr=lr, weight_decay=decay, momentum=momentum, adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        fused = all(p.device.type in ("cpu", "cuda") for group in outside for p in group["params"])
        self.adamw = torch.optim.AdamW(outside, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)
        self._share()

    def _share(self) -> None:
        """Schedulers set the rate in ``param_groups``: AdamW's are its own, Muon's differ in holding the kernels."""
        kernels = [
            {**group, "params": own["params"]} for group, own in zip(self.muon.param_groups, self.inside, strict=True)
        ]
        self.param_groups = [*kernels, *self.adamw.param_groups]

    def _hand_on_settings(self) -> None:
        """To Muon's groups what schedulers have set in ``param_groups``."""
        for group, lent in zip(self.param_groups, self.muon.param_groups, strict=False):
            lent.update({key: value for key, value in group.items() if key != "params"})

    def _kernels(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parameters that are no matrices, with the matrices that Muon holds for them."""
        for group, lent in zip(self.inside, self.muon.param_groups, strict=True):
            yield from ((p, m) for p, m in zip(group["params"], lent["params"], strict=True) if p is not m)

    def _lend(self) -> None:
        """Kernels and gradients to Muon's groups."""
        for parameter, matrix in self._kernels():
            matrix.data = parameter.data.view_as(matrix)
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape_as(matrix)

    def _forget(self) -> None:
        """Keep no gradient alive that its owner has dropped."""
        for _, matrix in self._kernels():
            matrix.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of both parts; ``closure`` recomputes the loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._hand_on_settings()
        self._lend()
        self.muon.step()
        self._forget()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        self._hand_on_settings()
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts.

        Raises:
            UserError: the state of another optimizer.
        """
        if set(state_dict) != {"muon", "adamw"}:
            raise UserError(
                "The checkpoint holds the state of another optimizer. Resume with the one it was trained with."
            )
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share()


def _say_who_is_left_out(inside: Sequence[Mapping[str, Any]], outside: Sequence[Mapping[str, Any]]) -> None:
    """Warn of networks none of whose matrices is declared: their author knows which are inside."""
    taken = {name.partition(".")[0] for group in inside for name in group["names"]}
    left: dict[str, list[str]] = {}
    for group in outside:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if parameter.ndim >= 2 and name.endswith("weight") and name.partition(".")[0] not in taken:
                left.setdefault(name.partition(".")[0], []).append(name)
    for network, names in left.items():
        if len(names) <= 2:  # a first and a last layer
            continue
        log.warning(
            "optimizer.algorithm.matrices takes none of the %d matrices of %s: AdamW trains them all. Declare those "
            "between its first and its last layer in its hidden_matrices, or give patterns here; they are called %s",
            len(names), network, ", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
        )  # fmt: skip


def _as_matrix(parameter: torch.Tensor) -> torch.Tensor:
    """(out, in x kernel) of the same numbers, which torch's Muon takes; a matrix is itself."""
    if parameter.ndim > 2 and is_shard(parameter):
        raise UserError(
            "optimizer=muon with trainer=fsdp2 takes matrices, and the model has kernels of convolutions. Use "
            "optimizer=adamw, or trainer=ddp."
        )
    return parameter if parameter.ndim == 2 else torch.nn.Parameter(parameter.detach().view(len(parameter), -1))


def _selected(groups: Sequence[Mapping[str, Any]], keep: Callable[[str, torch.Tensor], bool]) -> list[dict[str, Any]]:
    """The groups with only the parameters kept; empty ones are left out."""
    found = []
    for group in groups:
        pairs = [(n, p) for n, p in zip(group["names"], group["params"], strict=True) if keep(n, p)]
        if pairs:
            names, params = zip(*pairs, strict=True)
            rest = {key: value for key, value in group.items() if key != "hidden"}
            found.append({**rest, "names": list(names), "params": list(params)})
    return found
