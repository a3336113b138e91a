"""Muon for matrices and convolutions, AdamW for everything else, and a moving average of the weights."""

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with all singular values about 1, by five Newton-Schulz steps in bfloat16.

    Source: Keller Jordan, Muon (2024); coefficients as torch.optim.Muon has them.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if is_tall := x.size(0) > x.size(1):
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; unlike torch.optim.Muon it takes convolutions, as [out, in*k*k]."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter; the step is as large as AdamW's at the same learning rate."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(momentum, group["momentum"]).flatten(1)
                scale = 0.2 * max(update.shape) ** 0.5
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(orthogonalised(update).view_as(param), alpha=-group["lr"] * scale)


class Optimiser:
    """Both optimisers behind one step; learning rates are scaled by the schedule's factor."""

    def __init__(self, module: nn.Module, lr: float, adam_lr: float, by_adam: tuple[str, ...] = ()) -> None:
        matrices, rest = [], []
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            is_matrix = param.ndim >= 2 and min(param.flatten(1).shape) > 8 and not any(key in name for key in by_adam)
            (matrices if is_matrix else rest).append(param)
        self.params = matrices + rest
        self.parts = [
            (Muon(matrices, lr), lr),
            (torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.98), weight_decay=0.0), adam_lr),
        ]

    def step(self, factor: float, clip: float = 1.0) -> float:
        """Clip, step, clear; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.params, clip)
        for part, lr in self.parts:
            part.param_groups[0]["lr"] = lr * factor
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part, _ in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for (part, _), state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Average:
    """An exponential moving average of a module's parameters, faster while young."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.shadow = {name: value.detach().clone().float() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in module.state_dict().items():
            self.shadow[name].lerp_(value.float(), 1 - decay)
