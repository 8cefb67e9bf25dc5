"""A traced function: how it is made, one neutral pass over it, and what is known of each operation.

``jaxprs`` follows a program with values of any kind. ``labels`` and ``narrowing``, ``ranges`` and ``bounding`` are two
kinds and their readers; ``primitives`` holds, in a file for each family of operations, the rules for both.
"""
