"""What `GPT` is made of beside attention: one option a file, off unless the configuration asks for it.

No option may have a parameter of two dimensions that is not the matrix of a product or a table of lookups: Muon would
orthogonalise it, and the packer would count it as a matrix whose use nobody saw.
"""
