"""The language model of a tiny vision-language model, run by hand on the columns that a pruner kept."""

from functools import cache

import pytest
import torch

from tokenry.hosts.release import CHUNKS_KEEP_PICTURES
from tokenry.hosts.vlm import language_of
from tokenry.testing import tiny_vlm, vlm_inputs
from tokenry.testing.zoo import IMAGE_TOKEN, VIDEO_TOKEN

# A random model may write a placeholder, which would count as an image by hand.
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN, VIDEO_TOKEN]}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SCORED = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}


@cache
def model_of(name, attention="sdpa"):
    return tiny_vlm(name, attention=attention)


def check_chunks(model, inputs, whole, size):
    """A prompt in chunks has the logits of `whole`, or is refused where transformers itself loses its pictures."""
    if not CHUNKS_KEEP_PICTURES:
        with pytest.raises(ValueError, match="chunks without the pictures"):
            model.generate(**inputs, **SCORED, prefill_chunk_size=size)
        return
    chunks = model.generate(**inputs, **SCORED, prefill_chunk_size=size)
    torch.testing.assert_close(torch.stack(chunks.logits), torch.stack(whole.logits), **CLOSE)


def check_rows_alone(name, pruner, rows):
    """A row of a left-padded batch keeps the tokens, and has the logits, of the row alone."""
    model = model_of(name)
    with pruner.attach(model) as trace:
        together = model.generate(**vlm_inputs(name, rows), **SCORED)
    with pruner.attach(model) as alone_trace:
        alone = [model.generate(**vlm_inputs(name, (row,), first_row=r), **SCORED) for r, row in enumerate(rows)]
    for step, logits in enumerate(together.logits):
        torch.testing.assert_close(logits, torch.cat([one.logits[step] for one in alone]), **CLOSE)
    before, before_alone = ([(e.indices.tolist(), e.grid) for e in t.kept if e.layer is None] for t in (trace, alone_trace))
    assert before == before_alone


def seen_by_language(model, inputs):
    """Arguments of the language model in a plain forward."""
    seen = {}
    handle = language_of(model).register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen


def visual_of(ids):
    """Columns of images and clips."""
    return (ids == IMAGE_TOKEN) | (ids == VIDEO_TOKEN)


def keep_of(ids, trace):
    """[S] bool of a single prompt, from the entries of the trace in order."""
    keep, start = ~visual_of(ids), 0
    columns = visual_of(ids).nonzero().squeeze(1)
    for entry in trace.kept:
        keep[columns[start + entry.indices]] = True
        start += entry.total
    assert start == len(columns)
    return keep


def logits_by_hand(name, model, inputs, keep, new, positions="reindex"):
    """Logits [1,n,V] that predict the `n` tokens `new` [1,n] after the kept columns `keep` [S] of one prompt."""
    language, ids = language_of(model), inputs["input_ids"]
    with torch.no_grad():
        embeds = seen_by_language(model, inputs)["inputs_embeds"][:, keep]
        embeds = torch.cat([embeds, model.get_input_embeddings()(new)], dim=1)
        count, full = embeds.shape[1], ids.shape[1]
        kept = keep.nonzero().squeeze(1)
        original = torch.cat([kept, torch.arange(full, full + new.shape[1])])
        given = {
            "position_ids": (torch.arange(count) if positions == "reindex" else original)[None],
            "attention_mask": torch.ones(1, count, dtype=torch.long),  # without one, gaps would be read as packed sequences
        }
        if name.startswith("qwen"):
            given = {"position_ids": planes_by_hand(model, inputs, keep, new.shape[1])}
        if name.startswith("qwen3"):
            given |= deepstack_by_hand(model, inputs, keep, new.shape[1])
        if name == "gemma3_vlm":
            given["attention_mask"] = gemma_masks(torch.cat([ids[0, keep], new[0]]), model.config.text_config)
        hidden = language(inputs_embeds=embeds, use_cache=False, **given).last_hidden_state
        return model.lm_head(hidden[:, -new.shape[1] - 1 : -1])


def planes_by_hand(model, inputs, keep, new):
    """Text slots 0, 1, ... and the 3-D positions of the whole prompt at the kept columns, then of the new tokens."""
    names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask", "second_per_grid_ts")
    planes, delta = model.model.get_rope_index(inputs["input_ids"], **{k: inputs[k] for k in names if k in inputs})
    after = torch.arange(new) + inputs["input_ids"].shape[1] + delta
    planes = torch.cat([planes[:, :, keep], after[None].expand(3, -1, -1)], dim=-1)
    return torch.cat([torch.arange(planes.shape[-1])[None, None], planes])


def deepstack_by_hand(model, inputs, keep, new):
    """Rows of the features of earlier vision blocks for the visual tokens that are left, in the order of the prompt."""
    ids, inner = inputs["input_ids"][0], model.model
    rows = None
    for kind, token, pixels in (("image", IMAGE_TOKEN, "pixel_values"), ("video", VIDEO_TOKEN, "pixel_values_videos")):
        if pixels not in inputs:
            continue
        features = getattr(inner, f"get_{kind}_features")(inputs[pixels], inputs[f"{kind}_grid_thw"]).deepstack_features
        rows = rows or [torch.zeros(len(ids), feature[0].shape[1]) for feature in features]
        for row, feature in zip(rows, features, strict=True):
            row[ids == token] = torch.cat(list(feature))
    left = visual_of(ids) & keep
    mask = torch.cat([visual_of(ids)[keep], torch.zeros(new, dtype=torch.bool)])
    return {"visual_pos_masks": mask[None], "deepstack_visual_embeds": [row[left] for row in rows]}


def gemma_masks(ids, config):
    """Causal masks in which the tokens of one image see each other; sliding layers reach one window of slots back."""
    image = ids == IMAGE_TOKEN
    block = torch.where(image, (image & ~torch.cat([image.new_zeros(1), image[:-1]])).cumsum(0), 0)
    i, j = torch.meshgrid(torch.arange(len(ids)), torch.arange(len(ids)), indexing="ij")
    visible = (j <= i) | ((block[i] == block[j]) & image[i] & image[j])
    masks = {"full_attention": visible, "sliding_attention": visible & (j > i - config.sliding_window)}
    if config._attn_implementation == "eager":
        masks = {kind: torch.where(mask, 0.0, torch.finfo(torch.float32).min) for kind, mask in masks.items()}
    return {kind: mask[None, None] for kind, mask in masks.items()}
