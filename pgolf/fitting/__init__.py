"""A checkpoint into a byte budget: a plan for every tensor, one knob, trials, a search, a deadline, an estimate."""
