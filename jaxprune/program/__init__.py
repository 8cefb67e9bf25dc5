"""A traced function: its values and operations, and running it again, in full or on less."""
