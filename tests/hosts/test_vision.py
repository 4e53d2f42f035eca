"""Vision hosts: every family with tiny random weights."""

from __future__ import annotations

import gc

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry import UnsupportedModelError
from tokenry.hosts.attach import attached
from tokenry.hosts.vision import (
    BlockSignals,
    Selected,
    capture_cls_row,
    cls_attention,
    describe,
    drop_after,
    final_tokens,
    global_and_patches,
)
from tokenry.testing import tiny

PREFIX = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 5, "clip": 1, "siglip": 0}
FAMILIES = tuple(PREFIX)
WITH_CLS = [name for name in FAMILIES if name != "siglip"]


def build(family: str, attention: str = "sdpa") -> torch.nn.Module:
    return tiny(family, num_hidden_layers=3, image_size=16, attn_implementation=attention)


def pixels(batch: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def first(k: int):
    """A selector that keeps the first k patches present."""
    return lambda s: Selected(torch.arange(k).expand(s.tokens.shape[0], -1), s.tokens[..., 0])


def hook_count(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_describe(family):
    host = describe(build(family))
    assert (host.family, host.prefix, host.depth, host.grid()) == (family, PREFIX[family], 3, (4, 4))
    assert host.has_cls is (family != "siglip")
    assert (host.width, host.heads, host.patch) == (32, 4, (4, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_final_tokens_are_the_models_own(family):
    model = build(family)
    prefix, patches = final_tokens(model, pixels())
    output = model(pixels())
    tokens = torch.cat([prefix, patches], dim=1)
    assert prefix.shape[1] == PREFIX[family]
    assert patches.shape == (2, 16, 32)
    if family == "clip":
        assert torch.equal(tokens, model.post_layernorm(output.last_hidden_state))
        assert torch.allclose(tokens[:, 0], output.pooler_output, atol=1e-6)
    else:
        assert torch.equal(tokens, output.last_hidden_state)


@pytest.mark.parametrize("family", WITH_CLS)
@pytest.mark.parametrize("layer", [0, -1])
def test_cls_row_equals_the_eager_map(family, layer):
    model = build(family)
    row = cls_attention(model, pixels(), layer=layer)
    model.set_attn_implementation("eager")
    maps = model(pixels(), output_attentions=True).attentions
    assert torch.allclose(row, maps[layer][:, :, 0, PREFIX[family] :], atol=1e-6)


def test_capture_holds_the_content_before_the_output_projection():
    model = build("vit", "eager")
    with attached(model, owner="test") as hooks:
        row = capture_cls_row(hooks, model, layer=1)
        with pytest.raises(RuntimeError, match="nothing has been captured"):
            _ = row.attention
        output = model(pixels(), output_attentions=True, output_hidden_states=True)
    block = model.layers[1]
    values = block.attention.v_proj(block.layernorm_before(output.hidden_states[1])).view(2, 17, 4, 8).transpose(1, 2)
    expected = output.attentions[1] @ values
    assert torch.allclose(row.content, expected[:, :, 1:], atol=1e-5)


def test_capture_works_for_the_tower_inside_llava():
    model = tiny("llava")
    tower = model.model.vision_tower
    with attached(tower, owner="test") as hooks:
        row = capture_cls_row(hooks, tower)
        model.get_image_features(pixel_values=pixels(size=48))
    assert torch.allclose(row.attention, cls_attention(tower, pixels(size=48)))
    with pytest.raises(UnsupportedModelError, match="LlavaForConditionalGeneration is not supported"):
        describe(model)


def test_heads_around_a_tower_are_resolved_and_composites_refused():
    classifier = tf.ViTForImageClassification(tiny("vit").config)
    assert describe(classifier).model is classifier.vit
    vision = tiny("clip").config
    projection = tf.CLIPVisionModelWithProjection(vision)
    assert describe(projection).model is projection.vision_model
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision.to_dict()))
    with pytest.raises(UnsupportedModelError, match=r"CLIPModel is not supported .*model\.vision_model.*ViTModel"):
        describe(clip)
    assert describe(clip.vision_model).family == "clip"
    for other in (torch.nn.Linear(2, 2), tiny("bert"), "vit"):
        with pytest.raises(UnsupportedModelError, match="supported: ViTModel"):
            describe(other)


def test_siglip_has_no_cls_but_a_pooled_vector_on_request():
    model = build("siglip")
    for call in (cls_attention, global_and_patches):
        with pytest.raises(UnsupportedModelError, match="no CLS token"):
            call(model, pixels())
    tokens = global_and_patches(model, pixels(), anchor="pooled")
    assert torch.equal(tokens[:, 0], model(pixels()).pooler_output)
    with pytest.raises(UnsupportedModelError, match="attention-pooling head"):
        global_and_patches(build("vit"), pixels(), anchor="pooled")


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_keeps_prefix_and_composes_indices(family):
    model = build(family)
    reference = model(pixels()).last_hidden_state
    before = hook_count(model)
    second = lambda s: torch.tensor([[7, 1, 4]]).expand(2, -1)  # noqa: E731
    with drop_after(model, {0: lambda s: torch.tensor([[15, 2, 3, 5, 8, 9, 11, 12]]).expand(2, -1), 1: second}) as drops:
        output = model(pixels()).last_hidden_state
    assert output.shape[1] == PREFIX[family] + 3
    assert [d.block for d in drops] == [0, 1]
    assert drops[0].index[0].tolist() == [2, 3, 5, 8, 9, 11, 12, 15]
    assert drops[1].index[0].tolist() == [3, 9, 15]
    assert drops[1].total == 16
    assert drops[1].grids == ((4, 4), (4, 4))
    assert hook_count(model) == before
    assert torch.equal(model(pixels()).last_hidden_state, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_bit_identical(family):
    model = build(family)
    reference = model(pixels()).last_hidden_state
    with drop_after(model, {0: first(16), 2: first(16)}) as drops:
        assert torch.equal(model(pixels()).last_hidden_state, reference)
    assert [d.index.shape[1] for d in drops] == [16, 16]


def test_dropping_equals_running_the_rest_by_hand():
    model = build("vit")
    keep = torch.tensor([[1, 4, 6], [0, 2, 15]])
    with drop_after(model, {0: lambda s: keep}):
        output = model(pixels()).last_hidden_state
    hidden = model.layers[0](model.embeddings(pixels()))
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), keep + 1], dim=1)
    hidden = hidden.gather(1, rows[..., None].expand(-1, -1, 32))
    for block in model.layers[1:]:
        hidden = block(hidden)
    assert torch.allclose(output, model.layernorm(hidden), atol=1e-6)


def test_scores_are_recorded_in_the_numbering_of_the_image():
    model = build("vit")
    with drop_after(model, {0: lambda s: torch.tensor([[5, 9]]), 1: first(1)}) as drops:
        model(pixels(1))
    recorded = drops[1].scores[0]
    assert recorded.isnan().sum() == 14
    assert not recorded[[5, 9]].isnan().any()


def test_signals_of_a_block():
    model = build("deit")
    seen: list[BlockSignals] = []

    def look(signals):
        seen.append(signals)
        _ = signals.cls_attention, signals.content, signals.keys
        return Selected(torch.arange(8).expand(2, -1))

    with drop_after(model, {1: look}):
        model(pixels())
    assert seen[0].cls_attention.shape == (2, 4, 16)
    assert seen[0].content.shape == seen[0].keys.shape == (2, 4, 16, 8)
    assert torch.allclose(seen[0].cls_attention, cls_attention(model, pixels(), layer=1), atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["vit", "deit"])
def test_attention_mask_is_followed_by_the_dropping(family, attention):
    model = build(family, attention)
    prefix = PREFIX[family]
    mask = torch.ones(2, prefix + 16, dtype=torch.long)
    mask[:, prefix + 12 :] = 0
    other = pixels()
    other[:, :, 12:] += 5.0
    seen = []

    def select(signals):
        seen.append((signals.valid, signals.cls_attention))
        return torch.tensor([[0, 3, 11, 13]]).expand(2, -1)

    with torch.no_grad(), drop_after(model, {0: select}):
        a = model(pixels(), attention_mask=mask).last_hidden_state
        b = model(other, attention_mask=mask).last_hidden_state
    assert seen[0][0].tolist() == [[True] * 12 + [False] * 4] * 2
    assert float(seen[0][1][..., 12:].max()) == 0.0
    # What hides behind the mask reaches neither the prefix nor the real patches.
    assert torch.allclose(a[:, : prefix + 3], b[:, : prefix + 3], atol=1e-5)
    assert torch.isfinite(a).all()


def test_several_sizes():
    model = build("vit")
    with drop_after(model, {0: first(5)}) as drops:
        model(pixels(1, 24), interpolate_pos_encoding=True)
    assert drops[0].grids == ((6, 6),)
    with pytest.raises(ValueError, match="multiple of the patch size"):
        final_tokens(model, pixels(1, 18))
    assert final_tokens(model, pixels(1, 24), resize=True).patches.shape[1] == 36
    assert final_tokens(build("dinov2"), pixels(1, 24)).patches.shape[1] == 36


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", WITH_CLS)
def test_half_precision(family, dtype):
    model = build(family).to(dtype)
    row = cls_attention(model, pixels().to(dtype))
    assert row.dtype == torch.float32
    assert torch.isfinite(row).all()
    with drop_after(model, {0: first(4)}):
        assert model(pixels().to(dtype)).last_hidden_state.dtype == dtype


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), k=st.integers(1, 16), seed=st.integers(0, 99))
def test_batch_equals_loop(batch, k, seed):
    model = build("vit")
    images = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    def select(signals):
        return signals.cls_attention.mean(1).topk(k, dim=1).indices

    with torch.no_grad(), drop_after(model, {1: select}):
        together = model(images).last_hidden_state
        alone = torch.cat([model(image[None]).last_hidden_state for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_nothing_is_left_after_an_exception():
    model = build("vit")
    before = hook_count(model)

    def fail(signals):
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"), drop_after(model, {0: fail}):
        model(pixels())
    assert hook_count(model) == before
    with drop_after(model, {0: first(2)}):
        with pytest.raises(RuntimeError, match="drop_after is already attached"), drop_after(model, {0: first(2)}):
            pass
    gc.collect()


def test_bad_requests():
    model = build("vit")
    with pytest.raises(ValueError, match=r"layer must be in \[-3, 2\]"):
        cls_attention(model, pixels(), layer=3)
    with pytest.raises(ValueError, match="layer"), drop_after(model, {3: first(2)}):
        pass
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        final_tokens(model, pixels()[0])
    for block in model.layers:
        block.gradient_checkpointing = True
    model.train()
    with pytest.raises(ValueError, match="checkpointing"), drop_after(model, {0: first(2)}):
        model(pixels())
