"""The sigmas of a request: the stock schedule, shifted by the number of output tokens."""

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

MU_FIXED = 2.02  # the official mu of 50 steps at 1024 × 1024
MU_TOKENS_MAX = 4300  # above this the official formula drops sharply (1,100,800 px)


def mu(tokens: int, steps: int, policy: str) -> float:
    """The shift's exponent. Policies: official (the stock formula), fixed, clamp (official, tokens capped at 4300)."""
    if policy == "fixed":
        return MU_FIXED
    return float(compute_empirical_mu(min(tokens, MU_TOKENS_MAX) if policy == "clamp" else tokens, steps))


def sigmas(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int, steps: int, policy: str) -> tuple[float, ...]:
    """`steps` + 1 noise levels from 1 to 0, float32 values. `tokens` are the output's alone: references do not count.

    Source: Flux2KleinPipeline.__call__, "6. Prepare timesteps", diffusers 0.42.1. The scheduler's own code shifts.
    """
    fresh = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    levels = None if scheduler.config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
    fresh.set_timesteps(steps, sigmas=levels, mu=mu(tokens, steps, policy), device="cpu")
    return tuple(float(s) for s in fresh.sigmas)
