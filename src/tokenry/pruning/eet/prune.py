"""Content-based token pruning on a vision transformer, with one line."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenry.hosts.vision import BlockSignals
from tokenry.pruning.eet.importance import content_importance
from tokenry.pruning.vit_schedule import PatchPruner


@dataclass(frozen=True)
class EET(PatchPruner):
    """Content-based token pruning (CTP): ``with EET(keep={3: 0.5, 7: 0.5, 9: 0.25}).attach(vit): vit(pixels)``.

    After block b only the patches with the largest `content_importance`, as block b itself computed it, go on; CLS and
    other prefix tokens always do. The default schedule is the paper's, for 12 blocks; other depths need `keep`
    (`tokenry.pruning.vit_schedule.scaled_schedule` moves the paper's). Kept patches stay in image order; the released
    code sorts them by importance, which attention does not see.
    """

    def scores(self, signals: BlockSignals) -> Tensor:
        """Content importance [B,N] of the patches present."""
        return content_importance(signals.cls_attention, signals.content)
