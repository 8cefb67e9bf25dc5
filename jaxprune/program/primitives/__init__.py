"""What is known of each operation that a traced function can hold, a folder a family."""
