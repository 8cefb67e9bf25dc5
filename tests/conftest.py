"""Hypothesis profiles: the same examples in every run, no time limit on an example that compiles.

``--hypothesis-profile quick`` takes fewer of them.
"""

from hypothesis import settings

settings.register_profile("tests", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("quick", derandomize=True, deadline=None, max_examples=8)
settings.load_profile("tests")
