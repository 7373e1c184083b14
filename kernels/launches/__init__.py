"""Launching the Triton kernels.

limits.py      hidden sizes and types that the kernels take
table.py       launches as data
autotune.py    launches chosen by time, where a user asks for it
cache.py       small files about a card, kept in the user's cache
call.py        the arguments that every operator passes to its kernels
"""
