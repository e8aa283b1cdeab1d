"""How fast: every graph of a bundle as an instrument runs it, beside what people would use instead.

A graph's step is everything that a played token costs: the grammar mask, sampling, the host's work and
onnxruntime. A peer's step is its forward alone, so the ratio leaves out what sampling would add there. Every
state is full before anything is timed, everybody has a process of its own, and all take turns in one run.

    run           all of it, as one result
    architecture  what the model implies: bytes and multiply-adds of a token
    graphs        a graph's steps, segments, start and pace
    peers         the same weights in other runtimes
    limit         what reading memory alone would take
    profile       where the time of a step goes
    growth        cost against horizon, position, size, threads and schedule
"""
