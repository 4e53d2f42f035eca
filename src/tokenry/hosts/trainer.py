"""transformers' Trainer, told to say how far it is."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tokenry.core.progress import Progress


class TellProgress(TrainerCallback):
    """Calls ``progress("step s", fraction)`` after every step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """See the class."""
        self.progress(f"step {state.global_step}", state.global_step / max(state.max_steps, 1))
