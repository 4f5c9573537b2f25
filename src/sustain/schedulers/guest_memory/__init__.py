"""The guest memory scheduler: what each guest's memory is used for, how much it should have, and how to move it.

`model` has the values that everything else speaks of; `sense` makes observations, `decide` plans, `act` moves memory.
"""
