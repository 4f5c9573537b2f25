"""The others: each file sets up one peer as its own documentation recommends for the job, and times it.

Every timed loop lies inside the peer's own class, written as tightly as ours, so that no contender pays
for an indirection of the harness.
"""
