"""The one training loop: AdamW down a loss under a plan, refusing steps that are not finite, resumable to the bit.

Recipes of papers are subclasses of ``transformers.Trainer``; everything smaller is trained here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from tokenry.core.checkpoint import read_metadata, read_tensors, write_tensors
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.progress import Progress

Decay = Literal["cosine", "linear", "one_cycle", "none"]
Loss = Tensor | Mapping[str, Any]
Row = dict[str, Any]
STATE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """AdamW and its learning rate over the steps of one run.

    Attributes:
        steps: of the run.
        learning_rate: at its highest.
        betas: of AdamW.
        weight_decay: of AdamW, for all parameters.
        clip: largest norm of the gradient; None leaves it as it is.
        warmup: steps of linear warm-up: a share of all (float) or a number (int); for ``one_cycle`` the share that rises.
        decay: ``cosine``, ``linear``, ``one_cycle`` (torch's ``OneCycleLR``), ``none``, or the factor of each step.
        floor: share of `learning_rate` that ``cosine`` ends at.
        fused: AdamW in one kernel; the same rule, rounded otherwise.
    """

    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float | None = 1.0
    warmup: float | int = 0.05
    decay: Decay | Callable[[int], float] = "cosine"
    floor: float = 0.0
    fused: bool = False

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 0)
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)
        check_range("weight_decay", self.weight_decay, 0.0)
        check_range("floor", self.floor, 0.0, 1.0)
        check_range("warmup", self.warmup, 0, 1.0 if isinstance(self.warmup, float) else None)
        for beta in self.betas:
            check_range("betas", beta, 0.0, 1.0, high_open=True)
        if self.decay == "one_cycle":
            check_range("warmup of one_cycle (a share)", self.warmup, 0.0, 1.0, high_open=True)
        if self.clip is not None:
            check_range("clip", self.clip, 0.0, low_open=True)
        if not callable(self.decay):
            check_choice("decay", self.decay, get_args(Decay))

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0.

        Raises:
            ValueError: the decay is ``one_cycle``, whose rates are torch's.
        """
        peak = self.learning_rate
        if self.decay == "one_cycle":
            raise ValueError("decay must be another one here, the rates of one_cycle are torch's")
        if callable(self.decay):
            return peak * self.decay(step)
        warm = self.warmup if isinstance(self.warmup, int) else max(1, int(self.steps * self.warmup)) if self.warmup else 0
        if self.decay == "linear":
            down = (self.steps - step) / max(1, self.steps - warm)
            return peak * (min((step + 1) / warm, down) if warm else down)
        if step < warm:
            return peak * (step + 1) / warm
        if self.decay == "none":
            return peak
        past = (step - warm) / max(1, self.steps - warm)
        return peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * past)))


class _Planned(LRScheduler):
    """The rates of a plan."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.plan = plan
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [self.plan.rate(self.last_epoch)] * len(self.optimizer.param_groups)


@torch.enable_grad()
def descend(
    module: nn.Module,
    loss_of: Callable[[int], Loss],
    plan: Plan,
    *,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    until: int | None = None,
    log_every: int = 0,
    save_every: int = 200,
    watch: Callable[[Row], None] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Row]:
    """Train the parameters of `module` that need a gradient, in place; its mode is as before afterwards.

    Args:
        module: what is trained, in training mode.
        loss_of: the loss of a step (counted from 0), or a mapping with ``loss`` and what else the log should say. A run that
            is to be resumed draws from the step alone: its batch, and the seed of drop-out (`tokenry.core.seeding.seeded`).
        plan: optimizer and schedule.
        folder: for a checkpoint, ``training.safetensors``: a later call with the same plan and settings goes on from it, and
            ends where an uninterrupted run ends, bit for bit. Needs a decay that has a name.
        settings: what else a run depends on; kept with the checkpoint and compared.
        until: end after so many steps of the plan; None = all.
        log_every: steps between two rows of the log; the last step of a call has one too; 0 keeps none.
        save_every: steps between two checkpoints; the last step of a call has one too.
        watch: called with every new row of the log, which it may add to, after the step.
        progress: called after every row of the log, or after every step where none is kept.
        stop: asked after every step; True ends the run early, after a checkpoint.

    Returns:
        The log, rows of before a resume included: ``step`` (from 1), ``loss``, ``learning_rate``, and what `loss_of` told.

    Raises:
        ValueError: a loss or a gradient is not finite (no weight is updated by it), nothing needs a gradient, or `folder` holds
            another run or a damaged file.
        RuntimeError: in ``torch.inference_mode()``, where nothing can be trained.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("training needs gradients: call it outside torch.inference_mode()")
    check_int("log_every", log_every, 0)
    check_int("save_every", save_every, 1)
    if folder is not None and callable(plan.decay):
        raise ValueError("decay must be a name where a folder is given: two functions cannot be told apart on a resume")
    end = plan.steps if until is None else check_int("until", until, 0, plan.steps)
    run = _Run(module, plan, settings, None if folder is None else Path(folder))
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        while run.step < end:
            row = run.take(loss_of)
            last = run.step == end
            if log_every and (run.step % log_every == 0 or last):
                run.log.append({name: float(x) if isinstance(x, Tensor) else x for name, x in row.items()})
                if watch is not None:
                    watch(run.log[-1])
            if progress is not None and (not log_every or run.step % log_every == 0 or last):
                progress(f"step {run.step}, loss {float(row['loss']):.3g}", run.step / end)
            halted = stop is not None and not last and stop()
            if halted or last or run.step % save_every == 0:
                run.save()
            if halted:
                break
    finally:
        for part, training in modes:
            part.training = training
    return run.log


class _Run:
    """Optimizer, schedule, log and step of one run."""

    def __init__(self, module: nn.Module, plan: Plan, settings: Mapping[str, Any] | None, folder: Path | None) -> None:
        self.module, self.plan, self.folder = module, plan, folder
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError(f"module must have a parameter that needs a gradient, {type(module).__name__} has none")
        self.names, self.parameters = list(named), list(named.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=plan.fused or None
        )
        self.schedule = _schedule(self.optimizer, plan)
        self.log: list[Row] = []
        self.step = 0
        # As JSON gives it back: a tuple is a list there.
        described = {**asdict(plan), "decay": plan.decay if isinstance(plan.decay, str) else "custom"}
        self.settings = json.dumps({"plan": described, "trained": self.names, "settings": dict(settings or {})}, sort_keys=True)
        if folder is not None and (folder / STATE).exists():
            self._resume(folder / STATE)

    def take(self, loss_of: Callable[[int], Loss]) -> Row:
        """One step down; what it told."""
        found = loss_of(self.step)
        told: Mapping[str, Any] = {"loss": found} if isinstance(found, Tensor) else found
        if "loss" not in told:
            raise ValueError(f"loss_of must tell a loss, got {sorted(told)}")
        loss, rate = told["loss"], self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if self.plan.clip is None else self.plan.clip)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise ValueError(f"step {self.step}: loss {loss.item()}, gradient norm {float(norm)}; no weight was updated by it")
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        rest = {name: x.detach() if isinstance(x, Tensor) else x for name, x in told.items()}
        return {"step": 0} | rest | {"step": self.step, "learning_rate": rate}

    def save(self) -> None:
        if self.folder is None:
            return
        tensors = {f"model.{name}": x for name, x in self.module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(x) for name, x in state.items()}
        groups = [{name: x for name, x in group.items() if name != "params"} for group in self.optimizer.param_groups]
        schedule = {name: x for name, x in self.schedule.state_dict().items() if _is_number(x)}
        facts = {"settings": self.settings, "step": self.step, "log": self.log, "groups": groups, "schedule": schedule}
        # One entry: safetensors writes several in any order, and equal runs should be equal files.
        write_tensors(self.folder / STATE, tensors, {"run": json.dumps(facts)})

    def _resume(self, path: Path) -> None:
        tensors, described = read_tensors(path)
        facts = json.loads(described["run"])
        if facts["settings"] != self.settings:
            raise ValueError(f"{path} belongs to a run with other settings; choose another folder or remove it")
        weights = {name[6:]: x for name, x in tensors.items() if name.startswith("model.")}
        shapes = {name: x.shape for name, x in self.module.state_dict().items()}
        if shapes != {name: x.shape for name, x in weights.items()}:
            raise ValueError(f"{path} belongs to a module of another shape; choose another folder or remove it")
        self.module.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, x in tensors.items():
            if name.startswith("optimizer."):
                _, number, field = name.split(".", 2)
                state.setdefault(int(number), {})[field] = x
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for group, kept in zip(self.optimizer.param_groups, facts["groups"], strict=True):
            group |= {name: tuple(x) if isinstance(x, list) else x for name, x in kept.items()}
        self.schedule.load_state_dict(facts["schedule"])
        self.log, self.step = facts["log"], facts["step"]


def kept_log(folder: str | Path) -> list[Row]:
    """The log of the run whose checkpoint `folder` holds; empty where there is none."""
    path = Path(folder) / STATE
    return json.loads(read_metadata(path)["run"])["log"] if path.exists() else []


def _schedule(optimizer: torch.optim.Optimizer, plan: Plan) -> LRScheduler:
    if plan.decay == "one_cycle":
        return OneCycleLR(optimizer, plan.learning_rate, total_steps=max(plan.steps, 1), pct_start=plan.warmup)
    if plan.decay == "cosine" and not plan.warmup:
        return CosineAnnealingLR(optimizer, max(plan.steps, 1), eta_min=plan.floor * plan.learning_rate)
    return _Planned(optimizer, plan)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, bool)) or (isinstance(x, list) and all(isinstance(y, (int, float)) for y in x))
