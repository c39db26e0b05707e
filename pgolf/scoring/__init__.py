"""How good a model is: bits per byte over windows and documents, test-time training, comparison, audit."""
