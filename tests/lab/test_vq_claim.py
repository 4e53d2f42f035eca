"""Parts of the quantizers' claim that a smoke run does not reach: the table at equal bits and the orderings."""

import pytest
import torch

from tokenry.lab.beds.signals.feature_banks import FeatureBank, feature_bank
from tokenry.lab.claims.codecs.vq import CLAIM
from tokenry.lab.claims.codecs.vq.distortion import FITTED, RATES, TRAINED, at_rate, compare_books, explained, grouped


def test_groups_are_means_of_consecutive_values():
    assert grouped(torch.arange(7.0), 3) == [0.5, 2.5, 4.5]


def test_explained_is_one_for_a_perfect_code_and_zero_for_the_mean():
    bank = feature_bank("mixture", 300, 100)

    class Fixed:
        def __init__(self, decoded):
            self.decoded = decoded

        def encode(self, x):
            return torch.zeros(len(x), dtype=torch.long)

        def decode(self, indices):
            return self.decoded

    assert torch.allclose(explained(Fixed(bank.test), bank), torch.ones(100))
    mean = bank.train.mean(dim=0).expand(100, -1)
    assert float(explained(Fixed(mean), bank).mean()) == pytest.approx(0.0, abs=1e-5)


def test_more_structure_never_explains_less_on_what_was_learned_from():
    bank = feature_bank("mixture", 1500, 200)
    seen = FeatureBank("seen", bank.train, bank.train)
    found = compare_books(seen, 4, 8, seed=0, iterations=8, aq={"encoder": "icm"})
    means = {name: float(values.mean()) for name, values in found.items()}
    assert means["pq"] < means["opq"] < means["aq"]
    assert means["pq"] < means["rvq"] < means["aq"]


def test_the_table_has_all_eight_at_equal_bits():
    facts = at_rate(feature_bank("mixture", 500, 200), 6, seed=0, steps=40, iterations=4)
    for name in (*FITTED, *TRAINED):
        label = f"mixture_6bit_{name}"
        assert 0 < float(facts[f"{label}_usage"]) <= 1
        assert 1 <= float(facts[f"{label}_perplexity"]) <= 64 + 1e-6
        assert float(facts[f"{label}_explained"]) < 1
    assert float(facts["mixture_6bit_vq_explained"]) > 0.2
    for bits, (one, two, levels) in RATES.items():
        assert one == two**2 == 2**bits
        assert 0.9 * one <= torch.tensor(levels).prod() <= one
        assert min(levels) >= 5


def test_settings_are_plain_values():
    import json

    for scale in ("smoke", "small", "paper"):
        assert json.loads(json.dumps(CLAIM.settings(scale))) == CLAIM.settings(scale)
