"""Schedulers: what changes a host for the better, by measure. Each is sense → decide → act.

`sense` reads the host into one observation, a value that can be written to a file. `decide` is pure: observation,
state, policy and time in; a plan with reasons, and the next state, out. `act` carries a plan out, looks at what
really happened, and can put everything back. `loop` runs one of them in time; `journal` remembers prior values so
that they can be put back also after SIGKILL.
"""
