"""How fast the kernels, loading and evaluation are, against what the same device does at best in the same run: `pgolf bench`."""
