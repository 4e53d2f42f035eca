"""Orders in which a language model can read M books: in parallel (as they are), flattened, or delayed; runs as one.

Delay (MusicGen): book m is shifted by m frames, so that a frame's fine books can look at its coarse ones. Padding is -1.
Everything here has its exact inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenry.core.checks import check_int, check_tensor


def delay_books(codes: Tensor, *, fill: int = -1) -> Tensor:
    """Codes [B,T,M] -> [B,T+M-1,M]: book m starts m frames later; the corners hold `fill`."""
    frames, books = _checked(codes)
    made = torch.full((len(codes), frames + books - 1, books), fill, dtype=codes.dtype, device=codes.device)
    for book in range(books):
        made[:, book : book + frames, book] = codes[..., book]
    return made


def undelay_books(delayed: Tensor) -> Tensor:
    """Inverse of `delay_books`: [B,T+M-1,M] -> [B,T,M].

    Raises:
        ValueError: fewer than M rows of frames.
    """
    size, books = _checked(delayed)
    if size < books:
        raise ValueError(f"delayed codes of {books} books must have at least {books} frames, got {size}")
    frames = size - books + 1
    return torch.stack([delayed[:, book : book + frames, book] for book in range(books)], dim=-1)


def flatten_books(codes: Tensor, codebook_sizes: Sequence[int] | None = None) -> Tensor:
    """Codes [B,T,M] -> [B,T*M], frame by frame, coarse book first.

    With `codebook_sizes` every book gets its own range of one vocabulary (offset m K for equal books); -1 stays -1.
    """
    _checked(codes)
    if codebook_sizes is None:
        return codes.flatten(1)
    return torch.where(codes < 0, codes, codes + _offsets(codes.shape[2], codebook_sizes, codes)).flatten(1)


def unflatten_books(flat: Tensor, n_codebooks: int, codebook_sizes: Sequence[int] | None = None) -> Tensor:
    """Inverse of `flatten_books`: [B,T*M] -> [B,T,M].

    Raises:
        ValueError: the length is not a multiple of M, or a code lies outside its book's range.
    """
    check_tensor("flat", flat)
    check_int("n_codebooks", n_codebooks, 1)
    if flat.dim() != 2 or flat.shape[1] % n_codebooks:
        raise ValueError(f"flat must have shape [B, T * {n_codebooks}], got {list(flat.shape)}")
    codes = flat.unflatten(1, (-1, n_codebooks))
    if codebook_sizes is None:
        return codes
    codes = torch.where(codes < 0, codes, codes - _offsets(n_codebooks, codebook_sizes, codes))
    sizes = torch.tensor(list(codebook_sizes), device=codes.device)
    if bool(((codes < -1) | (codes >= sizes)).any()):
        raise ValueError("flat must hold a code of book m at every place m of a frame")
    return codes


def deduplicate(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of equal frames as one: codes [B,T,M] -> codes [B,R,M] (-1 beyond a row's runs) and durations int64 [B,R] (0 there).

    Frames count as equal when all books agree; frames of -1 after a row's end are left out.
    """
    frames, books = _checked(codes)
    real = (codes >= 0).any(-1)
    begins = real.clone()
    begins[:, 1:] &= (codes[:, 1:] != codes[:, :-1]).any(-1)
    runs = begins.long().cumsum(1) - 1
    size = int(runs.max()) + 1 if frames else 0
    durations = torch.zeros(len(codes), size, dtype=torch.int64, device=codes.device)
    durations.scatter_add_(1, runs.clamp_min(0), real.long())
    made = torch.full((len(codes), size, books), -1, dtype=codes.dtype, device=codes.device)
    row, frame = begins.nonzero(as_tuple=True)
    made[row, runs[row, frame]] = codes[row, frame]
    return made, durations


def reduplicate(codes: Tensor, durations: Tensor) -> Tensor:
    """Inverse of `deduplicate`: runs [B,R,M] and durations [B,R] -> codes [B,T,M], T the longest row's frames, -1 after a row.

    Raises:
        ValueError: shapes differ, or a duration below 0.
    """
    _checked(codes)
    check_tensor("durations", durations)
    if durations.shape != codes.shape[:2] or durations.is_floating_point() or bool((durations < 0).any()):
        raise ValueError(
            f"durations must be integers >= 0 {list(codes.shape[:2])}, got {durations.dtype} {list(durations.shape)}"
        )
    rows = [row.repeat_interleave(count, dim=0) for row, count in zip(codes, durations, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _checked(codes: Tensor) -> tuple[int, int]:
    check_tensor("codes", codes)
    if codes.dim() != 3 or codes.is_floating_point():
        raise ValueError(f"codes must be integers [B, T, M], got {codes.dtype} {list(codes.shape)}")
    return codes.shape[1], codes.shape[2]


def _offsets(books: int, codebook_sizes: Sequence[int], like: Tensor) -> Tensor:
    if len(codebook_sizes) != books:
        raise ValueError(f"codebook_sizes must have one entry per book ({books}), got {len(codebook_sizes)}")
    sizes = torch.tensor([check_int("codebook_sizes", size, 1) for size in codebook_sizes], device=like.device)
    return sizes.cumsum(0) - sizes
