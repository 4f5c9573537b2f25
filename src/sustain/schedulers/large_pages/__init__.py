"""The large-page prioritiser: counts which 4 KiB pages are used in each block of 2 MiB, and maps large where it pays.

`model` has the values, `sense` and `counting` make them, `decide` plans, `act` carries out and puts back.
"""
