"""The closed form, as derive writes it."""
