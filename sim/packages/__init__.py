"""Simulated hosts of several processor packages, for policies that place groups of threads. All of it is simulated.

The only place where watts are modelled: on a real host they are measured. Used by the tests of `decide`, which close
the loop with it, and by `bench/packages_policies.py`, where our policy, its peers and an optimum run the same loads.

The model, from the outside in: `run` drives a policy over a `groups.Load`; `machine` serves the groups' work on the
packages they are placed on; `residency` turns use and wake-ups of cores into shares of time in idle states of cores and
packages; `power` turns those into watts by the constants of a host in `hardware`. `published` holds what others have
measured and how far the model is from it.
"""
