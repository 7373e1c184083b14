"""Losses over large item catalogs as functions of tensors."""
