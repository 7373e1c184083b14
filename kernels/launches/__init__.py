"""Launching the Triton kernels.

limits.py      hidden sizes and types that the kernels take
table.py       launches as data
autotune.py    launches chosen by time, where a user asks for it
call.py        the arguments that every operator passes to its kernels
"""
