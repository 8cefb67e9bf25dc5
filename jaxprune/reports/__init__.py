"""What was removed, what is left and what it costs: a table, a page and pictures for people, integers for programs.

:func:`report` counts on the host, in integers of any size; :func:`coded_bytes` is the same count inside a jitted sweep.
The formula of the bytes is in :mod:`jaxprune.reports.sizes`. A
:class:`Report` is printed, drawn (``plot``), written as a page
(``to_html``) or taken apart (``to_dict``); :func:`plot_frontier` draws what a sweep has found. The curves say what many
settings do to the weights of each leaf, without a model.
"""

from jaxprune.reports.counting import report
from jaxprune.reports.curves import entropy_curve, quantization_error_curve, sparsity_curve
from jaxprune.reports.plots import plot_frontier
from jaxprune.reports.sizes import coded_bytes
from jaxprune.reports.summary import Report

__all__ = [
    "Report",
    "coded_bytes",
    "entropy_curve",
    "plot_frontier",
    "quantization_error_curve",
    "report",
    "sparsity_curve",
]
