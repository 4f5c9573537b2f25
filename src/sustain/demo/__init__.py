"""`sustain demo`: a real application survives the loss of its host, in front of your eyes.

`hosts` starts and kills the two hosts, `play` is the story, `recount` the judge, which shares nothing
with the store, and `show` prints. The application is `examples/index_docs.py`. Two directories and two
sets of processes on one machine stand for two hosts; what is simulated by that is only the network
between them, which here is loopback.
"""
