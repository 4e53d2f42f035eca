"""Losses and batches with which the visual-question-answering testbed is trained (see `vqa_train`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenry.lab.beds.pictures.canvas import COLOUR_NAMES, COLOURS, ZONES, Canvases, cells_to_patches, questions
from tokenry.lab.beds.vqa.bed import WORDS

SLOT = 7  # tokens of the longest question (6 words) and its answer
IGNORED = -100


class TowerHeads(nn.Module):
    """Linear read-outs: digit, colour, row, column of a patch; digits and colours present, from the CLS token."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.sizes = [11, len(COLOURS) + 1, cells, cells]
        self.patch = nn.Linear(width, sum(self.sizes))
        self.cls = nn.ModuleList(nn.Linear(width, 10 + len(COLOURS)) for _ in range(2))


def tower_loss(heads: TowerHeads, output: Any, canvases: Canvases, *, with_cls: bool) -> tuple[Tensor, dict[str, float]]:
    """Cross entropies of the read-outs; the digits weigh as much as all the rest of the picture.

    `output` is that of the vision tower with hidden states; read at the layer LLaVA reads (the last but one) and, for
    the CLS token, at the last layer too.
    """
    hidden = output.hidden_states[-2]
    device = hidden.device
    digit, colour, row, column = heads.patch(hidden[:, 1:]).float().split(heads.sizes, -1)
    cells = torch.arange(canvases.spec.cells**2)[None].expand(len(hidden), -1)
    place = cells_to_patches(cells, canvases.spec).to(device)
    label, tint = canvases.patch_labels().to(device), canvases.patch_colours().to(device)
    there = label >= 0
    loss = torch.zeros((), device=device)
    for logits, target in ((digit, label), (colour, tint)):
        target = torch.where(there, target, logits.shape[-1] - 1)
        entropy = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        loss = loss + entropy[there].mean() + entropy[~there].mean()
    for logits, target in ((row, place // canvases.spec.cells), (column, place % canvases.spec.cells)):
        loss = loss + 0.3 * F.cross_entropy(logits.flatten(0, 1), target.flatten())
    facts = {"patch_digit": (digit.argmax(-1) == label)[there].float().mean().item()}
    if with_cls:
        present = torch.cat([_presence(canvases.labels, 10), _presence(canvases.colours, len(COLOURS))], 1).to(device)
        for head, vector in zip(heads.cls, (hidden[:, 0], output.pooler_output), strict=True):
            guess = head(vector).float()
            loss = loss + F.binary_cross_entropy_with_logits(guess, present)
            facts["cls_presence"] = ((guess > 0) == (present > 0.5)).float().mean().item()
    return loss, facts


def _presence(values: Tensor, classes: int) -> Tensor:
    return (values[:, :, None] == torch.arange(classes)).any(1).float()


def alignment_loss(model: Any, output: Any, canvases: Canvases) -> Tensor:
    """Feature alignment: a projected patch is near the embeddings of its digit, colour and zone, and near none outside.

    The projector and the word embeddings learn from it, as in LLaVA's first stage (there with captions).
    """
    visual = _unit_rms(model.model.multi_modal_projector(output.hidden_states[-2][:, 1:].detach()))
    words = _unit_rms(model.get_input_embeddings().weight)
    spec = canvases.spec
    zones = torch.tensor([spec.zone_of(cell) for cell in range(spec.cells**2)])
    zone = cells_to_patches(zones[None].expand(len(visual), -1), spec).to(visual.device)
    label, colour = canvases.patch_labels().to(visual.device), canvases.patch_colours().to(visual.device)
    there = label >= 0
    loss = torch.zeros((), device=visual.device)
    for names, target in (([str(d) for d in range(10)], label), (COLOUR_NAMES, colour), (ZONES, zone)):
        rows = words[[WORDS[name] for name in names]]
        logits = visual @ rows.T / rows.shape[-1] ** 0.5
        outside = F.pad(logits[~there], (1, 0))  # the added class "none" has the logit zero
        loss = loss + F.cross_entropy(logits[there], target[there]) + (outside.logsumexp(1) - outside[:, 0]).mean()
    return loss


def _unit_rms(x: Tensor) -> Tensor:
    return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)


@torch.no_grad()
def start_matching(model: Any, generator: torch.Generator) -> None:
    """One query head per key-value head starts equal to its key head, so that like attends to like from the start.

    Orthonormal rows; the mimetic initialisation of Trockman and Kolter, 2023 (arXiv 2305.09828), without its value part.
    """
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        width, groups = attention.head_dim, attention.num_key_value_groups
        for head in range(attention.config.num_key_value_heads):
            basis = torch.linalg.qr(torch.randn(attention.k_proj.in_features, width, generator=generator))[0].T
            attention.k_proj.weight[head * width : (head + 1) * width] = basis
            attention.q_proj.weight[head * groups * width : (head * groups + 1) * width] = basis


@dataclass(frozen=True)
class Turns:
    """Tokenised questions: ids and targets [B, Q * SLOT]; the answer and the end token are targets, the rest IGNORED."""

    ids: Tensor
    targets: Tensor
    kinds: list[list[str]]


def make_turns(canvases: Canvases, rng: random.Random, count: int, kinds: Sequence[str]) -> Turns:
    """`count` questions about every picture."""
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    names: list[list[str]] = []
    for index in range(len(canvases.images)):
        row: list[int] = []
        goal: list[int] = []
        asked = questions(canvases, index, rng, count, kinds)
        for question in asked:
            words = [WORDS[word] for word in question.text.split()]
            answer = WORDS[question.answer]
            rest = SLOT - len(words) - 1
            row += [*words, answer, *[WORDS["<pad>"]] * rest]
            goal += [*[IGNORED] * (len(words) - 1), answer, WORDS["<eos>"], *[IGNORED] * rest]
        ids.append(row)
        targets.append(goal)
        names.append([question.kind for question in asked])
    return Turns(torch.tensor(ids), torch.tensor(targets), names)


def block_mask(prefix: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Additive mask [1, 1, L, L] and positions [1, L]: causal, and no question sees another one."""
    length = prefix + count * SLOT
    index = torch.arange(length, device=device)
    turn = (index - prefix).div(SLOT, rounding_mode="floor").clamp(min=-1)
    allowed = (index[None, :] <= index[:, None]) & ((turn[None, :] == turn[:, None]) | (turn[None, :] < 0))
    positions = torch.where(index < prefix, index, prefix + (index - prefix) % SLOT)
    mask = torch.zeros(length, length, device=device).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return mask[None, None], positions[None]


def answer_logits(model: Any, output: Any, turns: Turns) -> tuple[Tensor, Tensor]:
    """Logits [M, V] and targets [M] at the supervised positions; every question sees the picture and itself."""
    visual = model.model.multi_modal_projector(output.hidden_states[model.config.vision_feature_layer][:, 1:])
    device = visual.device
    embed = model.get_input_embeddings()
    start = embed(torch.full((len(visual), 1), WORDS["<bos>"], device=device))
    embeds = torch.cat([start, visual.to(start.dtype), embed(turns.ids.to(device))], 1)
    prefix = 1 + visual.shape[1]
    mask, positions = block_mask(prefix, turns.ids.shape[1] // SLOT, device)
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
    return entropy[~end].mean() + 0.05 * entropy[end].mean()
