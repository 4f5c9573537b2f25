"""The host's surfaces: the only code that reads /proc and /sys.

One file per kernel surface. Every reader takes `root` (default "/"), so tests give it a tree of real files;
an OS error becomes a sustain error or None for "unknown" here, with the path. Nothing above is imported from
here.
"""
