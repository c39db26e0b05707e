"""The closed loop: what is still float repairs what was rounded."""
