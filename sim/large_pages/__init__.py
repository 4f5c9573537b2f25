"""Simulated processes whose use of each page is known, for policies of large pages. All of it is simulated.

Used by the tests of `decide`, which close the loop with it, and by `bench/large_pages_policies.py`, where our policy
and its peers run the same loads.
"""
