"""Samplers: which items the sampled losses compare a target with."""
