"""Contract of a language model of ours: ``check_language_model(make_model, make_batch)``.

The model is a transformers ``PreTrainedModel``; a batch is the dict of its inputs. What differs between models is
told by a `LanguageModelCase`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenry.core.seeding import seeded
from tokenry.testing.verdict import fail, refuses

MakeModel = Callable[[], PreTrainedModel]
MakeBatch = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class LanguageModelCase:
    """How to read one model.

    Attributes:
        make_model: builds the model, the same weights every time (seed it).
        make_batch: inputs of at least 3 rows of at least 5 tokens, without padding and labels; the same every time.
        ids: name of the input that holds token ids, [B, T, ...].
        mask: name of the mask of real tokens [B, T]; True or 1 = real.
        per_row: inputs with a batch axis (sliced by row); the others are passed on.
        per_token: inputs with a token axis 1 (sliced by token).
        bad_ids: an id the model must refuse.
        rows_of: cuts other row-wise inputs (not tensors) to the given rows.
    """

    make_model: MakeModel
    make_batch: MakeBatch
    ids: str = "input_ids"
    mask: str = "attention_mask"
    per_row: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()
    bad_ids: tuple[int, ...] = (-1, 10**6)
    rows_of: dict[str, Callable[[Any, slice], Any]] = field(default_factory=dict)

    def model(self) -> PreTrainedModel:
        """The model in evaluation mode."""
        return self.make_model().eval()

    def rows(self, batch: dict[str, Any], rows: slice) -> dict[str, Any]:
        """The batch cut to some rows."""
        cut = {name: (x[rows] if name in (self.ids, *self.per_row) else x) for name, x in batch.items()}
        return cut | {name: take(batch[name], rows) for name, take in self.rows_of.items() if name in batch}

    def tokens(self, batch: dict[str, Any], tokens: slice) -> dict[str, Any]:
        """The batch cut to some tokens."""
        return {name: (x[:, tokens] if name in (self.ids, *self.per_token) else x) for name, x in batch.items()}

    def masked(self, batch: dict[str, Any], mask: Tensor) -> dict[str, Any]:
        """The batch with a mask [B,T] bool in the type that the model takes."""
        return batch | {self.mask: mask.long() if self.mask == "attention_mask" else mask}


def _close(check: str, model: PreTrainedModel, a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    if a.shape != b.shape or not torch.allclose(a, b, atol=tolerance, rtol=1e-4):
        apart = "shapes" if a.shape != b.shape else f"largest difference {float((a - b).abs().max()):.2g}"
        fail(check, model, apart)


@torch.no_grad()
def _batch_is_loop(case: LanguageModelCase) -> None:
    model, batch = case.model(), case.make_batch()
    together = model(**batch).logits
    for row in range(len(together)):
        alone = model(**case.rows(batch, slice(row, row + 1))).logits
        _close("batch equals loop", model, together[row : row + 1], alone)


@torch.no_grad()
def _causal(case: LanguageModelCase) -> None:
    """Changing the last token changes no logit before it."""
    model, batch = case.model(), case.make_batch()
    before = model(**batch).logits
    changed = dict(batch)
    changed[case.ids] = batch[case.ids].clone()
    changed[case.ids][:, -1] = batch[case.ids][:, 0]
    last = batch[case.ids].shape[1] - 1
    _close("causality", model, before[:, : last - 1], model(**changed).logits[:, : last - 1])


@torch.no_grad()
def _padding(case: LanguageModelCase) -> None:
    """A row padded on the right, and one padded on the left, equal the row alone, whatever the padding holds."""
    model, batch = case.model(), case.make_batch()
    total = batch[case.ids].shape[1]
    for name, real in (("right", slice(0, total - 2)), ("left", slice(2, total))):
        mask = torch.ones(batch[case.ids].shape[:2], dtype=torch.bool)
        mask[0] = False
        mask[0, real] = True
        padded = model(**case.masked(batch, mask)).logits
        alone = model(**case.tokens(case.rows(batch, slice(0, 1)), real)).logits
        start = real.start
        _close(f"padding on the {name}", model, padded[:1, start : start + alone.shape[1]], alone)
        noisy = dict(batch)
        noisy[case.ids] = torch.where(
            mask.view(*mask.shape, *[1] * (batch[case.ids].dim() - 2)), batch[case.ids], batch[case.ids].flip(1)
        )
        again = model(**case.masked(noisy, mask)).logits
        _close(f"content of padding on the {name}", model, again[:1, start : start + alone.shape[1]], alone)


@torch.no_grad()
def _deterministic(case: LanguageModelCase) -> None:
    model, batch = case.model(), case.make_batch()
    kept = {name: x.clone() for name, x in batch.items() if isinstance(x, Tensor)}
    first = model(**batch).logits
    with seeded(77):
        second = case.model()(**case.make_batch()).logits
    if not torch.equal(first, second):
        fail("determinism", model, "two models made alike differ on one batch")
    if any(not torch.equal(batch[name], x) for name, x in kept.items()):
        fail("input untouched", model, "forward changed its input")


@torch.no_grad()
def _half(case: LanguageModelCase) -> None:
    model = case.model()
    reference = model(**case.make_batch()).logits
    for dtype in (torch.bfloat16, torch.float16):
        lower: Any = case.model()
        batch = case.make_batch()
        mask = torch.ones(batch[case.ids].shape[:2], dtype=torch.bool)
        mask[0, -2:] = False
        logits = lower.to(dtype)(**case.masked(batch, mask)).logits
        if logits.dtype != dtype or not bool(torch.isfinite(logits).all()):
            fail("half precision", model, f"{dtype}: logits must be finite and of that type, got {logits.dtype}")
        _close("half precision", model, logits[1:].float(), reference[1:], 0.25)


def _gradients(case: LanguageModelCase) -> None:
    """Every trained parameter gets a finite gradient, and the loss of a padded batch counts no padding."""
    model, batch = case.model(), case.make_batch()
    model.train()
    output: Any = model(**batch, labels=batch[case.ids])
    output.loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    if without or broken:
        fail("gradients", model, f"without a gradient: {without}; not finite: {broken}")
    quiet = case.model()
    mask = torch.ones(batch[case.ids].shape[:2], dtype=torch.bool)
    mask[:, -2:] = False
    with torch.no_grad():
        padded: Any = quiet(**case.masked(batch, mask), labels=batch[case.ids])
        cut = case.tokens(batch, slice(0, batch[case.ids].shape[1] - 2))
        alone: Any = quiet(**cut, labels=cut[case.ids])
    _close("loss without padding", model, padded.loss, alone.loss)


def _saving(case: LanguageModelCase) -> None:
    model, batch = case.model(), case.make_batch()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        back = type(model).from_pretrained(folder).eval()
        if not torch.equal(model(**batch).logits, back(**case.make_batch()).logits):
            fail("save and load", model, "the loaded model gives other logits")
        if back.config.to_dict().keys() != model.config.to_dict().keys():
            fail("save and load", model, "the loaded configuration has other fields")


def _bad_input(case: LanguageModelCase) -> None:
    model, batch = case.model(), case.make_batch()
    for bad in case.bad_ids:
        broken = dict(batch)
        broken[case.ids] = batch[case.ids].clone()
        broken[case.ids].view(-1)[0] = bad
        refuses(model, case.ids, partial(model, **broken))
    refuses(model, case.ids, partial(model, **(batch | {case.ids: batch[case.ids].double()})))
    refuses(model, case.ids, partial(model, **(batch | {case.ids: batch[case.ids][0]})))
    refuses(model, case.ids, partial(model, **(batch | {case.ids: batch[case.ids][:, :0]})))
    refuses(model, "labels", partial(model, **(batch | {"labels": batch[case.ids][:, :-1]})))


LANGUAGE_MODEL_CHECKS = (
    _batch_is_loop,
    _causal,
    _padding,
    _deterministic,
    _half,
    _gradients,
    _saving,
    _bad_input,
)


def check_language_model(make_model: MakeModel, make_batch: MakeBatch, **options: Any) -> None:
    """Run every contract check of a language model.

    Args:
        make_model: builds the model, the same weights every time.
        make_batch: builds its inputs, the same every time.
        options: the other fields of `LanguageModelCase`.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    case = LanguageModelCase(make_model, make_batch, **options)
    for check in LANGUAGE_MODEL_CHECKS:
        check(case)
