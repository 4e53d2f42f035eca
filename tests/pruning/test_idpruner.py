"""IDPruner: the invariants of the rule, the scorer, its training and the metrics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.seeding import seeded
from tokenry.pruning import IDPruner, ImportanceScorer
from tokenry.pruning.idpruner import (
    ScorerConfig,
    ScorerTraining,
    hopkins_statistic,
    importance_retention,
    soft_top_k,
    train_scorer,
)
from tokenry.testing import llava_inputs, tiny_llava
from tokenry.testing.zoo import IMAGE_TOKEN

PROPERTY = settings(max_examples=25, deadline=None)


def test_a_case_worked_by_hand():
    """Imp = (1, .8, .5, 0); token 1 repeats token 0, so the orthogonal token 2 comes second, then 3, then the duplicate."""
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    importance = torch.tensor([[10.0, 8.0, 5.0, 0.0]])
    chosen = IDPruner(3).select(features, importance=importance)
    # lambda .5: token 1: .4 - .5 = -.1; token 2: .25 - 0 = .25; token 3: 0 + .5 = .5 (a negative cosine is a bonus)
    assert chosen.tolist() == [[0, 3, 2]]
    assert IDPruner(3, clamp_negative=True).select(features, importance=importance).tolist() == [[0, 2, 3]]


@PROPERTY
@given(seed=st.integers(0, 10_000), slope=st.floats(0.1, 50), shift=st.floats(-100, 100))
def test_affine_importance_and_row_scale_change_nothing(seed, slope, shift):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 20, 6, generator=generator, dtype=torch.float64)
    importance = torch.rand(1, 20, generator=generator, dtype=torch.float64)
    plain = IDPruner(8).select(features, importance=importance)
    moved = IDPruner(8).select(features * 7.5, importance=slope * importance + shift)
    assert torch.equal(plain, moved)


@PROPERTY
@given(seed=st.integers(0, 10_000), budget=st.floats(0.5, 11.5))
def test_soft_top_k_sums_to_its_budget_and_keeps_the_order(seed, budget):
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    soft = soft_top_k(scores, budget)
    torch.testing.assert_close(soft.sum(dim=1), torch.full((2,), budget, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(soft.argsort(dim=1), scores.argsort(dim=1))


def test_soft_top_k_gradient_is_that_of_the_pinned_sum():
    scores = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, 2.5), (scores,), eps=1e-6, atol=1e-5)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    soft = soft_top_k(scores, 2.0, mask=mask)
    assert soft[0, 5:].eq(0).all()
    torch.testing.assert_close(soft.sum(dim=1), torch.full((2,), 2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="budget must be"):
        soft_top_k(scores, 7.0)


def test_raw_and_soft_importance_agree_where_only_the_ranking_counts():
    generator = torch.Generator().manual_seed(0)
    features, importance = torch.randn(1, 30, 6, generator=generator), torch.randn(1, 30, generator=generator) * 4
    raw = IDPruner(6, balance=1.0).select(features, importance=importance)
    assert torch.equal(raw, IDPruner(6, balance=1.0, importance_transform="soft_topk").select(features, importance=importance))
    mixed = IDPruner(10).select(features, importance=importance)
    soft = IDPruner(10, importance_transform="soft_topk").select(features, importance=importance)
    assert not torch.equal(mixed, soft)


@PROPERTY
@given(seed=st.integers(0, 10_000), fraction=st.floats(0.02, 0.98))
def test_the_soft_budget_is_a_fraction_of_all_tokens(seed, fraction):
    """`soft_fraction` of the N tokens, or the pruner's own K without it."""
    generator = torch.Generator().manual_seed(seed)
    features, importance = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((1, 25, 6), (1, 25)))
    for option, budget in ((fraction, 25 * fraction), (None, 8.0)):
        soft = IDPruner(8, importance_transform="soft_topk", soft_fraction=option).select(features, importance=importance)
        assert torch.equal(soft, IDPruner(8).select(features, importance=soft_top_k(importance, budget)))


def test_another_soft_fraction_keeps_other_tokens():
    generator = torch.Generator().manual_seed(0)
    features, importance = torch.randn(1, 30, 6, generator=generator), torch.randn(1, 30, generator=generator) * 4
    kept = [
        sorted(
            IDPruner(10, importance_transform="soft_topk", soft_fraction=f).select(features, importance=importance)[0].tolist()
        )
        for f in (0.05, 0.9)
    ]
    assert kept[0] != kept[1]


@seeded(0)
def test_the_scorer_is_the_mean_of_all_pairs_at_linear_cost(tmp_path):
    scorer = ImportanceScorer(ScorerConfig(8, 5))
    assert scorer.query.weight.std() < 3e-4
    assert scorer.key.bias.eq(0).all()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, 6, 8)
    pairs = torch.einsum("bnh,bmh->bnm", scorer.query(tokens), scorer.key(tokens)).mean(dim=2) / 5**0.5
    torch.testing.assert_close(scorer(tokens), pairs)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    padded = scorer(tokens, mask)
    torch.testing.assert_close(padded[1:, :4], scorer(tokens[1:, :4]))
    assert padded[1, 4:].eq(0).all()
    scorer.save_pretrained(tmp_path)
    loaded = ImportanceScorer.from_pretrained(tmp_path)
    assert loaded.config == scorer.config
    torch.testing.assert_close(loaded(tokens), scorer(tokens))
    assert ImportanceScorer(ScorerConfig(3584)).query.out_features == 1792


def test_training_moves_the_scorer_and_only_the_scorer():
    model = tiny_llava()
    inputs = llava_inputs((1, 2, 0))
    batch = {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)}
    scorer = ImportanceScorer(ScorerConfig(32, 8))
    before = {n: p.clone() for n, p in scorer.named_parameters()}
    frozen = {n: p.clone() for n, p in model.named_parameters()}
    history = train_scorer(model, scorer, [batch] * 12, ScorerTraining(steps=12, learning_rate=5e-2))
    assert history[-1]["language"] + history[-1]["binary"] < history[0]["language"] + history[0]["binary"]
    assert [h["weight"] for h in history][::11] == [0.0, 1.0]
    moved = {n for n, p in scorer.named_parameters() if not torch.equal(before[n], p)}
    assert {"query.weight", "key.weight"} <= moved
    assert all(torch.equal(frozen[n], p) and p.requires_grad and p.grad is None for n, p in model.named_parameters())
    with IDPruner(0.25, scorer=scorer).attach(model) as trace, torch.no_grad():
        model(**inputs)
    assert sum(trace.counts().values()) == 9 + 18
    with pytest.raises(ValueError, match="must hold labels"):
        train_scorer(model, scorer, [inputs], ScorerTraining(steps=1))
    with pytest.raises(ValueError, match="at least steps"):
        train_scorer(model, scorer, [batch], ScorerTraining(steps=2))


def test_one_budget_for_all_images_of_a_prompt_or_one_for_each():
    model, inputs = tiny_llava(), llava_inputs((2,))
    with IDPruner(0.25).attach(model) as together, torch.no_grad():
        model(**inputs)
    with IDPruner(0.25, per_image=True).attach(model) as apart, torch.no_grad():
        model(**inputs)
    assert sum(together.counts().values()) == 18
    assert apart.counts() == {0: 9, 1: 9}


def test_metrics():
    importance = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert importance_retention(importance, torch.tensor([[3, 0]])).item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="importance must be non-negative"):
        importance_retention(-importance, torch.tensor([[0]]))
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 16, generator=generator)
    features = (centres.repeat_interleave(16, 0) + 0.05 * torch.randn(128, 16, generator=generator))[None]
    clumped = hopkins_statistic(features, torch.arange(16)[None], generator=torch.Generator().manual_seed(1))
    spread = hopkins_statistic(features, torch.arange(0, 128, 16)[None], generator=torch.Generator().manual_seed(1))
    assert clumped.item() > 0.8 > 0.2 > spread.item()
    with pytest.raises(ValueError, match="index must hold at least 2"):
        hopkins_statistic(features, torch.tensor([[1]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": 1.2}, "balance"), ({"balance": float("nan")}, "balance"), ({"per_round": 0}, "per_round"),
        ({"importance_transform": "softmax"}, "importance_transform"), ({"importance": "attention"}, "importance"), ({"soft_fraction": 1.0}, "soft_fraction"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        IDPruner(0.5, **options)


def test_importance_is_required():
    with pytest.raises(ValueError, match="importance must be given"):
        IDPruner(0.5).select(torch.randn(1, 4, 2))
