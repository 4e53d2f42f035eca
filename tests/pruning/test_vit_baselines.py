"""Baselines that prune inside a ViT: CLS row, random, ToMe-style merging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pruning.draws import FAST, images
from tokenry import UnsupportedModelError
from tokenry.hosts.vision import cls_attention, final_tokens
from tokenry.pruning.eet import EET
from tokenry.pruning.vit_baselines import ClsRow, RandomPatches, ToMe, bipartite_merge
from tokenry.testing import tiny

KEEP = {0: 0.5, 1: 0.25}
METHODS = [EET(keep=KEEP), ClsRow(keep=KEEP), RandomPatches(keep=KEEP), ToMe(keep=KEEP), ToMe(keep=KEEP, proportional=False)]


@pytest.mark.parametrize("pruner", METHODS, ids=repr)
def test_same_schedule_same_counts_no_trace(pruner):
    model = tiny("vit")
    dense = model(images()).last_hidden_state
    with pruner.attach(model) as trace:
        assert model(images()).last_hidden_state.shape[1] == 1 + pruner.plan(36) == 5
    assert [row["kept"] for row in trace.to_rows()] == [18] * 3 + [4] * 3
    assert [row["image"] for row in trace.to_rows()] == [0, 1, 2, 0, 1, 2]
    for entry in trace.kept:
        assert entry.indices.tolist() == sorted(set(entry.indices.tolist()))
    assert torch.equal(model(images()).last_hidden_state, dense)
    with type(pruner)(keep={0: 1.0, 2: 1.0}).attach(model):
        assert torch.equal(model(images()).last_hidden_state, dense)


@pytest.mark.parametrize("pruner", [m for m in METHODS if not isinstance(m, RandomPatches)], ids=repr)
def test_batch_equals_loop_and_half_precision(pruner):
    model = tiny("vit")
    with torch.no_grad(), pruner.attach(model):
        together = model(images()).last_hidden_state
        alone = torch.cat([model(image[None]).last_hidden_state for image in images()])
        assert torch.allclose(together, alone, atol=1e-5)
        model.to(torch.bfloat16)
        assert torch.isfinite(model(images().bfloat16()).last_hidden_state).all()


def test_cls_row_keeps_what_cls_looks_at():
    model = tiny("vit")
    with ClsRow(keep={1: 7}).attach(model) as trace:
        model(images(1))
    best = cls_attention(model, images(1), layer=1).mean(1).topk(7).indices[0]
    assert trace.kept[0].indices.tolist() == sorted(best.tolist())


def test_random_is_seeded_and_differs_between_images():
    model = tiny("vit")
    runs = []
    for seed in (0, 0, 1):
        with RandomPatches(keep=KEEP, seed=seed).attach(model) as trace:
            model(images())
        runs.append([entry.indices.tolist() for entry in trace.kept])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_masked_patches_are_never_kept():
    model = tiny("vit")
    mask = torch.ones(2, 37, dtype=torch.long)
    mask[:, 30:] = 0
    for pruner in (EET(keep=KEEP), ClsRow(keep=KEEP), RandomPatches(keep=KEEP)):
        with pruner.attach(model) as trace:
            model(images(2), attention_mask=mask)
        assert max(max(entry.indices.tolist()) for entry in trace.kept) < 29
        assert [entry.indices.numel() for entry in trace.kept] == [14, 14, 3, 3]  # of the 29 that are not masked
    mask[1, 10:] = 0
    with EET(keep={0: 0.5, 1: 20}).attach(model) as trace:
        assert model(images(2), attention_mask=mask).last_hidden_state.shape[1] == 1 + 14
    assert [entry.indices.numel() for entry in trace.kept] == [14, 4, 14, 4]
    with pytest.raises(ValueError, match="attention_mask must hide nothing"), ToMe(keep=KEEP).attach(model):
        model(images(2), attention_mask=mask)


# Merging ------------------------------------------------------------------------------------------------------------------


def test_one_merge_by_hand():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 4.0], [1.0, 1.0]]])
    merged, metric, size, index = bipartite_merge(tokens, tokens, torch.tensor([[1.0, 1.0, 2.0, 1.0]]), 1)
    assert index.tolist() == [[0, 1, 3]]  # token 2 points exactly the way of token 1
    assert size.tolist() == [[1.0, 3.0, 1.0]]
    assert merged[0, 1].tolist() == metric[0, 1].tolist() == [0.0, 3.0]


@FAST
@given(seed=st.integers(0, 9999), n=st.integers(2, 20), data=st.data())
def test_merging_preserves_the_weighted_sum(seed, n, data):
    r = data.draw(st.integers(0, n // 2))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, n, 6, generator=generator)
    size = torch.randint(1, 5, (2, n), generator=generator).float()
    merged, _, sizes, index = bipartite_merge(tokens, tokens, size, r)
    assert merged.shape == (2, n - r, 6)
    assert torch.equal(sizes.sum(1), size.sum(1))
    total = (tokens * size[..., None]).sum(1)
    assert torch.allclose((merged * sizes[..., None]).sum(1), total, atol=1e-4)
    assert bool((index[:, 1:] > index[:, :-1]).all())


def test_proportional_attention_of_identical_patches_is_exact():
    """Merging equal tokens with proportional attention changes nothing: k copies attend like one token of size k."""
    model = tiny("vit")
    with torch.no_grad():
        model.embeddings.position_embeddings.zero_()
        flat = torch.ones(1, 3, 24, 24)
        dense = final_tokens(model, flat).prefix
        with ToMe(keep={0: 9}).attach(model):
            assert torch.allclose(final_tokens(model, flat).prefix, dense, atol=1e-5)
        with ToMe(keep={0: 9}, proportional=False).attach(model):
            assert not torch.allclose(final_tokens(model, flat).prefix, dense, atol=1e-3)


def test_attention_implementations_agree_and_others_are_refused():
    results = []
    for attention in ("sdpa", "eager"):
        model = tiny("vit", attn_implementation=attention)
        with torch.no_grad(), ToMe(keep=KEEP).attach(model):
            results.append(model(images()).last_hidden_state)
    assert torch.allclose(results[0], results[1], atol=1e-5)
    model = tiny("vit")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="sdpa or eager"), ToMe(keep=KEEP).attach(model):
        pass


def test_siglip_can_be_merged_but_not_ranked_by_cls():
    model = tiny("siglip")
    for pruner in (ToMe(keep=KEEP), RandomPatches(keep=KEEP)):
        with pruner.attach(model):
            assert model(images()).pooler_output.shape == (3, 32)
    with pytest.raises(UnsupportedModelError, match="no CLS token, which ClsRow needs"), ClsRow(keep=KEEP).attach(model):
        pass
    with pytest.raises(NotImplementedError, match="pairs"):
        ToMe(keep=KEEP).scores(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="r must be"):
        bipartite_merge(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), torch.ones(1, 4), 3)
