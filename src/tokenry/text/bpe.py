"""What the tokenizer trainers of this wing share: re-readable text, stock byte-level BPE, conversion for transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

from tokenry.core.checks import check_int
from tokenry.errors import UnsupportedModelError
from tokenry.text.reading import blocks_of, format_of, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Texts = Iterable[str] | Callable[[], Iterable[str]] | Path
Source = Callable[[], Iterator[str]]
ALPHABET = tuple(sorted(ByteLevel.alphabet()))
MOST_ENTRIES = 1 << 24  # the stock trainer makes room for as many as are asked for, at once
MOST_COUNT = 2**64 - 1  # what it counts with
LONGEST = 10_000
CUT = re.compile(rf".{{1,{LONGEST}}}(?=\s|$)|.{{1,{LONGEST}}}", re.DOTALL)  # before white space where there is any


def text_source(texts: Texts | Sequence[Path], *, name: str = "texts") -> Source:
    """A function that starts reading `texts` from the beginning each time it is called.

    Args:
        texts: strings in memory; a function that returns a fresh iterator; or a path, or a list of paths, whose lines are read
            as they are needed (packed, UTF-16 and .jsonl files too: `tokenry.text.reading`). An iterator that can be read only
            once is kept in memory.
        name: what error messages call the argument.

    Raises:
        TypeError: a single string (it would be read letter by letter), or an item that is not a string.
        ValueError: an item with a lone surrogate, or nothing to read at all (raised while reading).
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name} must be a collection of strings, a function or a Path, got one {type(texts).__name__}")
    if isinstance(texts, Path):
        return _of_files([texts], name)
    if callable(texts):
        return lambda: _checked(texts(), name)
    if not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a collection of strings, a function or a Path, got {type(texts).__name__}")
    held = list(texts) if isinstance(texts, Iterator) else texts
    first = next(iter(held), None)
    if isinstance(first, Path):
        return _of_files(held, name)
    return lambda: _checked(held, name)  # pyright: ignore[reportArgumentType]


def _of_files(paths: Iterable[Any], name: str) -> Source:
    files = [Path(p) for p in paths]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{name} must be files that exist, got {str(file)!r}")

    def lines() -> Iterator[str]:
        for file in files:
            form = format_of(file)
            for first, block in blocks_of(str(file), form, 1 << 20):
                # lines keep their ends, which are part of what is learned; a field of JSON lines has none
                yield from StringIO(block, newline="") if form.field is None else texts_of(block, form, str(file), first)

    return lambda: _checked(lines(), name)


def _checked(texts: Iterable[str], name: str) -> Iterator[str]:
    filled = False
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a str, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name}[{index}] must be valid Unicode, got a lone surrogate at {error.start}") from None
        filled = filled or bool(text)
        yield text
    if not filled:
        raise ValueError(f"{name} must hold at least one non-empty string")


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """The texts, those with a run of more than 10,000 characters without white space cut into pieces.

    The stock trainer's time grows with the square of the length of a word.
    """
    for text in texts:
        if len(text) > LONGEST and max(map(len, text.split()), default=0) > LONGEST:
            yield from CUT.findall(text)
        else:
            yield text


def check_size(vocab_size: int, special_tokens: Sequence[str] = ()) -> int:
    """Return `vocab_size` if the 256 bytes and the special tokens fit into it, else raise."""
    check_int("vocab_size", vocab_size, maximum=MOST_ENTRIES)
    least = len(ALPHABET) + len(special_tokens)
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (256 bytes and {len(special_tokens)} special), got {vocab_size}")
    return vocab_size


def byte_level(regex: str | None = None) -> Any:
    """Byte-level pre-tokenizer: the GPT-2 regex by default, or a regex whose matches stand alone."""
    if regex is None:
        return ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


def assemble(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], pre_tokenizer: Any, specials: Sequence[str]
) -> Tokenizer:
    """A byte-level BPE tokenizer from its parts."""
    tokenizer = Tokenizer(models.BPE(dict(vocab), list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def train_bpe(
    texts: Texts,
    vocab_size: int,
    *,
    regex: str | None = None,
    special_tokens: Sequence[str] = (),
    min_frequency: int = 0,
) -> Tokenizer:
    """Ordinary byte-level BPE with the stock trainer; all 256 bytes are in the vocabulary, so every text survives.

    The result may be smaller than `vocab_size` when the text has no pair left to merge: look at ``get_vocab_size()``.

    Raises:
        TypeError, ValueError: see `text_source` and `check_size`.
    """
    check_size(vocab_size, special_tokens)
    check_int("min_frequency", min_frequency, 0, MOST_COUNT)
    tokenizer = assemble({}, [], byte_level(regex), ())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=list(ALPHABET),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    tokenizer.train_from_iterator(bounded(text_source(texts)()), trainer)
    return tokenizer


def bpe_parts(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, in order of rank, of a BPE tokenizer.

    Raises:
        UnsupportedModelError: the model is not BPE.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UnsupportedModelError.of(tokenizer, ["tokenizers.Tokenizer"])
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("type") != "BPE":
        raise UnsupportedModelError.of(
            tokenizer, ["tokenizers.Tokenizer with a BPE model"], reason=f"model {model.get('type')}"
        )
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return model["vocab"], merges  # pyright: ignore[reportReturnType]


def rebuild(
    tokenizer: Tokenizer, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], pre_tokenizer: Any = None
) -> Tokenizer:
    """`tokenizer` with another BPE vocabulary, and all else that it has.

    Normaliser, decoder, post-processor, model options and added tokens are carried over; added tokens that are not in `vocab`
    stand behind it, in their order, and the post-processor and padding follow their new ids.

    Args:
        tokenizer: a BPE tokenizer.
        vocab: ids 0, 1, ... of the new vocabulary.
        merges: in order of rank.
        pre_tokenizer: in place of the tokenizer's own; None keeps that.
    """
    definition = json.loads(tokenizer.to_str())
    added = [token for token in definition["added_tokens"] if token["content"] not in vocab]
    places = dict(vocab) | {token["content"]: len(vocab) + i for i, token in enumerate(added)}
    for token in definition["added_tokens"]:
        token["id"] = places[token["content"]]
    definition["added_tokens"].sort(key=lambda token: token["id"])
    definition["model"] |= {"vocab": dict(vocab), "merges": [list(pair) for pair in merges]}
    _renumber(definition["post_processor"], places)
    if definition["padding"]:
        definition["padding"]["pad_id"] = places.get(definition["padding"]["pad_token"], definition["padding"]["pad_id"])
    made = Tokenizer.from_str(json.dumps(definition))
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    return made


def _renumber(processor: Any, places: Mapping[str, int]) -> None:
    """Give the special tokens of a post-processor the ids that they have now."""
    for part in (processor or {}).get("processors", [processor] if processor else []):
        for name in ("sep", "cls"):
            if name in part:
                part[name] = [part[name][0], places[part[name][0]]]
        for special in part.get("special_tokens", {}).values() if isinstance(part.get("special_tokens"), dict) else ():
            special["ids"] = [places[token] for token in special["tokens"]]


def truncate(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer with its last merges and what they make dropped: what training to the smaller size would have given.

    `vocab_size` counts the model's vocabulary; added tokens stay, behind it where they stood there. Everything else that the
    tokenizer has is carried over.

    Raises:
        UnsupportedModelError: no BPE, or a vocabulary not in order of training (SentencePiece puts the characters last).
        ValueError: `vocab_size` is smaller than the part that is not made by merges.
    """
    check_int("vocab_size", vocab_size, 1)
    vocab, merges = bpe_parts(tokenizer)
    made = {a + b for a, b in merges}
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    base = [token for token in vocab if token not in made]
    if vocab_size < len(base):
        raise ValueError(f"vocab_size must be at least {len(base)} (bytes and special tokens), got {vocab_size}")
    late = [token for token in base if vocab[token] >= vocab_size and token not in added]
    if late:
        raise UnsupportedModelError.of(
            tokenizer,
            ["BPE vocabularies in order of training"],
            reason=f"pieces that no merge makes stand at its end ({late[0]!r} has id {vocab[late[0]]}) and would be lost",
        )
    kept = {token: index for token, index in vocab.items() if index < vocab_size}
    shorter = [(a, b) for a, b in merges if a in kept and b in kept and a + b in kept]
    return rebuild(tokenizer, kept, shorter)


def to_transformers(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer as a ``PreTrainedTokenizerFast``: save it with ``save_pretrained``, load it without this library.

    `options` are those of the class, such as ``eos_token="<|end|>"`` or ``padding_side="left"``.
    """
    from transformers import PreTrainedTokenizerFast

    copy = Tokenizer.from_str(tokenizer.to_str())  # the class changes padding and truncation of the object it is given
    return PreTrainedTokenizerFast(tokenizer_object=copy, **({"clean_up_tokenization_spaces": False} | options))
