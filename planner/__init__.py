"""Decides: GPU catalogue, budget, memory and time models, search, plan file, report and the command line.

Nothing here imports torch at module level; a verb that needs it imports it when it runs.
"""
