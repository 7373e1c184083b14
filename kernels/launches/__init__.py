"""How the Triton kernels are launched.

limits.py      what the kernels take
table.py       launches as data
autotune.py    launches chosen by time, where a user asks for it
call.py        what every operator passes to its kernels
"""
