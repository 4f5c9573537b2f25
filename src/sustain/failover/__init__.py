"""Who runs the workload, and what happens when a host stops: `sustain run`.

`lease/` says who may; `decide` (pure) says what to do; `observe` reads what is; `supervise` does it.
"""
