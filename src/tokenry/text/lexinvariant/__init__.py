"""Language models without fixed token embeddings (Huang et al., "Lexinvariant Language Models", arXiv 2305.16349).

A model is lexinvariant when ``p(x_1..x_n) = p(s(x_1)..s(x_n))`` for every permutation s of the vocabulary: predictions
depend on which tokens are equal, never on which token it is. All knowledge of the symbols comes from the context.

- `LexinvariantForCausalLM`: a decoder of transformers fed by G ~ N(0, 1), drawn for every sequence, and read out with
  the same G: ``logits = <W h, G_v> / sqrt(d)`` (section 3 of the paper). ``random_rate`` between 0 and 1 is the
  semi-lexinvariant form: a share of the token types is random in each sequence, the others keep a learnt embedding.
- `permutation_mixture`: the exact average of a source model over all keys, i.e. Bayesian deciphering in context.
- `CipherProbe`, `train_cipher_probe`, `recover_key`: what key does the model seem to know?
- `lookup_task`, `permutation_task`, `MarkovChain`: tasks whose symbols mean nothing.

No code of the authors is public. Inferred here: the read-out and its scale, W initialised like every linear layer (a new model
then starts near uniform, and training is faster), the draw per (sequence, token type) of the semi-lexinvariant form with a
read-out from the same mixed table, learnt rows initialised to the law of the random ones, and the shared pool whose rows are
permuted for every sequence.
"""

from __future__ import annotations

from typing import Any

from tokenry.lazy import lazy_exports

_AT = "tokenry.text.lexinvariant."
_EXPORTS = {
    "LexinvariantConfig": _AT + "config",
    "LexinvariantForCausalLM": _AT + "model",
    "LexinvariantOutput": _AT + "model",
    "Lexicon": _AT + "lexicon",
    "draw_lexicon": _AT + "lexicon",
    "PermutationMixture": _AT + "mixture",
    "permutation_mixture": _AT + "mixture",
    "all_keys": _AT + "mixture",
    "MarkovChain": _AT + "tasks",
    "TaskBatch": _AT + "tasks",
    "lookup_task": _AT + "tasks",
    "permutation_task": _AT + "tasks",
    "random_keys": _AT + "tasks",
    "relabel": _AT + "tasks",
    "CipherProbe": _AT + "cipher",
    "final_states": _AT + "cipher",
    "train_cipher_probe": _AT + "cipher",
    "symbol_evidence": _AT + "cipher",
    "recover_key": _AT + "cipher",
    "key_recovery": _AT + "cipher",
    "frequency_key": _AT + "cipher",
    "hill_climb_key": _AT + "cipher",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of language models is checked on: two bodies, semi-lexinvariant, and with fixed tokens."""
    import torch
    from transformers import LlamaConfig

    from tokenry.text.lexinvariant.config import LexinvariantConfig
    from tokenry.text.lexinvariant.lexicon import Lexicon
    from tokenry.text.lexinvariant.model import LexinvariantForCausalLM

    def rows_of(lexicon: Lexicon, rows: slice) -> Lexicon:
        return Lexicon(*(None if part is None else part[rows] for part in (lexicon.rows, lexicon.index, lexicon.replaced)))  # pyright: ignore

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    fixed = torch.ones(3, 9, dtype=torch.bool)
    fixed[:, [0, 3]] = False
    cases: dict[str, tuple[dict[str, Any], torch.Tensor | None]] = {
        "own body": ({}, None),
        "Llama": ({"body": LlamaConfig(intermediate_size=32, **sizes)}, None),
        "semi": ({"random_rate": 0.2, "readout_map": True}, torch.rand(3, 9) < 0.5),
        "fixed tokens": ({"fixed_tokens": [0, 3]}, fixed),
    }
    found = {}
    for name, (options, replaced) in cases.items():
        model = LexinvariantForCausalLM(LexinvariantConfig(vocab_size=9, **sizes, **options))
        for weight in model.parameters():  # some start at zero: let them matter
            weight.data.add_(0.05 * torch.randn_like(weight))
        batch = {"input_ids": torch.randint(0, 9, (3, 6)), "lexicon": Lexicon(torch.randn(3, 9, 16), None, replaced)}
        found[name] = {"model": model, "batch": batch, "rows_of": {"lexicon": rows_of}}
    return found
