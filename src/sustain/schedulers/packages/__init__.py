"""Power-aware placement: which packages a host's groups of threads run on, by what that saves in watts.

`model` is what is seen and done, `sense` sees it, `decide` decides, `act` does it and puts it back.
"""
