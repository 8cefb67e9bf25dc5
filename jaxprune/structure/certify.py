"""placeholder until merged"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    exact: bool = True
    faults: tuple = ()
