"""What can be said of the numbers in a traced program without running it, for each kind of operation.

An operation without a rule may give anything, so a missing rule costs certificates, never correctness.
"""

from jaxprune.structure.bounds import calls, elementwise, logic, moves, sums
from jaxprune.structure.bounds.base import Fault, Range, Rule, Step, Value

__all__ = ["RULES", "Fault", "Range", "Rule", "Step", "Value"]

#: By the name of the operation.
RULES: dict[str, Rule] = {**elementwise.RULES, **logic.RULES, **moves.RULES, **sums.RULES, **calls.RULES}
