"""Quantizers of transformers models, and code tokens of tokenizers."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import ChameleonVQVAEConfig, PreTrainedTokenizerFast
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEVectorQuantizer

from tests.codecs.books import randn
from tokenry.codecs import FSQ, CodeTokens, ResidualVQ
from tokenry.codecs.vq import from_host, to_host
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.quantizers import write_books
from tokenry.testing import tiny


def fill(module):
    books = from_host(module).codebook
    write_books(module, randn(*books.shape, seed=3) * 0.5)


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_residual_hosts_give_the_same_codes(name):
    host = tiny(name).quantizer
    host = host.acoustic_residual_vector_quantizer if name == "mimi" else host
    fill(host)
    ours = from_host(host)
    x = randn(2, ours.dim, 11)
    expected = host.encode(x)  # [M, B, T]
    assert torch.equal(ours.encode(x), expected.movedim(0, -1))
    decoded = host.decode(expected if name == "encodec" else expected.transpose(0, 1))
    torch.testing.assert_close(ours.decode(ours.encode(x)), decoded)
    ours.train()(x)  # learn, and put the books back
    to_host(ours, host)
    assert torch.equal(ours.eval().encode(x), host.encode(x).movedim(0, -1))


def test_a_single_book_of_chameleon():
    host = ChameleonVQVAEVectorQuantizer(ChameleonVQVAEConfig(num_embeddings=16, embed_dim=8))
    x = randn(2, 8, 3, 5)
    codes, loss, indices = host(x)
    out = from_host(host)(x)
    assert torch.equal(out.indices.flatten(), indices)
    torch.testing.assert_close(out.codes, codes)
    # Chameleon puts beta on the book, as the code of VQGAN does; the paper's rule puts it on the commitment
    torch.testing.assert_close(out.loss, loss)


def test_unsupported_hosts_say_why():
    with pytest.raises(UnsupportedModelError, match="semantic_ and acoustic_"):
        from_host(tiny("mimi").quantizer)
    with pytest.raises(UnsupportedModelError, match="projections of its own"):
        from_host(tiny("dac").quantizer)
    with pytest.raises(UnsupportedModelError, match="Linear"):
        from_host(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="books"):
        write_books(tiny("encodec").quantizer, torch.zeros(1, 2, 3))


def tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    )


def test_code_tokens_round_trip():
    words, quantizer = tokenizer(), ResidualVQ(4, 3, 5)
    tokens = CodeTokens.add(words, quantizer, "img")
    assert len(words) == 3 + 15
    assert words.convert_ids_to_tokens(3 + 5 + 2) == "<img_1_2>"
    indices = torch.tensor([[0, 1, 2], [4, -1, 4]])
    ids = tokens.ids(indices)
    assert ids.tolist() == [[3, 9, 15], [7, -1, 17]]
    assert torch.equal(tokens.indices(ids), indices)
    assert words("<img_0_4>a")["input_ids"][0] == 7
    single = CodeTokens.add(words, FSQ([3, 3]), "au")
    assert torch.equal(single.indices(single.ids(torch.arange(9))), torch.arange(9))
    for call, value in (
        (tokens.indices, torch.tensor([[0, 9, 15]])),
        (tokens.ids, torch.tensor([[5, 0, 0]])),
        (tokens.ids, torch.zeros(2, 2).long()),
    ):
        with pytest.raises(ValueError, match="must"):
            call(value)
    with pytest.raises(ValueError, match="already"):
        CodeTokens.add(words, quantizer, "img")
    with pytest.raises(ValueError, match="name"):
        CodeTokens.add(words, quantizer, "<img")
