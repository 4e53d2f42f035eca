"""Contract of pruners of visual tokens at work in a model: ``check_visual_pruner(MyPruner(keep=0.25))``.

What a client does on the second day: a further turn on the cache, a compiled or wrapped model, autocast, padding on either
side, copies of the model, a KV-cache method beside the pruner.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning.base import PruningTrace
from tokenry.pruning.kv_baselines import H2O, SnapKV, StreamingLLM
from tokenry.pruning.visual import VisualPruner
from tokenry.testing.clients import LikePeft, one_way
from tokenry.testing.verdict import fail
from tokenry.testing.zoo import llava_inputs, qwen_inputs, tiny_llava, tiny_qwen, tiny_vlm, vlm_inputs

_NEAR = 1e-4
_BEDS: dict[str, tuple[Any, Any]] = {
    "LLaVA": (tiny_llava, llava_inputs),
    "Qwen2.5-VL": (tiny_qwen, lambda: qwen_inputs()),
}
_GREEDY: dict[str, Any] = {
    "max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True, "eos_token_id": None,
}  # fmt: skip


def _far(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, atol=_NEAR, rtol=_NEAR)


def _run(pruner: VisualPruner, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, PruningTrace]:
    with pruner.attach(model) as trace:
        return model(**inputs).logits, trace


def _kept(trace: PruningTrace) -> list[list[int]]:
    return [entry.indices.tolist() for entry in trace.kept]


def _identity(pruner: VisualPruner) -> None:
    whole = replace(pruner, keep=1.0)
    for name, (build, make) in _BEDS.items():
        model, inputs = build(), make()
        plain = model.generate(**inputs, **_GREEDY)
        with whole.attach(model) as trace:
            found = model.generate(**inputs, **_GREEDY)
        dropped = any(entry.indices.shape[-1] < entry.total for entry in trace.kept)  # a later stage may drop by its own rule
        if not dropped and not torch.equal(found.sequences, plain.sequences):
            fail("keep=1.0 is the identity", pruner, f"{name} writes other tokens than without it")


def _another_turn(pruner: VisualPruner) -> None:
    """The whole chat given back on the cache is read like its new tokens one by one, and without the cache."""
    for name, (build, make) in _BEDS.items():
        model, inputs = build(), make()
        with pruner.attach(model):
            first = model.generate(**inputs, **_GREEDY)
            seen, chat = cache_of(first).get_seq_length(), torch.cat((first.sequences, torch.tensor([[5, 9, 11]])), dim=1)
            if seen != first.sequences.shape[1] - 1:
                fail("another turn", pruner, f"{name}: the cache says {seen} tokens after {first.sequences.shape[1] - 1}")
            cache, out = copy.deepcopy(cache_of(first)), None
            for token in chat[:, seen:].split(1, dim=1):
                out = model(input_ids=token, **as_argument(cache))
                cache = cache_of(out)
            turn = model.generate(
                input_ids=chat, attention_mask=torch.ones_like(chat), **as_argument(cache_of(first)), **_GREEDY
            )
        assert out is not None
        if _far(turn.logits[0], out.logits[:, -1]):
            fail("another turn", pruner, f"{name} reads a second turn on the cache otherwise than token by token")


def _rows_of_a_cache(pruner: VisualPruner) -> None:
    """A shortened cache whose rows are repeated goes on like the row; one that others would misread is refused to them."""
    model, inputs = tiny_llava(), llava_inputs((1, 2))
    token = torch.full((2, 1), 9)
    with pruner.attach(model):
        cache = cache_of(model(**inputs, use_cache=True))
        more, outside = copy.deepcopy(cache), copy.deepcopy(cache)
        once = model(input_ids=token, **as_argument(cache)).logits
        more.batch_repeat_interleave(2)
        twice = model(input_ids=token.repeat_interleave(2, dim=0), **as_argument(more)).logits
    if _far(twice[::2], once) or _far(twice[1::2], once):
        fail("rows of a cache", pruner, "repeated rows are continued otherwise than the row itself")
    try:
        model(input_ids=token, **as_argument(outside))
    except RuntimeError as error:
        if type(pruner).__name__ not in str(error):
            fail("rows of a cache", pruner, f"continued outside the block, the message must name the pruner, got: {error}")
    else:
        fail("rows of a cache", pruner, "a padded, shortened cache is continued outside the block with a wrong mask")


def _padding(pruner: VisualPruner) -> None:
    """A row of a batch is the row alone, whichever side the padding is on."""
    model = tiny_llava()
    inputs = llava_inputs((1, 1), words=(3, 9))
    for side, ids, mask in _both_sides(inputs["input_ids"], inputs["attention_mask"]):
        pixels = inputs["pixel_values"]
        together, trace = _run(pruner, model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
        for row in (0, 1):
            if row and not pruner.order_free:
                continue  # what is drawn depends on the number of the image
            real = mask[row].bool()
            alone, own = _run(pruner, model, {"input_ids": ids[row, real][None], "pixel_values": pixels[row : row + 1]})
            shared = [entry.indices.tolist() for entry in trace.kept if entry.image == row]
            if _kept(own) != shared:
                fail("padding", pruner, f"padded on the {side}, row {row} keeps {shared}, alone {_kept(own)}")
            if _far(together[row, real], alone[0]):
                fail("padding", pruner, f"padded on the {side}, row {row} has other logits than alone")


def _both_sides(ids: Tensor, mask: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    lengths = mask.sum(dim=1).tolist()
    right = torch.stack([torch.roll(row, n - len(row)) for row, n in zip(ids, lengths, strict=True)])
    return [("left", ids, mask), ("right", right, mask.flip(1))]


def _autocast(pruner: VisualPruner) -> None:
    """In bfloat16 regions too, tokens are chosen in float32: of the same tokens the same ones."""
    generator = torch.Generator().manual_seed(2)
    features, importance = torch.randn(2, 24, 16, generator=generator), torch.rand(2, 24, generator=generator)
    wanted = pruner.select(features, importance=importance)
    with torch.autocast("cpu", torch.bfloat16):
        if not torch.equal(pruner.select(features, importance=importance), wanted):
            fail("autocast", pruner, "select chooses other tokens under autocast")
        for name, (build, make) in _BEDS.items():
            model = build()
            with pruner.attach(model) as trace:
                out = model.generate(**make(), **_GREEDY)
            if not trace.kept or not all(bool(torch.isfinite(row).all()) for row in out.logits):
                fail("autocast", pruner, f"{name} is not pruned, or its logits are not finite")


def _compiled(pruner: VisualPruner) -> None:
    """Compiled and run once before it is attached to."""
    inputs = llava_inputs()
    wanted, trace = _run(pruner, tiny_llava(layers=3), inputs)
    how, compile_ = one_way(pruner)
    model = compile_(tiny_llava(layers=3))
    before = model(**inputs).logits
    found, own = _run(pruner, model, inputs)
    if _kept(own) != _kept(trace) or _far(found, wanted):
        fail("compiled before", pruner, f"{how}, run once and then attached to, the model is not pruned")
    if _far(model(**inputs).logits, before):
        fail("compiled before", pruner, f"{how}, the model is not plain after the block")


def _wrapped(pruner: VisualPruner) -> None:
    model, inputs = tiny_llava(), llava_inputs()
    wanted, _ = _run(pruner, model, inputs)
    for wrapper in (nn.DataParallel(model), LikePeft(model), nn.DataParallel(LikePeft(model))):
        if _far(_run(pruner, wrapper, inputs)[0], wanted):
            fail("wrappers", pruner, f"attached to {type(wrapper).__name__} around the model, it gives other logits")


def _count_is_a_cap(pruner: VisualPruner) -> None:
    capped, features = replace(pruner, keep=192), torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(4))
    chosen = capped.select(features, importance=features.norm(dim=-1))
    if capped.plan(24) != 24 or chosen.shape != (1, 24):
        fail("a count is a cap", pruner, f"of 24 tokens, keep=192 plans {capped.plan(24)} and keeps {tuple(chosen.shape)}")
    _, trace = _run(capped, tiny_llava(), llava_inputs())
    if trace.kept[0].indices.shape[-1] != trace.kept[0].total:
        fail("a count is a cap", pruner, f"recorded {trace.to_rows()}, wanted all tokens of the image")


def _copies(pruner: VisualPruner) -> None:
    model, inputs = tiny_llava(), llava_inputs()
    plain = model(**inputs).logits
    with pruner.attach(model) as trace:
        if _far(copy.deepcopy(model)(**inputs).logits, plain) or trace.kept:
            fail("copies", pruner, "a deep copy made inside the block is pruned too")
        hidden = copy.deepcopy(model.model)(**inputs).last_hidden_state
        if _far(model.lm_head(hidden), plain) or trace.kept:
            fail("copies", pruner, "a deep copy of the model inside, made inside the block, is pruned too")
        model(**inputs)
    if not trace.kept or _far(model(**inputs).logits, plain):
        fail("copies", pruner, "after a deep copy, the model is not pruned inside the block, or is after it")


def _videos(pruner: VisualPruner) -> None:
    """A clip and an image in one prompt: frames are pruned through ``generate``, and all of them kept is the plain model."""
    for name in ("onevision", "qwen2_5_vl"):
        model, inputs = tiny_vlm(name), vlm_inputs(name, (("video", "image"),))
        plain = model.generate(**inputs, **_GREEDY)
        with pruner.attach(model) as trace:
            model.generate(**inputs, **_GREEDY)
        cut = [entry for entry in trace.kept if entry.indices.shape[-1] < entry.total]
        by_layer = {entry.layer: [e for e in cut if e.layer == entry.layer] for entry in cut}
        if max(map(len, by_layer.values()), default=0) < 4:
            fail("videos", pruner, f"{name}: three frames and an image are there, and the trace says {trace.to_rows()}")
        with replace(pruner, keep=1.0).attach(model) as trace:
            found = model.generate(**inputs, **_GREEDY)
        dropped = any(entry.indices.shape[-1] < entry.total for entry in trace.kept)  # a later stage may drop by its own rule
        if not dropped and not torch.equal(found.sequences, plain.sequences):
            fail("videos", pruner, f"{name} with all tokens of a clip writes other ones than without the pruner")


def _guesses_and_no_cache(pruner: VisualPruner) -> None:
    """Decoding with guesses, and without a cache, writes what plain decoding writes, or is refused by the argument's name."""
    model, inputs = tiny_llava(), llava_inputs()
    ids = torch.cat([inputs["input_ids"], torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8]])], dim=1)
    inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {**_GREEDY, "max_new_tokens": 8}
    with pruner.attach(model):
        wanted = model.generate(**inputs, **options).sequences[0, ids.shape[1] :].tolist()
    for name, value in (("prompt_lookup_num_tokens", 3), ("use_cache", False)):
        try:
            with pruner.attach(model):
                found = model.generate(**inputs, **options, **{name: value}).sequences[0, ids.shape[1] :].tolist()
        except ValueError as error:
            if name not in str(error):
                fail("guesses and no cache", pruner, f"{name}={value}: the message must name {name}, got: {error}")
            continue
        if found != wanted:
            fail("guesses and no cache", pruner, f"{name}={value} writes {found}, without it {wanted}")


def _in_chunks_with_cache_methods(pruner: VisualPruner) -> None:
    """Beside a KV-cache method a prompt in chunks, some of which keep nothing, is the prompt in one piece."""
    model, inputs = tiny_llava(), llava_inputs((1,), words=(9,))
    for cut in (H2O(8), StreamingLLM(8), SnapKV(12, window=3)):
        runs = []
        for size in (None, 3, 11):
            with pruner.attach(model), cut.attach(model):
                try:
                    runs.append(torch.stack(model.generate(**inputs, **_GREEDY, prefill_chunk_size=size).logits))
                except ValueError as error:
                    if size is None or "prefill_chunk_size" not in str(error):
                        fail("chunks with a cache method", pruner, f"in chunks of {size} beside {cut}: {error}")
        if any(_far(run, runs[0]) for run in runs):
            fail("chunks with a cache method", pruner, f"beside {cut} a prompt in chunks is read otherwise than in one piece")


def _with_a_cache_method(pruner: VisualPruner) -> None:
    """Pruner and KV-cache method in either order: the cache method on what the pruner left."""
    model, inputs = tiny_llava(), llava_inputs((1, 1), words=(3, 9))
    cut, runs = H2O(12), []
    for first, second in ((pruner, cut), (cut, pruner)):
        with first.attach(model) as one, second.attach(model) as two:
            runs.append(model.generate(**inputs, **_GREEDY))
        held = {layer.keys.shape[-2] for layer in cache_of(runs[-1]).layers}
        if held != {12} or not one.kept or not two.kept:
            fail("with a cache method", pruner, f"beside H2O(12), {type(first).__name__} first, the layers hold {held} slots")
    if _far(torch.stack(runs[0].logits), torch.stack(runs[1].logits)):
        fail("with a cache method", pruner, "the order of the two changes what is written")
    _by_hand(pruner, model, inputs, cut, runs[0])


def _by_hand(pruner: VisualPruner, model: Any, inputs: dict[str, Tensor], cut: H2O, found: Any) -> None:
    """The language model on the kept embeddings, with the cache method alone; one row, decisions before the decoder only."""
    with pruner.attach(model) as trace:
        model(**inputs)
    if any(entry.layer is not None for entry in trace.kept):
        return
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    embeds = model.get_input_embeddings()(ids)
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    rows = []
    for row, entry in enumerate(trace.kept):
        visual = (ids[row] == model.config.image_token_id).nonzero().squeeze(1)
        embeds[row, visual] = features[row]
        stays = mask[row].clone()
        stays[visual] = False
        stays[visual[entry.indices]] = True
        rows.append(embeds[row, stays])
    for row, own in enumerate(rows):
        with cut.attach(model.model.language_model):
            out = model.model.language_model(inputs_embeds=own[None], use_cache=True)
            for step, token in enumerate(found.sequences[row, ids.shape[1] :]):
                if _far(model.lm_head(out.last_hidden_state[:, -1]), found.logits[step][row : row + 1]):
                    fail("with a cache method", pruner, f"step {step} of row {row} differs from doing both by hand")
                out = model.model.language_model(input_ids=token.view(1, 1), use_cache=True, **as_argument(cache_of(out)))


VISUAL_PRUNER_CHECKS = (
    _identity, _another_turn, _rows_of_a_cache, _padding, _autocast, _compiled, _wrapped, _count_is_a_cap, _copies,
    _with_a_cache_method, _videos, _guesses_and_no_cache, _in_chunks_with_cache_methods,
)  # fmt: skip


@torch.no_grad()
def check_visual_pruner(pruner: VisualPruner) -> None:
    """Run every check of a pruner at work in tiny vision-language models.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for check in VISUAL_PRUNER_CHECKS:
        check(pruner)
