"""Losses and batches with which the visual-question-answering testbed is trained (see `tools/train_vqa.py`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenry.lab.beds.pictures.canvas import CLASSES, COLOUR_NAMES, COLOURS, NUMBER, ZONES, Canvases
from tokenry.lab.beds.pictures.questions import FAMILY, KINDS, NAMES, Question, questions
from tokenry.lab.beds.vqa.bed import ANSWER_WORDS, UNKNOWN, WORDS

SLOT = 5 + ANSWER_WORDS  # tokens of the longest question and its answer
IGNORED = -100


class TowerHeads(nn.Module):
    """Linear read-outs: class, colour, both digits of a number and centre of a patch's object; what is there, from CLS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [CLASSES + 1, len(COLOURS) + 1, 10, 10, 2]
        self.patch = nn.Linear(width, sum(self.sizes))
        self.cls = nn.ModuleList(nn.Linear(width, CLASSES + len(COLOURS)) for _ in range(2))


def of_patches(values: Tensor, owners: Tensor) -> Tensor:
    """A value per object [n, K, ...] for every patch [n, N, ...]; those of patches without an object mean nothing."""
    rows = torch.arange(len(owners))[:, None]
    return values[rows, owners.clamp(min=0)]


def tower_loss(heads: TowerHeads, output: Any, canvases: Canvases) -> tuple[Tensor, dict[str, float]]:
    """Cross entropies of the read-outs and the distance of the centres; objects weigh as much as all the rest of the picture.

    `output` is that of the vision tower with hidden states; read at the layer LLaVA reads (the last but one) and, for
    the CLS token, at the last layer too.
    """
    hidden = output.hidden_states[-2]
    device = hidden.device
    name, colour, tens, ones, place = heads.patch(hidden[:, 1:]).float().split(heads.sizes, -1)
    owners = canvases.owners()
    there = (owners >= 0).to(device)
    label, tint, value, centre = (
        of_patches(x, owners).to(device)
        for x in (canvases.classes, canvases.colours % (len(COLOURS) + 1), canvases.values, canvases.centres())
    )
    loss = torch.zeros((), device=device)
    for logits, target in ((name, label), (colour, tint)):
        target = torch.where(there, target, logits.shape[-1] - 1)
        entropy = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        loss = loss + entropy[there].mean() + 0.5 * entropy[~there].mean()
    number = there & (label == NUMBER)
    if number.any():
        loss = loss + F.cross_entropy(tens[number], value[number] // 10)
        loss = loss + F.cross_entropy(ones[number], value[number] % 10)
    loss = loss + 5 * (place - centre).abs()[there].mean()
    present = torch.cat(
        [_presence(canvases.classes, canvases.there, CLASSES), _presence(canvases.colours, canvases.there, len(COLOURS))], 1
    )
    present = present.to(device)
    facts = {
        "patch_class": (name.argmax(-1) == label)[there].float().mean().item(),
        "patch_number": (10 * tens.argmax(-1) + ones.argmax(-1) == value)[number].float().mean().item(),
        "centre_error": (place - centre).abs()[there].mean().item() * canvases.spec.size,
    }
    for head, vector in zip(heads.cls, (hidden[:, 0], output.pooler_output), strict=True):
        guess = head(vector).float()
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(guess, present)
        facts["cls_presence"] = ((guess > 0) == (present > 0.5)).float().mean().item()
    return loss, facts


def _presence(values: Tensor, there: Tensor, classes: int) -> Tensor:
    return ((values[:, :, None] == torch.arange(classes)) & there[..., None]).any(1).float()


def alignment_loss(model: Any, output: Any, canvases: Canvases) -> Tensor:
    """Feature alignment: a projected patch is near the embeddings of its object's name, colour and zone; near none outside.

    The projector and the word embeddings learn from it, as in LLaVA's first stage (there with captions).
    """
    visual = _unit_rms(model.model.multi_modal_projector(output.hidden_states[-2][:, 1:].detach()))
    words = _unit_rms(model.get_input_embeddings().weight)
    owners = canvases.owners()
    third = (canvases.centres() * 3).long().clamp(0, 2)
    there = owners >= 0
    loss = torch.zeros((), device=visual.device)
    for names, value in (
        (NAMES, canvases.classes),
        (COLOUR_NAMES, canvases.colours),
        (ZONES, third[..., 0] * 3 + third[..., 1]),
    ):
        target = of_patches(value, owners)
        rows = words[[WORDS[name] for name in names]]
        logits = visual @ rows.T / rows.shape[-1] ** 0.5
        told = (there & (target >= 0)).to(visual.device)
        outside = F.pad(logits[~there.to(visual.device)], (1, 0))  # the added class "none" has the logit zero
        loss = loss + F.cross_entropy(logits[told], target.to(visual.device)[told])
        loss = loss + (outside.logsumexp(1) - outside[:, 0]).mean()
    return loss


def _unit_rms(x: Tensor) -> Tensor:
    return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)


@torch.no_grad()
def start_tower(tower: Any, generator: torch.Generator) -> None:
    """Position embeddings start as two-dimensional sines, so that, with matching attention, a patch looks at its neighbours."""
    embeddings = tower.embeddings if hasattr(tower, "embeddings") else tower.vision_model.embeddings
    table = embeddings.position_embedding.weight
    grid, width = round((len(table) - 1) ** 0.5), table.shape[1]
    rate = torch.pi / 2 * torch.logspace(0, -1.2, width // 4)
    angle = torch.arange(grid)[:, None] * rate
    line = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    table[1:] = 0.4 * torch.cat([rows, columns], -1).flatten(0, 1)
    for name, module in tower.named_modules():
        if name.endswith("self_attn"):
            _match(module.q_proj.weight, module.k_proj.weight, module.head_dim, range(2), generator, scale=1.5)


@torch.no_grad()
def start_matching(model: Any, generator: torch.Generator) -> None:
    """One query head per key-value head of the decoder starts equal to its key head: like attends to like from the start."""
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        groups = attention.num_key_value_groups
        heads = range(attention.config.num_key_value_heads)
        _match(attention.q_proj.weight, attention.k_proj.weight, attention.head_dim, heads, generator, groups=groups)


def _match(
    query: Tensor,
    key: Tensor,
    width: int,
    heads: Sequence[int],
    generator: torch.Generator,
    *,
    groups: int = 1,
    scale: float = 1.0,
) -> None:
    """Orthonormal rows; the mimetic initialisation of Trockman and Kolter, 2023 (arXiv 2305.09828), without its value part."""
    for head in heads:
        basis = scale * torch.linalg.qr(torch.randn(key.shape[1], width, generator=generator))[0].T
        key[head * width : (head + 1) * width] = basis
        query[head * groups * width : (head * groups + 1) * width] = basis


@dataclass(frozen=True)
class Turns:
    """Tokenised questions: ids and targets [B, Q * SLOT]; the answer and the end token are targets, the rest IGNORED."""

    ids: Tensor
    targets: Tensor


def ask_all(canvases: Canvases, rng: random.Random, count: int, kinds: Sequence[str] = KINDS) -> list[list[Question]]:
    """`count` questions about every picture; each kind comes first equally often."""
    found = []
    for index in range(len(canvases.images)):
        first = rng.choice(list(kinds))
        found.append(sorted(questions(canvases, index, rng, count, kinds), key=lambda question: question.kind != first))
    return found


def make_turns(asked: Sequence[Sequence[Question]], owners: Tensor, mask: Tensor) -> Turns:
    """The questions with the answers that the tokens in `mask` [B, N] allow; `owners` [B, N] are the patches' objects."""
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    for row, here, kept in zip(asked, owners, mask, strict=True):
        seen = set(here[kept].tolist())
        ids.append([])
        targets.append([])
        for question in row:
            words = [WORDS[word] for word in question.text.split()]
            answer = answer_ids(seen_answer(question, seen))
            rest = SLOT - len(words) - len(answer)
            ids[-1] += [*words, *answer, *[WORDS["<pad>"]] * rest]
            targets[-1] += [*[IGNORED] * (len(words) - 1), *answer, WORDS["<eos>"], *[IGNORED] * rest]
    return Turns(torch.tensor(ids), torch.tensor(targets))


def seen_answer(question: Question, seen: set[int]) -> str:
    """What is right to say where only the objects in `seen` are seen: a count of those, or that it is unknown."""
    needed = set(question.objects)
    if FAMILY[question.kind] == "counting":
        return str(len(needed & seen))
    if question.kind == "exists":
        return "yes" if question.answer == "yes" and needed & seen else "no"
    return question.answer if needed <= seen else UNKNOWN


def answer_ids(answer: str) -> list[int]:
    """Token ids of an answer: a number digit by digit."""
    return [WORDS[word] for word in (answer if answer.isdigit() else [answer])]


@dataclass(frozen=True)
class Shown:
    """Visual tokens that reach the decoder: index, real, positions [B, K] and the position of the first word [B]."""

    index: Tensor
    real: Tensor
    positions: Tensor
    start: Tensor


def keep_all(batch: int, total: int) -> Shown:
    """Every token, at its own place."""
    index = torch.arange(total).expand(batch, -1)
    return Shown(index, torch.ones_like(index, dtype=torch.bool), index + 1, torch.full((batch,), total + 1))


def keep_some(mask: Tensor, rng: random.Random, generator: torch.Generator) -> Shown:
    """The tokens in `mask` [B, N], padded to the longest row, at positions drawn one of three ways.

    Counted anew without gaps; their original ones; any ascending ones. So the model cannot read place from positions.
    """
    batch, total = mask.shape
    count = mask.sum(1)
    index = mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    real = torch.arange(index.shape[1]) < count[:, None]
    way = rng.choice(("reindex", "gather", "any"))
    if way == "gather":
        return Shown(index, real, index + 1, torch.full((batch,), total + 1))
    if way == "reindex":
        return Shown(index, real, torch.arange(1, index.shape[1] + 1).expand(batch, -1), count + 1)
    reach = rng.randint(index.shape[1], total + 60)
    places = torch.rand(batch, reach, generator=generator).argsort(1)[:, : index.shape[1]].sort(1).values + 1
    return Shown(index, real, places, torch.full((batch,), reach + rng.randint(1, 20)))


def choose(
    way: str, owners: Tensor, asked: Sequence[Sequence[Question]], rng: random.Random, generator: torch.Generator
) -> Tensor:
    """Visual tokens that a batch keeps [B, N]: all, a random share, or those that the first question of each picture needs."""
    if way == "all":
        return torch.ones_like(owners, dtype=torch.bool)
    if way == "random":
        return keep_share(owners.shape, 0.1 + 0.9 * rng.random() ** 2, generator)
    return torch.stack([torch.isin(row, torch.tensor(found[0].objects)) for row, found in zip(owners, asked, strict=True)])


def keep_share(shape: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """A mask [B, N] of a random `share` of the tokens of every row."""
    rank = torch.rand(*shape, generator=generator).argsort(1).argsort(1)
    return rank < max(1, round(share * shape[1]))


def mask_and_positions(kept: Shown, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Additive mask [B, 1, L, L] and positions [B, L]: causal, and no question sees another one. L = 1 + K + count * SLOT."""
    batch, visual = kept.index.shape
    prefix = 1 + visual
    length = prefix + count * SLOT
    index = torch.arange(length)
    turn = (index - prefix).div(SLOT, rounding_mode="floor").clamp(min=-1)
    allowed = (index[None, :] <= index[:, None]) & ((turn[None, :] == turn[:, None]) | (turn[None, :] < 0))
    real = F.pad(F.pad(kept.real, (1, 0), value=True), (0, count * SLOT), value=True)
    seen = allowed[None] & (real[:, None, :] | torch.eye(length, dtype=torch.bool))
    mask = torch.zeros(batch, 1, length, length).masked_fill_(~seen[:, None], torch.finfo(torch.float32).min)
    words = kept.start[:, None] + (torch.arange(count * SLOT) % SLOT)
    positions = torch.cat([torch.zeros(batch, 1, dtype=torch.long), kept.positions, words], 1)
    return mask.to(device), positions.to(device)


def answer_logits(model: Any, output: Any, turns: Turns, kept: Shown, *, teach_tower: bool = True) -> tuple[Tensor, Tensor]:
    """Logits [M, V] and targets [M] at the supervised positions; every question sees the picture and itself."""
    features = output.hidden_states[model.config.vision_feature_layer][:, 1:]
    visual = model.model.multi_modal_projector(features if teach_tower else features.detach())
    device = visual.device
    visual = visual[torch.arange(len(visual))[:, None].to(device), kept.index.to(device)]
    embed = model.get_input_embeddings()
    start = embed(torch.full((len(visual), 1), WORDS["<bos>"], device=device))
    embeds = torch.cat([start, visual.to(start.dtype), embed(turns.ids.to(device))], 1)
    prefix = 1 + visual.shape[1]
    mask, positions = mask_and_positions(kept, turns.ids.shape[1] // SLOT, device)
    states = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask.to(embeds.dtype), position_ids=positions, use_cache=False
    ).last_hidden_state
    targets = turns.targets.to(device)
    chosen = targets != IGNORED
    return model.lm_head(states[:, prefix:][chosen]).float(), targets[chosen]


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the answers, plus a little for the end token that follows them."""
    entropy = F.cross_entropy(logits, targets, reduction="none")
    end = targets == WORDS["<eos>"]
    return entropy[~end].mean() + 0.1 * entropy[end].mean()
