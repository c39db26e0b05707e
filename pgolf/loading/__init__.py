"""An artifact back into weights: a state dict or a module, dense or packed, on the host or on a GPU; and what is in it."""
