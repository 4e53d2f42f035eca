"""Every vision-language family (tiny, random): kept columns against the language model run by hand, batches, turns, KV methods."""

import pytest
import torch

from tests.hosts.by_hand import (
    CLOSE,
    GREEDY,
    SCORED,
    check_chunks,
    check_rows_alone,
    keep_of,
    logits_by_hand,
    model_of,
    seen_by_language,
    visual_of,
)
from tokenry.core.attention import attention_rows
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import attached
from tokenry.hosts.attention import observe
from tokenry.hosts.release import as_argument, cache_of
from tokenry.hosts.vlm import (
    SUPPORTED,
    Signals,
    VLMFamily,
    add_vlm_family,
    has_cls,
    language_of,
    prune_prompt,
    weigh_visual_tokens,
)
from tokenry.pruning import H2O, DivPrune, FastV, IDPruner, NoPruning, StreamingLLM, ToDRE, TopK, UniformGrid, ZOOPrune
from tokenry.testing import vlm_inputs
from tokenry.testing.zoo import VLM_NAMES

ROWS = (("image",), ("image", "image"), ())
STAGED = [name for name in VLM_NAMES if name != "gemma3_vlm"]


@pytest.mark.parametrize("name", VLM_NAMES)
def test_keeping_everything_is_the_plain_model(name):
    model, inputs = model_of(name), vlm_inputs(name, ROWS)
    plain = model.generate(**inputs, **SCORED)
    pruners = [NoPruning(), ToDRE(1.0, threshold=0.0), *([FastV(1.0)] if name in STAGED else [])]
    for pruner in pruners:
        with pruner.attach(model):
            kept = model.generate(**inputs, **SCORED)
        assert torch.equal(kept.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(kept.logits), torch.stack(plain.logits), **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VLM_NAMES)
def test_pruned_logits_are_those_of_the_kept_columns_run_by_hand(name, attention):
    model, inputs = model_of(name, attention), vlm_inputs(name, (("image", "image"),))
    length = inputs["input_ids"].shape[1]
    for positions in ("reindex", "gather"):
        with DivPrune(0.4).attach(model, positions=positions) as trace:
            out = model.generate(**inputs, **SCORED)
        keep = keep_of(inputs["input_ids"][0], trace)
        assert 0 < int(keep.sum()) < length
        expected = logits_by_hand(name, model, inputs, keep, out.sequences[:, length:], positions)
        torch.testing.assert_close(torch.stack(out.logits, dim=1), expected, **CLOSE)
        everything = logits_by_hand(name, model, inputs, keep | True, out.sequences[:, length:], positions)
        assert float((everything - expected).abs().max()) > 100 * CLOSE["atol"]  # so that the comparison means something


PRUNERS = [IDPruner(0.4), ToDRE(0.4, threshold=0.0), ZOOPrune(0.5, directions=4), ToDRE(0.4, threshold=2.0), FastV(0.4)]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda p: f"{type(p).__name__}-{getattr(p, 'threshold', '')}")
@pytest.mark.parametrize("name", VLM_NAMES)
def test_a_row_of_a_padded_batch_is_the_row_alone(name, pruner):
    if name not in STAGED and pruner in PRUNERS[3:]:
        pytest.skip("refused, see below")
    check_rows_alone(name, pruner, ROWS)


def test_qwen3_drops_the_deepstack_rows_of_tokens_that_left_inside_the_decoder():
    """FastV decides after the first block, deepstack features are added after the first three."""
    model, inputs = model_of("qwen3_vl"), vlm_inputs("qwen3_vl", (("image",),))
    with FastV(0.4, layer=1).attach(model) as trace, torch.no_grad():
        pruned = model(**inputs).logits
    visual = visual_of(inputs["input_ids"][0])
    gone = visual.clone()
    gone[visual.nonzero().squeeze(1)[trace.kept[-1].indices]] = False
    assert 0 < int(gone.sum()) < int(visual.sum())
    language, full = model.model.language_model, len(visual)

    def hide(module, args, kwargs):
        mask = torch.ones(full, full, dtype=torch.bool).tril()
        mask[:, gone] = False
        return args, {**kwargs, "attention_mask": (mask | torch.eye(full, dtype=torch.bool))[None, None]}

    handles = [block.register_forward_pre_hook(hide, with_kwargs=True) for block in language.layers[1:]]
    with torch.no_grad():
        hidden = model(**inputs).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(pruned[:, ~gone], hidden[:, ~gone], **CLOSE)
    with FastV(0.4, layer=1).attach(model):
        model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("name", VLM_NAMES)
def test_a_second_turn_is_feeding_its_tokens_one_by_one(name):
    model, inputs = model_of(name), vlm_inputs(name, (("image", "image"),))
    turn = torch.tensor([[21, 22, 23]])
    with DivPrune(0.4).attach(model):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        chat = torch.cat([first.sequences, turn], dim=1)
        second = model.generate(input_ids=chat, attention_mask=torch.ones_like(chat), **as_argument(cache_of(first)), **SCORED)
        with torch.no_grad():
            step, fed = model(**inputs), inputs["input_ids"].shape[1]
            for at in range(fed, chat.shape[1]):
                step = model(input_ids=chat[:, at : at + 1], **as_argument(cache_of(step)))
    torch.testing.assert_close(second.logits[0], step.logits[:, -1], **CLOSE)


@pytest.mark.parametrize("name", ["internvl", "gemma3_vlm", "mistral3", "llava_next"])
def test_a_later_turn_may_bring_an_image(name):
    model = model_of(name)
    inputs, later = vlm_inputs(name, (("image",),)), vlm_inputs(name, (("image",),), first_row=1)
    with DivPrune(0.4).attach(model) as trace:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        chat = torch.cat([first.sequences, later["input_ids"]], dim=1)
        extra = {k: v for k, v in later.items() if k in ("pixel_values", "image_sizes")}
        if name == "gemma3_vlm":
            extra["token_type_ids"] = visual_of(chat).long()
        cache = as_argument(cache_of(first))
        second = model.generate(input_ids=chat, attention_mask=torch.ones_like(chat), **extra, **cache, **SCORED)
    whole = {**inputs, "input_ids": chat, "attention_mask": torch.ones_like(chat)}
    sizes = [(i["pixel_values"], i.get("image_sizes")) for i in (inputs, later)]
    width = [max(p.shape[d] for p, _ in sizes) for d in range(sizes[0][0].dim())][1:]
    whole["pixel_values"] = torch.cat([_padded(p, width) for p, _ in sizes])
    if "image_sizes" in inputs:
        whole["image_sizes"] = torch.cat([s for _, s in sizes])
    if name == "gemma3_vlm":
        whole["token_type_ids"] = visual_of(chat).long()
    keep = keep_of(chat[0], trace)
    expected = logits_by_hand(name, model, whole, keep, second.sequences[:, chat.shape[1] :])
    torch.testing.assert_close(torch.stack(second.logits, dim=1), expected, **CLOSE)


def _padded(pixels, width):
    out = torch.zeros(len(pixels), *width)
    out[(slice(None), *map(slice, pixels.shape[1:]))] = pixels
    return out


@pytest.mark.parametrize("name", VLM_NAMES)
def test_autocast_in_bfloat16_keeps_as_many_tokens(name):
    model, inputs = model_of(name), vlm_inputs(name, ROWS)
    with IDPruner(0.4).attach(model) as trace:
        model.generate(**inputs, **GREEDY)
    with IDPruner(0.4).attach(model) as cast, torch.autocast("cpu", torch.bfloat16):
        out = model.generate(**inputs, **SCORED)
    assert torch.isfinite(torch.stack(out.logits)).all()
    rows = [sum(len(e.indices) for e in t.kept) for t in (trace, cast)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("method", [StreamingLLM(budget=8), H2O(budget=8)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", VLM_NAMES)
def test_a_cache_method_works_with_a_pruner(name, method):
    model, inputs = model_of(name), vlm_inputs(name, ROWS)
    with method.attach(model):
        alone = model.generate(**inputs, **SCORED)
    with NoPruning().attach(model), method.attach(model):
        both = model.generate(**inputs, **SCORED)
    torch.testing.assert_close(torch.stack(both.logits), torch.stack(alone.logits), **CLOSE)
    roomy = type(method)(budget=400)
    with DivPrune(0.4).attach(model):
        pruned = model.generate(**inputs, **SCORED)
    with DivPrune(0.4).attach(model), roomy.attach(model):
        pruned_roomy = model.generate(**inputs, **SCORED)
    torch.testing.assert_close(torch.stack(pruned_roomy.logits), torch.stack(pruned.logits), **CLOSE)
    with DivPrune(0.4).attach(model), method.attach(model):
        tight = model.generate(**inputs, **SCORED)
    full = [i for i, layer in enumerate(cache_of(tight).layers) if not getattr(layer, "is_sliding", False)]
    assert {cache_of(tight).layers[i].keys.shape[-2] for i in full} <= {8, 9}
    assert torch.isfinite(torch.stack(tight.logits)).all()


@pytest.mark.parametrize("name", VLM_NAMES)
def test_observed_queries_and_keys_give_the_attention_maps_of_eager_attention(name):
    inputs = vlm_inputs(name, ((),))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.arange(20, 27)[None]], dim=1)
    model, seen = model_of(name), []
    with attached(model, "test") as hooks, torch.no_grad():
        for block in language_of(model).layers:
            observe(hooks, block.self_attn, seen.append)
        model(input_ids=inputs["input_ids"])
        maps = model_of(name, "eager")(input_ids=inputs["input_ids"], output_attentions=True).attentions
    for one, expected in zip(seen, maps, strict=True):
        rows = attention_rows(one.query, one.key, causal_offset=0, **vars(one.rule))
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


GRIDS = {
    "llava": [(6, 6), (6, 6)],
    "onevision": [None, None],  # crops behind a thumbnail
    "llava_next": [None, None],
    "qwen2_vl": [(4, 6), (2, 4)],
    "qwen2_5_vl": [(4, 6), (2, 4)],
    "qwen3_vl": [(4, 6), (2, 4)],
    "qwen3_vl_moe": [(4, 6), (2, 4)],
    "internvl": [(3, 3), None],  # a second image of two tiles and a thumbnail
    "gemma3_vlm": [(3, 3), (3, 3)],
    "mistral3": [(2, 3), (3, 3)],
    "llava_pixtral": [(4, 6), (6, 6)],
    "idefics3": [(3, 3)] * 4,  # a second image of three tiles, each for itself
    "smolvlm": [(3, 3)] * 4,
}


@pytest.mark.parametrize("name", VLM_NAMES)
def test_the_trace_has_the_grid_of_every_image(name):
    model, inputs = model_of(name), vlm_inputs(name, (("image", "image"),))
    with DivPrune(0.4).attach(model) as trace:
        model.generate(**inputs, **GREEDY)
    assert [entry.grid for entry in trace.kept] == GRIDS[name]
    assert [entry.image for entry in trace.kept] == list(range(len(trace.kept)))
    for entry in trace.kept:
        assert entry.grid is None or entry.grid[0] * entry.grid[1] == entry.total


def test_internvl_joins_tiles_to_images_and_zooprune_spends_its_budget_per_tile():
    """The tiles of an image follow each other in the prompt, its thumbnail last; another image stands behind text."""
    model, inputs, found = model_of("internvl"), vlm_inputs("internvl", (("image", "image"),)), []

    def choose(images):
        found.extend(images)
        return [torch.arange(len(image.features)) for image in images]

    with prune_prompt(model, "test", choose), torch.no_grad():
        model(**inputs)
    assert [image.crop.tolist() for image in found] == [[0] * 9, [1] * 9 + [2] * 9 + [0] * 9]
    with ZOOPrune(0.4, directions=4).attach(model) as trace:
        model.generate(**inputs, **GREEDY)
    assert [len(entry.indices) for entry in trace.kept] == [3, 9]  # int(27 * 0.4) // 3 in each of three tiles
    assert torch.bincount(trace.kept[1].indices // 9).tolist() == [3, 3, 3]


@pytest.mark.parametrize("item", ["image", "video"])
@pytest.mark.parametrize("name", VLM_NAMES)
def test_scores_read_at_the_projector_come_back_at_their_tokens(name, item):
    """Scored by the size of what the projector makes of a token, every token has the size of its own feature."""
    if item == "video" and not name.startswith("qwen"):
        pytest.skip("no clips, or shrunk behind the projector")
    model, inputs, found = model_of(name), vlm_inputs(name, ((item,),), first_row=1), []

    def size(projector, x):
        return projector(x).float().square().sum(dim=-1)

    def choose(images):
        found.extend(images)
        return [torch.arange(len(image.features)) for image in images]

    with prune_prompt(model, "test", choose, signals=Signals(projector={"size": size})), torch.no_grad():
        model(**inputs)
    for image in found:
        sizes = image.features.square().sum(dim=-1)[image.prunable]
        torch.testing.assert_close(image.signals["size"][image.prunable], sizes, atol=0.0, rtol=1e-3)
        assert float(sizes.std()) > 0.05 * float(sizes.mean())


@pytest.mark.parametrize("name", VLM_NAMES)
def test_beams_samples_chunks_and_no_cache(name):
    model, inputs = model_of(name), vlm_inputs(name, ROWS)
    with IDPruner(0.3).attach(model):
        cached = model.generate(**inputs, **SCORED)
        assert torch.equal(cached.sequences, model.generate(**inputs, **GREEDY, use_cache=False))
        beams = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 4, "min_new_tokens": 4}, num_beams=3)
        samples = model.generate(**inputs, **{**GREEDY, "do_sample": True}, num_return_sequences=2)
        assert (len(beams), len(samples)) == (3, 6)
        one = model.generate(**inputs, **GREEDY, num_beams=1, num_return_sequences=1)
        assert torch.equal(one, cached.sequences)
        if name != "gemma3_vlm":  # there, a chunk that ends inside an image hides the rest of it, without a pruner too
            check_chunks(model, inputs, cached, 7)


@pytest.mark.parametrize("name", VLM_NAMES)
def test_forward_returns_a_column_for_every_token_and_leaves_nothing_behind(name):
    model, inputs = model_of(name), vlm_inputs(name, ROWS)
    first = model.generate(**inputs, **SCORED).logits[0]  # transformers installs hooks of its own on first use

    def state():
        return {
            module_name: (set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
            for module_name, module in model.named_modules()
        }

    before, pruner = state(), FastV(0.3, layer=1) if name in STAGED else DivPrune(0.3)
    with pruner.attach(model), torch.no_grad():
        pruned = model.generate(**inputs, **SCORED).logits[0]
        out = model(**inputs)
        assert out.logits.shape[:2] == inputs["input_ids"].shape
        torch.testing.assert_close(out.logits[:, -1], pruned, **CLOSE)
    with pytest.raises(RuntimeError, match="stop"), pruner.attach(model):
        raise RuntimeError("stop")
    assert state() == before
    assert torch.equal(model.generate(**inputs, **SCORED).logits[0], first)


def test_a_chunk_may_lose_all_of_its_tokens():
    model, inputs = model_of("llava"), vlm_inputs("llava", (("image",),))
    with UniformGrid(1).attach(model):
        whole = model.generate(**inputs, **SCORED)
        check_chunks(model, inputs, whole, 6)


def test_cls_attention_is_used_where_the_tower_has_one_and_norms_elsewhere():
    expected = {"llava": True, "llava_next": True} | {name: False for name in VLM_NAMES if not name.startswith("llava")}
    assert {name: has_cls(model_of(name)) for name in VLM_NAMES} == {**expected, "llava_pixtral": False}
    for name in ("llava_pixtral", "internvl", "gemma3_vlm", "idefics3"):
        model, inputs = model_of(name), vlm_inputs(name)
        with TopK(2).attach(model) as trace, torch.no_grad():
            model(**inputs)
        features = seen_by_language(model, inputs)["inputs_embeds"][visual_of(inputs["input_ids"])]
        torch.testing.assert_close(trace.kept[0].scores, features.norm(dim=-1), **CLOSE)
        with pytest.raises(UnsupportedModelError, match="CLS token"), TopK(2, importance="cls_attention").attach(model):
            pass


def test_weights_reach_the_deepstack_features():
    model, inputs = model_of("qwen3_vl"), vlm_inputs("qwen3_vl")
    with weigh_visual_tokens(model, "test", lambda tokens, mask: torch.zeros(mask.shape)), torch.no_grad():
        nothing = model(**inputs).logits
        blind = model(**{**inputs, "pixel_values": torch.flip(inputs["pixel_values"], [0])}).logits
    torch.testing.assert_close(nothing, blind)


def test_a_stage_inside_a_decoder_with_sliding_windows_is_refused():
    for pruner in (FastV(0.4), ToDRE(0.4)):
        with pytest.raises(UnsupportedModelError, match=r"Gemma3TextModel has sliding-window layers.*threshold=0"):
            with pruner.attach(model_of("gemma3_vlm")):
                pass


def test_an_unknown_class_names_the_nearest_and_the_page():
    class LlavaForConditionalGenerations(torch.nn.Module):
        pass

    with pytest.raises(UnsupportedModelError) as caught, DivPrune(0.4).attach(LlavaForConditionalGenerations()):
        pass
    message = str(caught.value)
    assert "the nearest that is: LlavaForConditionalGeneration;" in message
    assert "docs/add-a-family.md, Vision-language models" in message
    assert all(name in message for name in SUPPORTED)


def test_only_families_of_modules_are_added():
    with pytest.raises(TypeError, match="model must be a subclass"):
        add_vlm_family(model_of("llava"), VLMFamily())
    with pytest.raises(TypeError, match="family must be a VLMFamily"):
        add_vlm_family(torch.nn.Linear, "llava")
