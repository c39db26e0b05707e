"""The artifact file: container, header, planes, kept tensors."""
