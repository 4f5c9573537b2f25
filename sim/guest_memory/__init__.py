"""Simulated guests and a simulated host, for policies of guest memory. Whatever comes from here is simulated.

Used by the tests of `decide`, which close the loop with it, and by `bench/guest_memory_policies.py`, where our policy
and its peers run the same loads.
"""
