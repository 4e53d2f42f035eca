"""The contract of language models, over word pooling (three bodies), its flat baseline and the lexinvariant model."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from tokenry.testing.language_models import LANGUAGE_MODEL_CHECKS, LanguageModelCase, check_language_model
from tokenry.text.lexinvariant import Lexicon, LexinvariantConfig, LexinvariantForCausalLM
from tokenry.text.wordpool import FlatLM, FlatLMConfig, WordPoolConfig, WordPoolForCausalLM

V, B, T, C = 9, 3, 6, 5


def seeded(cls, config):
    def make():
        torch.manual_seed(0)
        model = cls(config)
        with torch.no_grad():  # codes start at zero: let them matter
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    return make


def gpt2(width=16):
    return GPT2Config(n_embd=width, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)


def llama(width=16):
    return LlamaConfig(
        hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )


def pooled(**options):
    config = WordPoolConfig(vocab_size=V, num_prefix=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, word_layers=1,
                            word_heads=2, word_intermediate_size=32, block_size=8, canvas_size=7, dropout=0.0, **options)  # fmt: skip

    def batch():
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(1, C + 1, (B, T), generator=generator)
        units = torch.randint(1, V, (B, T, C), generator=generator) * (torch.arange(C) < lengths[..., None])
        return {"input_units": units}

    return LanguageModelCase(seeded(WordPoolForCausalLM, config), batch, ids="input_units", mask="word_mask")


def flat():
    config = FlatLMConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, block_size=8, dropout=0.0)
    return LanguageModelCase(seeded(FlatLM, config), lambda: {"input_ids": ids()})


def ids():
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))


def rows_of_lexicon(lexicon, rows):
    return Lexicon(*(None if x is None else x[rows] for x in (lexicon.rows, lexicon.index, lexicon.replaced)))


def lexinvariant(body=None, **options):
    config = LexinvariantConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
                                body=body, **options)  # fmt: skip

    def batch():
        table = torch.randn(B, V, 16, generator=torch.Generator().manual_seed(3))
        return {"input_ids": ids(), "lexicon": Lexicon(table, None, replaced(config))}

    return LanguageModelCase(seeded(LexinvariantForCausalLM, config), batch, rows_of={"lexicon": rows_of_lexicon})


def replaced(config):
    if config.random_rate == 1.0 and not config.fixed_tokens:
        return None
    mask = (
        torch.rand(B, V, generator=torch.Generator().manual_seed(4)) < 0.5
        if config.random_rate < 1
        else torch.ones(B, V).bool()
    )
    mask[:, config.fixed_tokens] = False
    return mask


CASES = {
    "wordpool": pooled(),
    "wordpool-gpt2": pooled(body=gpt2()),
    "wordpool-llama": pooled(body=llama()),
    "flat": flat(),
    "lexinvariant": lexinvariant(),
    "lexinvariant-llama": lexinvariant(body=llama()),
    "lexinvariant-semi": lexinvariant(random_rate=0.2, readout_map=True),
    "lexinvariant-fixed": lexinvariant(fixed_tokens=[0, 3]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", LANGUAGE_MODEL_CHECKS, ids=lambda c: c.__name__.strip("_"))
def test_contract(name, check):
    check(CASES[name])


def test_the_public_entry_point_catches_a_broken_model():
    case = flat()
    check_language_model(case.make_model, case.make_batch)

    class Broken(FlatLM):
        def forward(self, input_ids, **rest):
            return super().forward(input_ids.flip(0), **rest)

    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="Broken breaks the contract 'batch equals loop'"):
        check_language_model(seeded(Broken, case.model().config), case.make_batch)
