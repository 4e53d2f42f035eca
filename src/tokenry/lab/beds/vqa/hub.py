"""A user's or a paper's vision-language model with its processor: pictures and questions in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_NEW_TOKENS = 16


class HubModel:
    """A supported vision-language model from a local folder or the hub, answering questions about pictures."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(model)
        self.processor.tokenizer.padding_side = "left"
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
        self.model = loaded.to(device).eval()
        self.device = device

    def encode(self, pictures: Sequence[Any], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Model inputs of a left-padded batch, through the processor's chat template where it has one."""
        texts = [self._prompt(question) for question in questions]
        inputs = self.processor(text=texts, images=[[p] for p in pictures], padding=True, return_tensors="pt")
        return {k: v.to(self.device) for k, v in inputs.items() if isinstance(v, torch.Tensor)}

    def answers(self, pictures: Sequence[Any], questions: Sequence[str]) -> list[str]:
        """Greedy answers of a batch."""
        inputs = self.encode(pictures, questions)
        out = self.model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
        return self.processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _prompt(self, question: str) -> str:
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return f"USER: {self.processor.image_token}\n{question} ASSISTANT:"
