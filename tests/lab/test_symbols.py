"""The testbed of lexinvariant models: training, losses by position, letters, and the bound they obey."""

import torch

from tokenry.lab.beds.language.symbols import (
    LETTERS,
    build_model,
    letters_of,
    losses_by_position,
    rotary_body,
    train_on,
    windows,
)
from tokenry.lab.claims.text.lexinvariant import _chain
from tokenry.text.lexinvariant import lookup_task


def test_letters_and_windows():
    ids = letters_of("  It's 3 o'clock,\nZoe! ")
    assert "".join(LETTERS[i] for i in ids) == "it s o clock zoe"
    rows = windows(ids, 5, 4, torch.Generator().manual_seed(0))
    assert all("".join(LETTERS[i] for i in row) in "it s o clock zoe" for row in rows)


def test_the_chosen_chain_leaves_something_to_learn():
    chains = [_chain(4, 0.4, seed) for seed in range(3)]
    assert all(c.unigram_entropy - c.entropy_rate >= 0.4 for c in chains)
    assert not torch.equal(chains[0].transition, chains[1].transition)


def test_training_lowers_the_loss_and_losses_are_by_position():
    chain = _chain(3, 0.2, 0)
    generator = torch.Generator().manual_seed(0)
    model = build_model(
        0, vocab_size=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=24, random_rate=0.0
    )
    test = chain.sample(32, 24, generator=torch.Generator().manual_seed(1))
    before = losses_by_position(model.eval(), test)

    def draw():
        tokens = chain.sample(16, 24, generator=generator)
        return tokens, tokens

    seen = []
    train_on(model, draw, steps=120, learning_rate=5e-3, progress=lambda text, done: seen.append(done))
    after = losses_by_position(model, test, chunk=5)
    assert after.shape == (32, 23)
    assert float(after.mean()) < float(before.mean())
    assert float(after.mean()) > chain.entropy_rate - 0.1
    assert seen == [50 / 120, 100 / 120, 1.0]
    assert not model.training


def test_a_rotary_body_takes_a_lookup():
    model = build_model(0, vocab_size=8, hidden_size=16, body=rotary_body(16, 1, 2, 12))
    task = lookup_task(4, 3, range(8), queries=3)
    train_on(model, lambda: (task.tokens, task.labels), steps=2, learning_rate=1e-3)
    assert task.exact(model(task.tokens).logits).shape == (4,)
