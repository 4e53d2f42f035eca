"""Pruning before and inside the decoder of the real LLaVA-1.5, LLaVA-OneVision and Qwen2.5-VL classes (tiny, random)."""

import copy

import pytest
import torch

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.release import as_argument, cache_of
from tokenry.hosts.vlm import KeptColumns
from tokenry.pruning import DivPrune, FastV, IDPruner, NoPruning, RandomPruner, ToDRE, TopK, UniformGrid, ZOOPrune
from tokenry.testing import llava_inputs, onevision_inputs, qwen_inputs, tiny_llava, tiny_onevision, tiny_qwen
from tokenry.testing.zoo import IMAGE_TOKEN

FAMILIES = {
    "llava": (tiny_llava, lambda: llava_inputs((1, 2, 0), words=(4, 3, 6))),
    "onevision": (tiny_onevision, lambda: onevision_inputs(((64, 64), (20, 60)))),
    "qwen": (tiny_qwen, lambda: qwen_inputs((((8, 12),), ((4, 8), (8, 8)), ()))),
}
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def rows_of(family, inputs):
    """Every row of a batch as its own unpadded batch of one."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    rows, image, patch = [], 0, 0
    for row in range(len(ids)):
        one = {"input_ids": ids[row, mask[row]][None], "attention_mask": torch.ones(1, int(mask[row].sum()), dtype=torch.long)}
        if family == "qwen":
            one["mm_token_type_ids"] = inputs["mm_token_type_ids"][row, mask[row]][None]
            left = int((one["input_ids"] == IMAGE_TOKEN).sum())
            grids = []
            while left:
                grids.append(inputs["image_grid_thw"][image])
                left -= int(grids[-1].prod()) // 4
                image += 1
            if grids:
                size = int(sum(g.prod() for g in grids))
                one["image_grid_thw"], one["pixel_values"] = torch.stack(grids), inputs["pixel_values"][patch : patch + size]
                patch += size
        else:
            per = (one["input_ids"] == IMAGE_TOKEN).sum().item()
            count = per // 36 if family == "llava" else 1
            if count:
                one["pixel_values"] = inputs["pixel_values"][image : image + count]
                if family == "onevision":
                    one["image_sizes"] = inputs["image_sizes"][image : image + count]
                image += count
        rows.append(one)
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_token_identical(family, attention):
    build, make = FAMILIES[family]
    model, inputs = build(attention=attention), make()
    plain = model.generate(**inputs, **GREEDY)
    for pruner in (NoPruning(), IDPruner(1.0), ZOOPrune(1.0), ToDRE(1.0, threshold=0.0), FastV(1.0)):
        with pruner.attach(model):
            assert torch.equal(model.generate(**inputs, **GREEDY), plain)
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)


@pytest.mark.parametrize("pruner", [IDPruner(0.25), ToDRE(0.25, threshold=2.0), FastV(0.3), ZOOPrune(0.5)], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_its_rows(family, pruner):
    build, make = FAMILIES[family]
    model, inputs = build(), make()
    with pruner.attach(model) as trace:
        together = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    with pruner.attach(model) as alone_trace:
        alone = [
            model.generate(**row, **GREEDY, output_logits=True, return_dict_in_generate=True) for row in rows_of(family, inputs)
        ]
    for step, logits in enumerate(together.logits):
        expected = torch.cat([a.logits[step] for a in alone])
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    images = [e for e in trace.kept if e.layer is None]
    for entry, other in zip(images, [e for e in alone_trace.kept if e.layer is None], strict=True):
        assert torch.equal(entry.indices, other.indices)


@pytest.mark.parametrize("pruner", [IDPruner(0.25), ToDRE(0.25, threshold=2.0), FastV(0.3)], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_eager_equals_sdpa(family, pruner):
    build, make = FAMILIES[family]
    inputs, logits = make(), []
    for attention in ("sdpa", "eager"):
        model = build(attention=attention)
        with pruner.attach(model):
            out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        logits.append(torch.stack(out.logits))
    torch.testing.assert_close(*logits, atol=2e-5, rtol=1e-4)


def merged_embeddings(model, inputs):
    """What the language model is given for a prompt: embeddings with the image features in place."""
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen


@pytest.mark.parametrize("positions", ["reindex", "gather"])
def test_llava_equals_generate_from_shortened_embeddings(positions):
    model, inputs = tiny_llava(), llava_inputs((1,))
    with IDPruner(0.25).attach(model, positions=positions) as trace:
        out = model.generate(**inputs, **GREEDY)
    seen = merged_embeddings(model, inputs)
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    visual = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().squeeze(1)
    keep[visual] = False
    keep[visual[trace.kept[0].indices]] = True
    place = keep.nonzero().T if positions == "gather" else torch.arange(int(keep.sum()))[None]
    expected = model.generate(
        inputs_embeds=seen["inputs_embeds"][:, keep],
        attention_mask=inputs["attention_mask"][:, keep],
        position_ids=place,
        **GREEDY,
    )
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)


def test_qwen_keeps_three_dimensional_positions():
    model, inputs = tiny_qwen(), qwen_inputs((((8, 12),),))
    with IDPruner(0.25).attach(model) as trace:
        out = model.generate(**inputs, **GREEDY)
    seen = merged_embeddings(model, inputs)
    extra = {k: inputs[k] for k in ("mm_token_type_ids", "image_grid_thw", "attention_mask")}
    planes, _ = model.model.get_rope_index(inputs["input_ids"], **extra)
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    visual = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().squeeze(1)
    keep[visual] = False
    keep[visual[trace.kept[0].indices]] = True
    text = torch.arange(int(keep.sum()))[None, None]
    expected = model.generate(
        inputs_embeds=seen["inputs_embeds"][:, keep],
        attention_mask=inputs["attention_mask"][:, keep],
        position_ids=torch.cat([text, planes[:, :, keep]]),
        **GREEDY,
    )
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)


def test_dropping_in_the_decoder_equals_hiding_the_slots_from_later_blocks():
    """Blocks after the decision never see visual slots: the same logits as a mask that hides them from those blocks."""
    model, inputs = tiny_llava(layers=8, attention="eager"), llava_inputs((1,))
    visual = inputs["input_ids"][0] == IMAGE_TOKEN
    with ToDRE(1.0, threshold=2.0).attach(model) as trace, torch.no_grad():
        pruned = model(**inputs)
    assert trace.facts["relevance"][0]["vision_to_text"] == 0.0
    assert [e.layer for e in trace.kept] == [None, 6]
    lengths = [layer.keys.shape[-2] for layer in cache_of(pruned).layers]
    full = len(visual)
    assert lengths == [full] * 7 + [full - int(visual.sum())]

    def hide(module, args, kwargs):
        mask = torch.full((full, full), torch.finfo(torch.float32).min).triu(1)
        mask[:, visual] = torch.finfo(torch.float32).min
        mask[visual, visual] = 0.0
        return args, {**kwargs, "attention_mask": mask[None, None]}

    handle = model.model.language_model.layers[7].register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        hidden = model(**inputs)
    handle.remove()
    torch.testing.assert_close(pruned.logits[:, ~visual], hidden.logits[:, ~visual], atol=1e-5, rtol=1e-4)


def test_forward_keeps_its_shape_and_its_loss_is_that_of_the_short_sequence():
    model, inputs = tiny_llava(), llava_inputs((1,))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)
    with IDPruner(0.25).attach(model) as trace, torch.no_grad():
        out = model(**inputs, labels=labels)
    assert out.logits.shape[:2] == inputs["input_ids"].shape
    seen = merged_embeddings(model, inputs)
    visual = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().squeeze(1)
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    keep[visual] = False
    keep[visual[trace.kept[0].indices]] = True
    with torch.no_grad():
        short = model(inputs_embeds=seen["inputs_embeds"][:, keep], labels=labels[:, keep])
    torch.testing.assert_close(out.loss, short.loss)


def test_decoding_by_hand_continues_at_the_right_place():
    model, inputs = tiny_llava(), llava_inputs((1, 0), words=(4, 6))
    for positions in ("reindex", "gather"):
        with IDPruner(0.25).attach(model, positions=positions), torch.no_grad():
            expected = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
            step = model(**inputs)
            new, mask = [], inputs["attention_mask"]
            for _ in range(3):
                new.append(step.logits[:, -1])
                mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
                step = model(input_ids=new[-1].argmax(-1, keepdim=True), attention_mask=mask, **as_argument(cache_of(step)))
        if positions == "reindex":
            torch.testing.assert_close(torch.stack(new), torch.stack(expected.logits[:3]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_samples_and_no_cache(family):
    build, make = FAMILIES[family]
    model, inputs = build(), make()
    with IDPruner(0.25).attach(model):
        cached = model.generate(**inputs, **GREEDY)
        assert torch.equal(cached, model.generate(**inputs, **GREEDY, use_cache=False))
        beams = model.generate(**inputs, max_new_tokens=4, num_beams=3, do_sample=False)
        assert beams.shape[0] == len(inputs["input_ids"])
        samples = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
        assert samples.shape[0] == 2 * len(beams)


def test_sensitivity_reaches_the_right_token_of_qwen():
    """The projector runs in window order: scores must come back in raster order."""
    model, inputs = tiny_qwen(), qwen_inputs((((8, 12),),))
    with ZOOPrune(0.25, directions=4).attach(model) as trace, torch.no_grad():
        model(**inputs)
    seen = {}
    visual = model.model.visual
    handle = visual.register_forward_hook(lambda m, a, o: seen.update(out=o))
    with torch.no_grad():
        seen["features"] = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
    handle.remove()
    windowed = seen["out"].last_hidden_state
    from transformers.vision_utils import get_vision_window_index

    window, _ = get_vision_window_index(inputs["image_grid_thw"], 2, 16, 4)
    groups = windowed.reshape(1, -1, 4 * windowed.shape[-1])[:, torch.argsort(window)]
    torch.testing.assert_close(visual.merger(groups.reshape(-1, windowed.shape[-1])), seen["features"], atol=1e-5, rtol=1e-4)
    scores = ZOOPrune(0.25, directions=4).sensitivity(
        lambda t: visual.merger(t.reshape(-1, windowed.shape[-1])).view(*t.shape[:-1], -1), groups.detach()
    )
    torch.testing.assert_close(trace.kept[0].scores, scores[0], atol=1e-5, rtol=1e-3)
    assert trace.kept[0].grid == (4, 6)


def test_onevision_keeps_separators_and_spends_the_budget_per_crop():
    model, inputs = tiny_onevision(), onevision_inputs(((64, 64),))
    with ZOOPrune(0.25, directions=4).attach(model) as trace:
        model.generate(**inputs, **GREEDY)
    (entry,) = trace.kept
    newline = torch.arange(16 + 8, 16 + 72 + 1, 9)  # thumbnail of 16, then 8 rows of 8 and a separator
    assert set(newline.tolist()) <= set(entry.indices.tolist())
    kept = [i for i in entry.indices.tolist() if i not in set(newline.tolist())]
    crops = [0 if i < 16 else 1 + ((i - 16) // 9 // 4) * 2 + ((i - 16) % 9) // 4 for i in kept]
    assert [crops.count(c) for c in range(5)] == [4] * 5  # int(80 * 0.25) // 5


def test_cls_attention_is_read_from_the_tower_and_needs_one():
    model, inputs = tiny_llava(attention="eager"), llava_inputs((1,))
    with TopK(5, importance="cls_attention").attach(model) as trace, torch.no_grad():
        model(**inputs)
    with torch.no_grad():
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[-1]
    row = maps[:, :, 0, 1:].mean(dim=1)
    torch.testing.assert_close(trace.kept[0].scores, row[0], atol=1e-6, rtol=1e-4)
    assert torch.equal(trace.kept[0].indices, row[0].topk(5).indices.sort().values)
    with pytest.raises(UnsupportedModelError, match="CLS"), TopK(5, importance="cls_attention").attach(tiny_qwen()):
        pass


def test_nothing_is_left_behind_also_after_an_error():
    for build, make in FAMILIES.values():
        model, inputs = build(), make()
        model.generate(**inputs, **GREEDY)  # transformers installs hooks of its own on first use
        before = {n: (dict(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
        keys = {n: set(v[0]) for n, v in before.items()}
        with pytest.raises(RuntimeError, match="stop"), ToDRE(0.25).attach(model):
            model.generate(**inputs, **GREEDY)
            raise RuntimeError("stop")
        for name, module in model.named_modules():
            assert set(vars(module)) == keys[name], name
            assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == before[name][1:], name
        copy.deepcopy(model)


def test_two_pruners_at_once_are_refused():
    model = tiny_llava()
    with IDPruner(0.25).attach(model):
        with pytest.raises(RuntimeError, match="IDPruner is already attached"), ToDRE(0.25).attach(model):
            pass
    with ToDRE(0.25).attach(model):
        pass


def test_unsupported_models_are_named():
    with pytest.raises(
        UnsupportedModelError, match=r"Linear is not supported .*add-a-family.md.*; supported: LlavaForConditional"
    ):
        with IDPruner(0.25).attach(torch.nn.Linear(2, 2)):
            pass


def test_what_cannot_be_pruned_is_refused():
    model, inputs = tiny_llava(), llava_inputs((1,))
    with FastV(0.25).attach(model), torch.no_grad():
        out = model(**inputs)
        with pytest.raises(ValueError, match="new images cannot join"):
            model(**inputs, **as_argument(cache_of(out)))
        with pytest.raises(ValueError, match="use_cache must be True"):
            model.generate(**inputs, **GREEDY, use_cache=False)
    with UniformGrid(0.25).attach(model), torch.no_grad():
        with pytest.raises(ValueError, match="inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 4, 32))
        with pytest.raises(ValueError, match="static cache"):
            model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
        with pytest.raises(ValueError, match="attention_mask must be the 2-D"):
            model(**{**inputs, "attention_mask": torch.zeros(1, 1, 4, 4)})
    with pytest.raises(ValueError, match="positions"), IDPruner(0.25).attach(model, positions="keep"):
        pass


def test_features_encoded_earlier_are_pruned_too():
    for build, make in FAMILIES.values():
        model, inputs = build(), make()
        args = {k: inputs[k] for k in ("image_sizes", "image_grid_thw") if k in inputs}
        with torch.no_grad():
            encoded = model.get_image_features(inputs["pixel_values"], **args)
        rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
        with DivPrune(0.25).attach(model) as trace, torch.no_grad():
            given = model(**rest, mm_encoder_outputs={"image": encoded}).logits
            pixels = model(**inputs).logits
        torch.testing.assert_close(given, pixels)
        half = len(trace.kept) // 2
        assert [e.indices.tolist() for e in trace.kept[:half]] == [e.indices.tolist() for e in trace.kept[half:]]


def test_text_only_prompts_pass_untouched():
    model, inputs = tiny_llava(), llava_inputs((0, 0), words=(3, 6))
    plain = model.generate(**inputs, **GREEDY)
    with RandomPruner(0.25).attach(model) as trace:
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)
    assert trace.kept == []


def test_layout_round_trip():
    real = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    keep = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1]]).bool()
    layout = KeptColumns.of(real, keep)
    assert layout.index.tolist() == [[0, 1, 4], [0, 2, 4]]
    assert layout.mask.tolist() == [[False, True, True], [True, True, True]]
    assert layout.dropped.tolist() == [2, 2]
    x = torch.arange(10.0).view(2, 5, 1)
    assert layout.spread(layout.take(x)).squeeze(-1)[1].tolist() == [5, 5, 7, 7, 9]
    assert layout.counted().tolist() == [[0, 0, 1], [0, 1, 2]]
