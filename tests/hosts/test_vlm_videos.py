"""Clips through `generate`: frames as units, their budgets and positions, clips and images in one prompt (tiny, random models)."""

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
from tokenry.pruning import DivPrune, FastV, IDPruner, NoPruning, ToDRE, UniformGrid, ZOOPrune
from tokenry.testing import vlm_inputs
from tokenry.testing.zoo.vlm import VIDEO_NAMES

ROWS = (("video", "image"), ("image", "video", "video"), ())


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_keeping_everything_is_the_plain_model(name):
    model, inputs = model_of(name), vlm_inputs(name, ROWS)
    plain = model.generate(**inputs, **SCORED)
    for pruner in (NoPruning(), FastV(1.0)):
        with pruner.attach(model):
            kept = model.generate(**inputs, **SCORED)
        assert torch.equal(kept.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(kept.logits), torch.stack(plain.logits), **CLOSE)


@pytest.mark.parametrize("row", [("video",), ("image", "video"), ("video", "image", "video")], ids="-".join)
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_pruned_logits_are_those_of_the_kept_columns_run_by_hand(name, row):
    model, inputs = model_of(name), vlm_inputs(name, (row,))
    length = inputs["input_ids"].shape[1]
    with DivPrune(0.4).attach(model) as trace:
        out = model.generate(**inputs, **SCORED)
    keep = keep_of(inputs["input_ids"][0], trace)
    expected = logits_by_hand(name, model, inputs, keep, out.sequences[:, length:])
    torch.testing.assert_close(torch.stack(out.logits, dim=1), expected, **CLOSE)
    everything = logits_by_hand(name, model, inputs, keep | True, out.sequences[:, length:])
    assert float((everything - expected).abs().max()) > 100 * CLOSE["atol"]


@pytest.mark.parametrize(
    "pruner", [IDPruner(0.4), ToDRE(0.4, threshold=2.0), ZOOPrune(0.5, directions=4), FastV(0.4)], ids=repr
)
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_a_row_of_a_padded_batch_is_the_row_alone(name, pruner):
    check_rows_alone(name, pruner, ROWS)


FRAMES = {"onevision": [4, 4, 4], "qwen2_vl": [8] * 3, "qwen2_5_vl": [8] * 3, "qwen3_vl": [8] * 3, "qwen3_vl_moe": [8] * 3}


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_every_frame_keeps_what_was_planned(name):
    model, inputs, sizes = model_of(name), vlm_inputs(name, (("video",),)), FRAMES[name]
    newline = int(name == "onevision")  # one separator behind the last frame, kept on top
    for pruner in (DivPrune(0.5), ToDRE(0.5, threshold=0.0), UniformGrid(2), ZOOPrune(0.3, directions=4)):
        with pruner.attach(model) as trace:
            model.generate(**inputs, **GREEDY)
        assert [entry.total for entry in trace.kept] == [*sizes[:-1], sizes[-1] + newline]
        plan = [pruner.plan(n) for n in sizes]
        assert [len(entry.indices) for entry in trace.kept] == [*plan[:-1], plan[-1] + newline]
        assert trace.kept[0].grid == {"onevision": (2, 2)}.get(name, (2, 4))
        assert trace.kept[-1].grid == (None if newline else trace.kept[0].grid)


@pytest.mark.parametrize("pruner", [DivPrune(0.5), IDPruner(0.5), ZOOPrune(0.5, directions=4)], ids=lambda p: type(p).__name__)
def test_a_budget_may_be_spent_over_the_frame_or_over_the_clip(pruner):
    model, inputs = model_of("qwen2_5_vl"), vlm_inputs("qwen2_5_vl", (("video", "image", "video"),))
    totals = {}
    for video_budget in ("frame", "clip"):
        with pruner.attach(model, video_budget=video_budget) as trace:
            model.generate(**inputs, **GREEDY)
        totals[video_budget] = [len(entry.indices) for entry in trace.kept]
    # A clip of three frames of 8, an image of 8, and a clip of three frames of 8.
    assert totals["frame"][:3] + totals["frame"][4:] == [4] * 6
    first, image, second = totals["clip"][:3], totals["clip"][3], totals["clip"][4:]
    assert (sum(first), image, sum(second)) == (12, 4, 12)
    assert first != [4, 4, 4] or second != [4, 4, 4]
    with pytest.raises(ValueError, match="video_budget"), pruner.attach(model, video_budget="shot"):
        pass


@pytest.mark.parametrize("name", [name for name in VIDEO_NAMES if name.startswith("qwen")])
def test_positions_of_kept_tokens_are_those_of_the_plain_run_at_their_columns(name):
    model, inputs = model_of(name), vlm_inputs(name, (("video", "image"),))
    plain = seen_by_language(model, inputs)["position_ids"]
    with DivPrune(0.4).attach(model) as trace:
        pruned = seen_by_language(model, inputs)["position_ids"]
    keep = keep_of(inputs["input_ids"][0], trace)
    assert torch.equal(pruned[-3:], plain[-3:, :, keep])
    times = pruned[-3, 0, visual_of(inputs["input_ids"][0])[keep]]
    assert len(times.unique()) == 4  # three frames and an image, each at its own time


def test_onevision_pools_scores_as_it_pools_features():
    """Frames are shrunk behind the projector: a score per patch is shrunk with them."""
    model, inputs = model_of("onevision"), vlm_inputs("onevision", (("video",),))
    pruner = ZOOPrune(0.5, directions=4)
    with pruner.attach(model) as trace, torch.no_grad():
        model(**inputs)
    inner = model.model
    with torch.no_grad():
        tower = inner.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states[-1]
        scores = pruner.sensitivity(inner.multi_modal_projector, tower)
        pooled = torch.nn.functional.interpolate(scores.view(3, 1, 4, 4), size=(2, 2), mode="bilinear").flatten(1)
    for frame, entry in enumerate(trace.kept):
        torch.testing.assert_close(entry.scores[:4], pooled[frame], atol=1e-5, rtol=1e-3)


def test_clips_encoded_earlier_are_pruned_too():
    model, inputs = model_of("onevision"), vlm_inputs("onevision", (("video",),))
    with torch.no_grad():
        encoded = model.get_video_features(inputs["pixel_values_videos"])
    rest = {k: v for k, v in inputs.items() if k != "pixel_values_videos"}
    with DivPrune(0.4).attach(model) as trace, torch.no_grad():
        given = model(**rest, mm_encoder_outputs={"video": encoded}).logits
        pixels = model(**inputs).logits
    torch.testing.assert_close(given, pixels)
    assert [e.indices.tolist() for e in trace.kept[:3]] == [e.indices.tolist() for e in trace.kept[3:]]


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_a_prompt_run_in_chunks_is_the_prompt_run_at_once(name):
    model, inputs = model_of(name), vlm_inputs(name, (("video", "image"),))
    with DivPrune(0.5).attach(model):
        whole = model.generate(**inputs, **SCORED)
        check_chunks(model, inputs, whole, 7)
