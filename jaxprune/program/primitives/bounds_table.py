"""What can be said of the numbers in a traced program without running it, for each kind of operation.

An operation without a rule may give anything, so a missing rule costs certificates, never correctness.
"""

from jaxprune.program.primitives.calls import bounds as calls
from jaxprune.program.primitives.elementwise import bounds as elementwise
from jaxprune.program.primitives.elementwise import logic_bounds as logic
from jaxprune.program.primitives.ranges import Fault, Range, Rule, Step, Value
from jaxprune.program.primitives.reductions import bounds as sums
from jaxprune.program.primitives.shapes import bounds as moves

__all__ = ["RULES", "Fault", "Range", "Rule", "Step", "Value"]

#: By the name of the operation.
RULES: dict[str, Rule] = {**elementwise.RULES, **logic.RULES, **moves.RULES, **sums.RULES, **calls.RULES}
