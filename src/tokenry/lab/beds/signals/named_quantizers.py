"""Quantizers by name: what `--quantizer NAME --codebook-size K --option key=value` means."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tokenry.core.checks import check_choice, check_int

# level sets of the FSQ paper, every level at least 5
FSQ_LEVELS: dict[int, tuple[int, ...]] = {
    256: (8, 6, 5),
    1024: (8, 5, 5, 5),
    4096: (7, 5, 5, 5, 5),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
}


def build_quantizer(name: str, dim: int, codebook_size: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A quantizer of width `dim` by name.

    Args:
        name: "vq", "rvq", "pq", "aq", "simvq", "fsq", "lfq" or "bsq".
        dim: width of the vectors it takes.
        codebook_size: codes of each book; FSQ takes the level set of the paper for it (256: 8, 6, 5, which has 240), LFQ and
            BSQ need a power of two.
        options: passed on to the class; `levels` (rvq: 2, fsq: a list), `groups` (pq: 4) and `books` (aq: 2) too.

    Raises:
        ValueError: an unknown name or option, or a size that the quantizer cannot have.
    """
    check_choice("quantizer", name, tuple(_BUILDERS))
    check_int("codebook_size", codebook_size, 2)
    given = dict(options or {})
    try:
        return _BUILDERS[name](dim, codebook_size, given)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        unknown = str(error).rsplit("'", 2)[1]
        raise ValueError(f"option {unknown!r} is not one of quantizer {name!r}: {_known(name)}") from error


def _known(name: str) -> str:
    import inspect

    import tokenry.codecs
    from tokenry.codecs.vq.lookup import LookupOptions

    skipped = ("self", "dim", "codebook_size", "bits", "options")
    given = inspect.signature(getattr(tokenry.codecs, _CLASSES[name])).parameters
    names = [*given, *(LookupOptions.__annotations__ if "options" in given else ())]
    return ", ".join(name for name in names if name not in skipped)


def parse_option(text: str) -> tuple[str, Any]:
    """``key=value``; the value is JSON, or True, False, None as Python writes them, or else text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"option must be key=value, got {text!r}")
    written = {"True": "true", "False": "false", "None": "null"}.get(value.strip(), value.strip())
    try:
        return key.strip(), json.loads(written)
    except json.JSONDecodeError:
        return key.strip(), value.strip()


def fsq_levels(codebook_size: int) -> tuple[int, ...]:
    """The FSQ paper's level set for a size that is a power of two; ValueError names the sizes there are."""
    if codebook_size not in FSQ_LEVELS:
        sizes = ", ".join(str(size) for size in FSQ_LEVELS)
        raise ValueError(f"codebook_size must be one of {sizes} for fsq without levels, got {codebook_size}")
    return FSQ_LEVELS[codebook_size]


def _bits(name: str, codebook_size: int) -> int:
    bits = int(math.log2(codebook_size))
    if 2**bits != codebook_size:
        raise ValueError(f"codebook_size must be a power of two for {name}, got {codebook_size}")
    return bits


def _class(name: str) -> Any:
    import tokenry.codecs

    return getattr(tokenry.codecs, _CLASSES[name])


_CLASSES = {
    "vq": "VectorQuantizer", "rvq": "ResidualVQ", "pq": "ProductVQ", "aq": "AdditiveVQ", "simvq": "SimVQ", "fsq": "FSQ",
    "lfq": "LFQ", "bsq": "BSQ",
}  # fmt: skip

_BUILDERS: dict[str, Callable[[int, int, dict[str, Any]], nn.Module]] = {
    "vq": lambda dim, size, o: _class("vq")(dim, size, **o),
    "simvq": lambda dim, size, o: _class("simvq")(dim, size, **o),
    "rvq": lambda dim, size, o: _class("rvq")(dim, o.pop("levels", 2), size, **o),
    "pq": lambda dim, size, o: _class("pq")(dim, o.pop("groups", 4), size, **o),
    "aq": lambda dim, size, o: _class("aq")(dim, o.pop("books", 2), size, **o),
    "fsq": lambda dim, size, o: _class("fsq")(o.pop("levels", None) or fsq_levels(size), dim=dim, **o),
    "lfq": lambda dim, size, o: _class("lfq")(_bits("lfq", size), dim=dim, **o),
    "bsq": lambda dim, size, o: _class("bsq")(_bits("bsq", size), dim=dim, **o),
}
