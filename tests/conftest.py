"""One hypothesis profile for all tests: the same examples in every run, no time limit on an example that compiles."""

from hypothesis import settings

settings.register_profile("tests", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("tests")
