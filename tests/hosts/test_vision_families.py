"""Every family of vision transformers against runs written by hand: places, masks and biases stay with the kept patches."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

from tokenry import UnsupportedModelError
from tokenry.core.seeding import seeded
from tokenry.hosts.vision import (
    Merged,
    ViTFamily,
    add_family,
    cls_attention,
    describe,
    drop_after,
    final_tokens,
    global_and_patches,
    merge_after,
    towers,
)
from tokenry.pruning.eet import EET, EETHashModel
from tokenry.pruning.glsim import GLSim, GLSimClassifier
from tokenry.pruning.vit_baselines import ClsRow, RandomPatches, ToMe
from tokenry.testing import siglip2_inputs, tiny

PREFIX = {
    "vit": 1, "deit": 2, "vit_msn": 1, "vit_mae": 1, "ijepa": 0, "beit": 1, "dinov2": 1, "dinov2_with_registers": 5,
    "dinov3": 3, "clip": 1, "siglip": 0, "siglip2": 0,
}  # fmt: skip
NEW = ("dinov3", "beit", "vit_mae", "siglip2", "vit_msn", "ijepa")
WITH_CLS = [name for name, prefix in PREFIX.items() if prefix]
CLASSIFIERS = {
    "vit": "ViTForImageClassification", "vit_msn": "ViTMSNForImageClassification", "ijepa": "IJepaForImageClassification",
    "beit": "BeitForImageClassification", "dinov2": "Dinov2ForImageClassification",
    "siglip2": "Siglip2ForImageClassification",
}  # fmt: skip
KEEP = torch.tensor([[17, 3, 30, 8, 11], [0, 19, 5, 6, 14]])


def build(name: str, **overrides) -> nn.Module:
    options = {"mask_ratio": 0.0} if name == "vit_mae" else {}
    return tiny(name, attn_implementation="eager", **{**options, **overrides})


def call(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Two images of 36 patches; of SigLIP 2 the second has 20 and 16 of padding."""
    if name == "siglip2":
        return siglip2_inputs(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    images = {"pixel_values": torch.randn(2, 3, 24, 24, generator=generator)}
    return images | ({"noise": torch.rand(2, 36, generator=generator)} if name == "vit_mae" else {})


def alone(name: str, inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One image of the batch, without padding."""
    one = {key: value[row : row + 1] for key, value in inputs.items()}
    if name == "siglip2":
        count = int(one["pixel_attention_mask"].sum())
        one["pixel_values"], one["pixel_attention_mask"] = one["pixel_values"][:, :count], torch.ones(1, count)
    return one


def entered(model, name, one):
    """Tokens before the first block, of one image."""
    if name == "siglip2":
        return model.embeddings(one["pixel_values"], one["spatial_shapes"])
    if name == "vit_mae":
        return model.embeddings(one["pixel_values"], noise=one["noise"])[0]
    tokens = model.embeddings(one["pixel_values"])
    return model.pre_layrnorm(tokens) if name == "clip" else tokens


def block_by_hand(model, name, block, tokens, rows, pixels):
    """One block on the tokens that stood at `rows` of the whole sequence."""
    if name == "dinov3":
        patches = rows[PREFIX[name] :] - PREFIX[name]
        cos, sin = model.rope_embeddings(pixels)
        return block(tokens, position_embeddings=(cos[patches], sin[patches]))
    if name == "beit":
        bias = block.relative_position_bias((6, 6))[:, :, rows][..., rows]
        tokens = tokens + block.lambda_1 * block.attention(block.layernorm_before(tokens), attention_mask=bias)[0]
        return tokens + block.lambda_2 * block.mlp(block.layernorm_after(tokens))
    return block(tokens, None)


def by_hand(model, name, one, stages):
    """Last hidden states of one image; after block b only the patches `stages[b]`, in the numbering of the sequence, go on."""
    tokens = entered(model, name, one)
    rows = torch.arange(tokens.shape[1])
    for number, block in enumerate(describe(model).blocks):
        tokens = block_by_hand(model, name, block, tokens, rows, one["pixel_values"])
        if number in stages:
            keep = torch.cat([torch.arange(PREFIX[name]), stages[number].sort().values + PREFIX[name]])
            tokens = tokens[:, torch.isin(rows, keep)]
            rows = keep
    final = {"clip": nn.Identity(), "dinov3": getattr(model, "norm", None)}.get(name)
    return (final or getattr(model, "layernorm", None) or model.post_layernorm)(tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", PREFIX)
def test_pruning_equals_a_run_by_hand(name):
    model, inputs = build(name), call(name)
    second = torch.tensor([[0, 2, 4], [1, 2, 3]])
    with drop_after(model, {0: lambda s: KEEP, 2: lambda s: second}) as drops:
        states = model(**inputs).last_hidden_state
    kept = KEEP.sort(dim=1).values
    for row in range(2):
        expected = by_hand(model, name, alone(name, inputs, row), {0: kept[row], 2: kept[row][second[row]]})
        assert torch.allclose(states[row], expected[0], atol=1e-5), (name, row)
    places = inputs["noise"].argsort(dim=1) if name == "vit_mae" else torch.arange(36).expand(2, -1)
    assert torch.equal(drops[0].index, places.gather(1, kept).sort(dim=1).values)


@torch.no_grad()
@pytest.mark.parametrize("name", PREFIX)
def test_all_patches_are_the_plain_model(name):
    model, inputs = build(name), call(name)
    plain = model(**inputs).last_hidden_state
    with RandomPatches(keep={0: 1.0, 2: 1.0}).attach(model) as trace:
        assert torch.equal(model(**inputs).last_hidden_state, plain)
    assert [entry.indices.numel() for entry in trace.of_image(1)] == ([20, 20] if name == "siglip2" else [36, 36])
    with ToMe(keep={1: 36}).attach(model):
        assert torch.equal(model(**inputs if name != "siglip2" else alone(name, inputs, 0)).last_hidden_state[0], plain[0])


def pruners(name):
    return [EET(keep={0: 0.5, 1: 0.3})] if PREFIX[name] else [_First(keep={0: 0.5, 1: 0.3})]


class _First(RandomPatches):
    """Without CLS: the patches with the largest first channel."""

    def _scorer(self):
        return lambda signals: signals.tokens[..., 0]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", PREFIX)
def test_a_batch_is_its_images_alone(name, attention):
    model, inputs = build(name), call(name)
    model.set_attn_implementation(attention)
    for pruner in pruners(name):
        with pruner.attach(model) as together:
            output = model(**inputs)
        with pruner.attach(model) as one_by_one:
            for row in range(2):
                one = model(**alone(name, inputs, row))
                states = one.last_hidden_state[0]
                assert torch.allclose(output.last_hidden_state[row, : len(states)], states, atol=1e-5)
                if name == "siglip2":
                    assert torch.allclose(output.pooler_output[row], one.pooler_output[0], atol=1e-5)
        for a, b in zip(sorted(together.kept, key=lambda k: k.image), one_by_one.kept, strict=True):
            assert (a.indices.tolist(), a.total, a.grid) == (b.indices.tolist(), b.total, b.grid)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_CLS)
def test_the_cls_row_is_that_of_the_eager_maps(name):
    model, inputs = build(name), call(name)
    inputs.pop("noise", None)
    row = cls_attention(model, inputs["pixel_values"], layer=1)
    order = {"noise": torch.arange(36.0).expand(2, -1)} if name == "vit_mae" else {}
    maps = model(**inputs, **order, output_attentions=True).attentions
    assert torch.allclose(row, maps[1][:, :, 0, PREFIX[name] :], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_CLS)
def test_the_cls_row_after_a_stage_is_that_of_what_is_left(name):
    model, inputs = build(name), call(name)
    seen = []

    def look(signals):
        seen.append(signals.cls_attention)
        return torch.arange(2).expand(2, -1)

    with drop_after(model, {0: lambda s: KEEP, 2: look}):
        maps = model(**inputs, output_attentions=True).attentions
    assert torch.allclose(seen[0], maps[2][:, :, 0, PREFIX[name] :], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in NEW if n != "siglip2"])
def test_merging_keeps_the_place_of_the_patch_that_stands_for_the_others(name):
    """A merger that only renames tokens changes nothing: sizes of one, states untouched, places kept."""
    model, inputs = build(name), call(name)

    def merge(signals):
        index = KEEP.sort(dim=1).values
        rows = signals.tokens.gather(1, index[..., None].expand(-1, -1, 32))
        return Merged(rows, index, torch.ones(index.shape))

    with merge_after(model, {0: merge}):
        merged = model(**inputs).last_hidden_state
    with drop_after(model, {0: lambda s: KEEP}):
        assert torch.allclose(model(**inputs).last_hidden_state, merged, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", NEW)
def test_autocast_and_half_precision(name):
    model, inputs = build(name), call(name)
    for pruner in pruners(name):
        with pruner.attach(model) as trace, torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(model(**inputs).last_hidden_state).all()
        assert all(entry.scores.dtype == torch.float32 for entry in trace.kept if PREFIX[name])
    model.to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with pruners(name)[0].attach(model):
        assert torch.isfinite(model(**inputs).last_hidden_state).all()


@torch.no_grad()
def test_patches_are_chosen_outside_autocast():
    seen = []

    def select(signals):
        seen.append((torch.is_autocast_enabled("cpu"), signals.content.dtype, signals.cls_attention.dtype))
        return torch.arange(4).expand(2, -1)

    tower = build("vit")
    with drop_after(tower, {0: select}), torch.autocast("cpu", torch.bfloat16):
        tower(**call("vit"))
    assert seen == [(False, torch.bfloat16, torch.float32)]


@torch.no_grad()
@pytest.mark.parametrize("name", NEW)
def test_a_compiled_model_is_pruned_and_then_plain(name):
    model, inputs = build(name, num_hidden_layers=2), call(name)
    pruner = type(pruners(name)[0])(keep={0: 0.5})
    plain = model(**inputs).last_hidden_state
    with pruner.attach(model):
        expected = model(**inputs).last_hidden_state
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(**inputs).last_hidden_state, plain, atol=1e-6)
    with pruner.attach(compiled):
        assert torch.allclose(compiled(**inputs).last_hidden_state, expected, atol=1e-6)
    assert torch.allclose(compiled(**inputs).last_hidden_state, plain, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_see_the_patches_that_are_left(name):
    config = build(name).config
    if name == "siglip2":
        config = tf.Siglip2Config(vision_config=config.to_dict())
    with seeded(0):
        model = getattr(tf, CLASSIFIERS[name])(config).eval()
        nn.init.normal_(model.classifier.weight)
    inputs, tower = call(name), describe(model).model
    plain = model(**inputs).logits
    with drop_after(model, {0: lambda s: KEEP}):
        pruned = model(**inputs).logits
    with drop_after(tower, {0: lambda s: KEEP}):
        states = tower(**inputs).last_hidden_state
    if name in ("ijepa", "siglip2"):
        assert torch.allclose(pruned, model.classifier(states.mean(dim=1)), atol=1e-5)
    with pruners(name)[0].attach(model):
        together = model(**inputs).logits
        one_by_one = torch.cat([model(**alone(name, inputs, row)).logits for row in range(2)])
    assert torch.allclose(together, one_by_one, atol=1e-5)
    assert not torch.allclose(together, plain, atol=1e-4)
    assert torch.equal(model(**inputs).logits, plain)


# What is particular to one family ------------------------------------------------------------------------------------------


def test_patches_hidden_by_vit_mae_are_not_there_to_be_chosen():
    model, inputs = build("vit_mae", mask_ratio=0.5), call("vit_mae")
    visible = inputs["noise"].argsort(dim=1)[:, :18]
    with torch.no_grad(), ClsRow(keep={0: 0.5, 1: 0.5}).attach(model) as trace:
        states = model(**inputs).last_hidden_state
    assert states.shape[1] == 1 + 4
    for entry in trace.kept:
        assert (entry.total, entry.grid) == (36, (6, 6))
        assert set(entry.indices.tolist()) <= set(visible[entry.image].tolist())
        assert entry.indices.tolist() == sorted(entry.indices.tolist())
        present = visible[entry.image] if entry.layer == 0 else trace.of_image(entry.image)[0].indices
        assert entry.scores.isfinite().nonzero()[:, 0].tolist() == sorted(present.tolist())
        best = entry.scores.nan_to_num(-1.0).topk(len(entry.indices)).indices
        assert entry.indices.tolist() == sorted(best.tolist())
    with pytest.raises(ValueError, match=r"mask_ratio must be 0 .*, got 0.5"):
        final_tokens(model, inputs["pixel_values"])


def test_vit_mae_is_read_in_the_order_of_the_image():
    model, inputs = build("vit_mae"), call("vit_mae")
    shuffled = model(**inputs).last_hidden_state[:, 1:]
    places = inputs["noise"].argsort(dim=1)
    patches = final_tokens(model, inputs["pixel_values"]).patches
    assert torch.allclose(patches.gather(1, places[..., None].expand_as(patches)), shuffled, atol=1e-5)


def test_the_shared_bias_of_beit_follows_as_well():
    model, inputs = build("beit", use_shared_relative_position_bias=True, use_relative_position_bias=False), call("beit")
    with drop_after(model, {0: lambda s: KEEP}):
        states = model(**inputs).last_hidden_state
    bias = model.shared_position_bias((6, 6))
    for row in range(2):
        hidden = model.layers[0](model.embeddings(inputs["pixel_values"][row : row + 1]), bias)
        rows = torch.cat([torch.zeros(1, dtype=torch.long), KEEP[row].sort().values + 1])
        hidden = hidden[:, rows]
        for block in model.layers[1:]:
            hidden = block(hidden, bias[:, :, rows][..., rows])
        assert torch.allclose(states[row], model.layernorm(hidden)[0], atol=1e-5)


@torch.no_grad()
def test_merging_with_the_shared_bias_is_merging_with_that_bias_in_every_block():
    shared, inputs = build("beit", use_shared_relative_position_bias=True, use_relative_position_bias=False), call("beit")
    own = build("beit")
    own.load_state_dict(shared.state_dict(), strict=False)
    for block in own.layers:
        block.relative_position_bias.load_state_dict(shared.shared_position_bias.state_dict())
    states = []
    for model in (shared, own):
        with ToMe(keep={0: 0.5, 1: 5}).attach(model):
            states.append(model(**inputs).last_hidden_state)
    assert states[0].shape[1] == 6
    assert torch.allclose(states[0], states[1], atol=1e-5)


@torch.no_grad()
def test_the_classifier_of_siglip2_averages_merged_patches():
    model = tf.Siglip2ForImageClassification(tf.Siglip2Config(vision_config=build("siglip2").config.to_dict())).eval()
    inputs = alone("siglip2", call("siglip2"), 0)
    with ToMe(keep={0: 9}).attach(model):
        logits = model(**inputs).logits
    with ToMe(keep={0: 9}).attach(model.vision_model):
        states = model.vision_model(**inputs).last_hidden_state
    assert torch.allclose(logits, model.classifier(states.mean(dim=1)), atol=1e-5)


def test_an_interpolated_bias_of_beit_keeps_its_size():
    model, inputs = build("beit"), call("beit")
    with drop_after(model, {0: lambda s: KEEP}):
        plain = model(**inputs).last_hidden_state
        assert torch.allclose(model(**inputs, interpolate_pos_encoding=True).last_hidden_state, plain, atol=1e-5)


def test_dinov3_prunes_other_image_sizes_and_rescaled_coordinates():
    model = build("dinov3")
    wide = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    with ClsRow(keep={0: 5}).attach(model) as trace, torch.no_grad():
        assert model(wide).last_hidden_state.shape[1] == 3 + 5
    assert trace.kept[0].grid == (4, 8)
    model.train()
    with ClsRow(keep={0: 0.5}).attach(model):
        model(wide).last_hidden_state.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.model.parameters() if p.grad is not None)


def test_padded_patches_of_siglip2():
    model, inputs = build("siglip2"), call("siglip2")
    with torch.no_grad(), RandomPatches(keep={0: 0.25, 2: 4}).attach(model) as trace:
        model(**inputs)
    assert [(k.image, k.layer, k.indices.numel(), k.total, k.grid) for k in trace.kept] == [
        (0, 0, 9, 36, (6, 6)), (1, 0, 5, 20, (4, 5)), (0, 2, 4, 36, (6, 6)), (1, 2, 4, 20, (4, 5)),
    ]  # fmt: skip
    assert max(trace.of_image(1)[0].indices.tolist()) < 20
    with pytest.raises(ValueError, match="pixel_attention_mask must hide nothing"), ToMe(keep={0: 9}).attach(model):
        model(**inputs)
    inputs["pixel_attention_mask"] = None
    with (
        pytest.raises(ValueError, match=r"pixel_attention_mask must be given .* fewer than 36"),
        ToMe(keep={0: 9}).attach(model),
    ):
        model(**inputs)


def test_siglip2_is_read_with_its_shapes():
    model, inputs = build("siglip2"), alone("siglip2", call("siglip2"), 0)
    plain = model(**inputs)
    pixels = inputs.pop("pixel_values")
    prefix, patches = final_tokens(model, pixels, **inputs)
    assert prefix.shape[1] == 0
    assert torch.equal(patches, plain.last_hidden_state)
    assert torch.equal(global_and_patches(model, pixels, anchor="pooled", **inputs)[:, 0], plain.pooler_output)
    assert GLSim(anchor="pooled").importance(model, pixels, **inputs).shape == (1, 36)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in NEW if PREFIX[n]])
def test_models_built_around_a_tower(name, tmp_path):
    pixels = call(name)["pixel_values"]
    student = EETHashModel(build(name), 4, 8, pruner=EET(keep={0: 0.5, 1: 5})).eval()
    teacher = student.twin()
    crops = GLSimClassifier(build(name), 4, top=3).eval()
    assert teacher(pixels, importance=True).importance.shape == (2, 36)
    for number, model in enumerate((student, teacher, crops)):
        model.save_pretrained(tmp_path / str(number))
        again = type(model).from_pretrained(tmp_path / str(number))
        assert torch.allclose(again(pixels).logits, model(pixels).logits, atol=1e-6)


class OfOnesOwn(nn.Module):
    """A tower that transformers does not know: the blocks of its ViT under other names."""

    def __init__(self):
        super().__init__()
        vit = tiny("vit", attn_implementation="eager")
        self.config, self.stem, self.trunk, self.norm = vit.config, vit.embeddings, vit.layers, vit.layernorm

    def forward(self, pixel_values):
        tokens = self.stem(pixel_values)
        for block in self.trunk:
            tokens = block(tokens)
        return self.norm(tokens)


def test_a_family_of_ones_own(monkeypatch):
    monkeypatch.setattr(towers, "_ADDED", {})
    model, pixels = OfOnesOwn(), call("vit")["pixel_values"]
    with pytest.raises(UnsupportedModelError, match=r"OfOnesOwn is not supported \(to add it: docs/add-a-family\.md"):
        describe(model)
    add_family(OfOnesOwn, ViTFamily("own", blocks="trunk"))
    assert describe(type("Derived", (OfOnesOwn,), {})()).family == "own"
    for pruner in (EET(keep={0: 0.5, 1: 5}), ToMe(keep={0: 0.5, 1: 5})):
        vit = build("vit")
        with torch.no_grad(), pruner.attach(model), pruner.attach(vit):
            assert torch.equal(model(pixels), vit(pixels).last_hidden_state)
    with pytest.raises(TypeError, match=r"tower must be a subclass of torch\.nn\.Module, got 'ViT'"):
        add_family("ViT", ViTFamily("own"))
    with pytest.raises(TypeError, match="family must be a ViTFamily, got 'vit'"):
        add_family(OfOnesOwn, "vit")


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("SwinModel", {"embed_dim": 8, "depths": [1], "num_heads": [2]}, "windows.*full grid"),
        ("Swinv2Model", {"embed_dim": 8, "depths": [1], "num_heads": [2]}, "windows.*full grid"),
        ("HieraModel", {"embed_dim": 8, "depths": [1, 1, 1, 1]}, "windows.*full grid"),
        ("PvtModel", {}, "stages.*full grid"),
        ("SegformerModel", {}, "stages.*full grid"),
        ("ViTMAEForPreTraining", {"image_size": 16, "patch_size": 8}, r"every one; pass its encoder, model\.vit"),
        ("BeitForMaskedImageModeling", {"image_size": 16, "patch_size": 8}, r"pass its encoder, model\.beit"),
        ("DINOv3ViTBackbone", {}, r"nearest that is: DINOv3ViTModel; to add it: docs/add-a-family\.md"),
        ("Data2VecVisionModel", {}, r"nearest that is: \w+; to add it: docs/add-a-family\.md"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(name, sizes, reason):
    cls = getattr(tf, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**sizes))
    with pytest.raises(UnsupportedModelError, match=rf"{name} is not supported \(.*{reason}.*supported: ViTModel"):
        describe(model)
