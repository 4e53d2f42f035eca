"""KV-cache methods in the Language Model Evaluation Harness: importing this package registers the model ``tokenry`` there.

The harness finds models of other packages only when their module was imported, so start it as ``python -m tokenry.lab.harness``
with the arguments of ``lm_eval``.
"""

from tokenry.errors import optional

optional("lm_eval.models.huggingface", "harness")

from tokenry.lab.harness.model import TokenryLM, harness_method  # noqa: E402
from tokenry.lab.harness.recall import TASKS, recall_lines  # noqa: E402
from tokenry.lab.harness.scoring import Scored, ScoredBatch, score_continuations  # noqa: E402

__all__ = ["TASKS", "Scored", "ScoredBatch", "TokenryLM", "harness_method", "recall_lines", "score_continuations"]
