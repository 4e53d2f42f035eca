"""The ways of asking a model to replace the marked words of a passage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenry.text.consistency.marking import BRACKETS, MarkedPassage, bracketed
from tokenry.text.consistency.spans import Word, split_words

INSTRUCTION = (
    "In the text below some words stand in square brackets. Write the text again with each bracketed word replaced by another "
    "word that fits there. Leave out the brackets, change nothing else, and answer with the text only."
)
# (passage, word to be replaced, replacement)
EXAMPLES = (
    ("The old farmer sold a huge barn near the river last winter.", "huge", "large"),
    ("She gave a quick answer and left the room without her coat.", "answer", "reply"),
    ("Every morning the children start their walk to the village school.", "start", "begin"),
    ("In the end the two companies signed the contract in London.", "companies", "firms"),
)


@dataclass(frozen=True)
class PromptFormat:
    """A way of asking.

    Attributes:
        name: what results call it.
        render: (passage, tokenizer) -> the prompt as text.
        marked: whether the prompt shows the marked passage; otherwise it shows the plain one and names the words.
        stop: generation of a row ends before this text.
        special: whether special tokens in the rendered text are meant as such (chat templates); otherwise the tokenizer adds
            its own beginning.
    """

    name: str
    render: Callable[[MarkedPassage, Any], str]
    marked: bool = True
    stop: str | None = None
    special: bool = False


def _instruction(passage: MarkedPassage, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("format 'instruction' needs a tokenizer with a chat template; use 'few_shot' or 'copy_edit'")
    message = {"role": "user", "content": f"{INSTRUCTION}\n\n{passage.marked}"}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def _few_shot(passage: MarkedPassage, tokenizer: Any) -> str:
    spaced = passage.marked != bracketed(passage.text, _words(passage), "around_word")[0]
    shots = []
    for text, word, other in EXAMPLES:
        start = text.index(word)
        marked, _ = bracketed(text, [Word(word, start, start + len(word))], "around_space" if spaced else "around_word")
        shots.append(f"Text: {marked}\nRewritten: {text.replace(word, other, 1)}\n\n")
    return "".join(shots) + f"Text: {_one_line(passage.marked)}\nRewritten:"


def _copy_edit(passage: MarkedPassage, tokenizer: Any) -> str:
    shots = [f"Text: {text}\nReplace: {word}\nResult: {text.replace(word, other, 1)}\n\n" for text, word, other in EXAMPLES]
    asked = ", ".join(target.text for target in passage.targets)
    return "".join(shots) + f"Text: {_one_line(passage.text)}\nReplace: {asked}\nResult:"


def _words(passage: MarkedPassage) -> list[Word]:
    every = split_words(passage.text)
    return [every[target.index] for target in passage.targets]


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("passages of this format must be one line each, got a line break; join the lines first")
    return text


FORMATS: dict[str, PromptFormat] = {
    "instruction": PromptFormat("instruction", _instruction, special=True),
    "few_shot": PromptFormat("few_shot", _few_shot, stop="\n\n"),
    "copy_edit": PromptFormat("copy_edit", _copy_edit, marked=False, stop="\n\n"),
}

__all__ = ["BRACKETS", "EXAMPLES", "FORMATS", "INSTRUCTION", "PromptFormat"]
