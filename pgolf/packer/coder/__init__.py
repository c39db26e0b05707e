"""Integer matrices <-> the bytes of one entropy-coded stream."""
