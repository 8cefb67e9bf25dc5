"""A compressed network learns from its dense original, without labels.

The original answers any input. What a compressed network keeps in numbers that cost no bytes (scales, shared values,
biases, the weights that are left) is trained until its outputs are near those answers. Sources: Hinton et al. 2015
(arXiv:1503.02531) for learning from outputs; Bengio et al. 2013 (arXiv:1308.3432) and Esser et al. 2020
(arXiv:1902.08153) for gradients through rounding, and to its steps.
"""

from jaxprune.recovery.distilling import Recovered, RecoverySpec, recover

__all__ = ["Recovered", "RecoverySpec", "recover"]
