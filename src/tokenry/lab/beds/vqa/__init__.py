"""The visual-question-answering bed, its training, and hub models beside it."""

from tokenry.lab.beds.vqa.bed import load_vqa, vqa_items

__all__ = ["load_vqa", "vqa_items"]
