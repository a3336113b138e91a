"""The joint training run: pools in, weights out, resumable. Knows stages and time, not losses or shapes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from training import tokenizer as words
from training.attention import plain_attention
from training.flow import Drawer, flow_loss
from training.optimiser import Average, Optimiser
from training.pool import Pool
from training.vae import RUNS, load_vae

STEP_TOKENS = 6000  # per step, text included
POOLS = 16
POOL_USES = 24
REUSE = 8  # how often a picture is seen before it is thrown away
BY_ADAM = ("embed_tokens", "proj_out", "x_embedder")
SAVE_SECONDS = 240


@dataclass(frozen=True)
class Stage:
    """What is drawn until a share of the time has passed: squares by weight, the rest anywhere up to side_max."""

    until: float
    squares: dict[int, float]
    side_max: int
    references: tuple[float, float, float, float, float]
    text_tokens: int


STAGES = (
    Stage(0.28, {64: 0.75}, 96, (0.52, 0.38, 0.07, 0.02, 0.01), 26),
    Stage(0.50, {64: 0.25, 128: 0.35, 256: 0.15}, 128, (0.36, 0.42, 0.15, 0.04, 0.03), words.TOKENS_MAX),
    Stage(0.70, {64: 0.15, 128: 0.60, 256: 0.15}, 256, (0.12, 0.18, 0.48, 0.13, 0.09), words.TOKENS_MAX),
    Stage(0.80, {64: 0.05, 128: 0.40, 256: 0.42}, 256, (0.22, 0.28, 0.34, 0.09, 0.07), words.TOKENS_MAX),
    Stage(0.96, {64: 0.05, 128: 0.42, 256: 0.42}, 256, (0.30, 0.46, 0.14, 0.05, 0.05), words.TOKENS_MAX),
    Stage(1.00, {64: 0.05, 128: 0.42, 256: 0.42}, 256, (0.22, 0.30, 0.10, 0.08, 0.30), words.TOKENS_MAX),
)


def draw_size(random: Random, stage: Stage) -> tuple[int, int]:
    """A fixed square, or any two multiples of 16 that are at most 2:1."""
    sides, chance = range(64, stage.side_max + 1, 16), random.random()
    for side, share in stage.squares.items():
        if chance < share:
            return side, side
        chance -= share
    short = random.choice(sides)
    long = random.choice([s for s in sides if short <= s <= 2 * short])
    return random.choice(((short, long), (long, short)))


def batch_count(size_px: tuple[int, int], references: int, text_tokens: int) -> int:
    return max(4, STEP_TOKENS // (text_tokens + size_px[0] * size_px[1] // 256 * (1 + references)))


class Run:
    """Everything that a checkpoint of the run holds, and the step that moves it."""

    def __init__(self, seconds: float, lr: float, seed: int, device: torch.device, is_compiled: bool) -> None:
        torch.manual_seed(seed)
        self.seconds, self.elapsed, self.steps, self.device = seconds, 0.0, 0, device
        self.random = Random(seed)
        self.vae = load_vae(RUNS / "vae.pt").to(device)
        self.tokenizer = words.kept(RUNS / "tokenizer")
        self.drawer = Drawer(len(self.tokenizer)).to(device)
        self.average = Average(self.drawer, 0.996)
        self.optimiser = Optimiser(self.drawer, lr, lr * 0.7, BY_ADAM)
        self.pools: list[Pool] = []
        if is_compiled:
            transformer = self.drawer.transformer
            for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
                block.compile(dynamic=True)
            for layer in self.drawer.text.layers:
                layer.mlp.compile(dynamic=True)

    @property
    def share(self) -> float:
        return self.elapsed / self.seconds

    def save(self, path: Path) -> None:
        state = {
            "drawer": self.drawer.state_dict(),
            "average": self.average.shadow,
            "average_count": self.average.count,
            "optimiser": self.optimiser.state_dict(),
            "elapsed": self.elapsed,
            "steps": self.steps,
        }
        torch.save(state, f"{path}.part")
        os.replace(f"{path}.part", path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.drawer.load_state_dict(state["drawer"])
        self.average.shadow, self.average.count = state["average"], state["average_count"]
        if state["optimiser"]:
            self.optimiser.load_state_dict(state["optimiser"])
        self.elapsed, self.steps = state["elapsed"], state["steps"]
        self.random = Random(self.steps)
        torch.manual_seed(self.steps)

    def _pool(self) -> Pool:
        stage = next(s for s in STAGES if self.share < s.until)
        size_px = draw_size(self.random, stage)
        references = self.random.choices(range(5), stage.references)[0]
        count = batch_count(size_px, references, stage.text_tokens)
        pool = Pool(self.random, self.vae, self.tokenizer, size_px, references, count * POOL_USES // REUSE, POOL_USES)
        pool.input_ids, pool.attention_mask = (t[:, : stage.text_tokens] for t in (pool.input_ids, pool.attention_mask))
        return pool

    def step(self) -> tuple[Pool, float, float]:
        """One batch from one pool; returns the pool, the loss and the gradient's norm."""
        self.pools = [p for p in self.pools if p.uses > 0]
        is_start = not self.pools
        while len(self.pools) < POOLS:
            self.pools.append(self._pool())
            if is_start:  # pools that start together must not end together
                self.pools[-1].uses = self.random.randint(1, POOL_USES)
        pool = self.random.choice(self.pools)
        batch = pool.batch(batch_count(pool.size_px, pool.reference_count, pool.input_ids.shape[1]), self.device)
        loss = flow_loss(self.drawer, batch)
        loss.backward()
        norm = self.optimiser.step(min(1.0, (self.steps + 1) / 100) * min(1.0, (1 - self.share) / 0.20 + 0.02))
        self.average.update(self.drawer)
        self.steps += 1
        return pool, loss.item(), norm


def train(seconds: float, lr: float = 3e-3, seed: int = 0, is_compiled: bool = True) -> None:
    """Run until seconds of training have been spent in all, resuming from runs/flow.pt when it is there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run, path = Run(seconds, lr, seed, device, is_compiled), RUNS / "flow.pt"
    if path.exists():
        run.load(path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with plain_attention(device.type == "cpu"):
        try:
            _loop(run, path)
        finally:  # a stopped run loses nothing
            run.save(path)


def _loop(run: Run, path: Path) -> None:
    saved, losses = time.time(), {}
    while run.elapsed < run.seconds:
        started = time.time()
        pool, loss, norm = run.step()
        run.elapsed += min(time.time() - started, 30.0)  # compiling does not use up the schedule
        key = (max(pool.size_px), pool.reference_count)
        losses[key] = 0.95 * losses[key] + 0.05 * loss if key in losses else loss
        if run.steps % 50 == 0:
            table = " ".join(f"{side}/{count}:{value:.3f}" for (side, count), value in sorted(losses.items()))
            print(f"flow {run.steps} {run.elapsed:.0f}s norm {norm:.2f} | {table}", flush=True)
        if time.time() - saved > SAVE_SECONDS:
            run.save(path)
            saved = time.time()
