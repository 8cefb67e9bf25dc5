"""A traced function: how it is made, one neutral pass over it, and what is known of each operation.

``visitor`` follows a program with values of any kind; ``labelling`` and ``evaluation`` are two kinds; ``primitives``
holds, in a folder for each family of operations, how they tie axes, how they run narrower, and their bounds.
"""
