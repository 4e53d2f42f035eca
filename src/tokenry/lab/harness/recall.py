"""The task of this package: which line follows, in a scene that stands in the context?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"
"""Folder with the task file ``recall.yaml`` and its data, for ``--include_path``."""


def recall_lines(**options: Any) -> Any:
    """The items of ``tokenry_recall`` as a ``datasets.DatasetDict``; `options` of the harness are not used."""
    from datasets import load_dataset  # pyright: ignore[reportMissingImports]

    return load_dataset("json", data_files={"test": str(TASKS / "recall.jsonl")})
