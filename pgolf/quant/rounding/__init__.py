"""Rounding with error feedback, column by column, and the trellis search inside it."""
