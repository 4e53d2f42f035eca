"""D2O: dynamic discriminative operations for KV-cache compression (Wan et al., ICLR 2025, arXiv 2406.13035).

Layers whose attention is spread evenly get more cache slots; inside a layer the slots with the most accumulated attention and
the latest ones stay; a dropped key that resembles a kept one is merged into it, together with its value, instead of being lost.

- Layer level: density ``F_l = Var_j(c[j])`` of the column sums c of prompt attention; share of layer l
  ``r_l = clamp(softmax_l(-F_l) * L * rho, lower, upper)``, split into heavy hitters and recent slots.
- Token level: accumulated attention s; kept are the first `sinks`, the best `heavy` by s, the last `recent`.
- Compensation: ``u_ij = cos(k_i, k_j)`` (eq. 9), match ``m_i = max_j u_ij``; threshold ``tau_0 = mean m``, then
  ``tau_t = b m_t + (1 - b) tau_{t-1}`` (eq. 10), updated before it is used; accepted when ``m_i >= tau``.
- Merge (eqs. 11-12): ``k_j <- (e k_j + sum_i exp(u_ij) k_i) / (e + sum_i exp(u_ij))``, the same for values.

Paper and released code differ. Defaults follow the paper (weighted merge, b = 0.7), options follow the code
(``merge="scatter_mean"``, ``old_weight=0.5, new_weight=0.5``). In two places the class follows the code. The acceptance
averages m over heads. The density is scaled by min-max over the heads of its layer (``density="released"``), because raw
variances grow with the prompt and their softmax then gives almost the whole budget to one layer.
The prompt is compressed right after it, not at the first decoded token. With grouped heads all of this is per key head.
"""

from __future__ import annotations

from dataclasses import replace

from tokenry.pruning.d2o.layers import attention_density, layer_ratios
from tokenry.pruning.d2o.method import D2O
from tokenry.pruning.d2o.tokens import compress

__all__ = ["D2O", "attention_density", "compress", "layer_ratios"]


def contract_instances() -> dict[str, D2O]:
    """What the contract of KV-cache methods is checked on; one without layers left alone, so that the budget is exact."""
    even = D2O(0.3, skip_layers=(), density=None)
    return {"even layers": even, "scatter mean": replace(even, merge="scatter_mean"), "no merge": replace(even, merge=None)}
