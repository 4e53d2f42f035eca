"""SentencePiece `.model` files as `tokenizers.Tokenizer` objects: read by sentencepiece, converted by transformers.

Known differences from sentencepiece: rare pairs of combining marks, Unigram cuts of equal score, and control pieces, which are
special tokens and found inside a text.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tokenry.errors import MissingDependencyError, optional
from tokenry.extras import require
from tokenry.hosts.release import INSTALLED

_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL = 2, 3


def read_sentencepiece(path: str | Path) -> Any:
    """The `ModelProto` of a `.model` file.

    Raises:
        MissingDependencyError: sentencepiece is not installed.
        ValueError: it is no such file, or of a type (word, char) that has no `tokenizers` model.
    """
    require("sentencepiece")
    model = optional("sentencepiece.sentencepiece_model_pb2", "sentencepiece").ModelProto()
    try:
        model.ParseFromString(Path(path).read_bytes())
    except optional("google.protobuf.message", "sentencepiece").DecodeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: it cannot be read as one") from error
    algorithm = model.trainer_spec.model_type
    if not model.pieces or algorithm not in (_UNIGRAM, _BPE):
        reason = f"its model type {algorithm} is neither Unigram nor BPE" if model.pieces else "it holds no pieces"
        raise ValueError(f"{path} is not a SentencePiece model that can be used: {reason}")
    return model


def tokenizer_of_sentencepiece(model: Any) -> Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of a `ModelProto`; no special tokens are added to a text.

    Raises:
        MissingDependencyError: transformers is older than 5.24, whose converter is the first that follows the whole file.
    """
    from transformers.convert_slow_tokenizer import SpmConverter

    convert: Any = SpmConverter.build_tokenizer_from_spm_proto
    if "legacy" not in inspect.signature(convert).parameters:
        raise MissingDependencyError(
            f"SentencePiece files need transformers 5.24 or later, got {INSTALLED}; run: pip install 'transformers>=5.24'"
        )
    vocabulary: Any = [(piece.piece, piece.score) for piece in model.pieces]
    if model.trainer_spec.model_type == _BPE:
        vocabulary = {text: index for index, (text, _) in enumerate(vocabulary)}
    tokenizer = convert(model, vocabulary)
    special = [piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer
