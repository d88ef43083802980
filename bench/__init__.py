"""How fast echod is, beside others and beside itself: `make bench` and `make bench-gate`.

    servers.py    echod and its peers: what is here is found, compiled, started, stopped
    load.py       the load, load.c, and what one run of it came to
    alone.py      what echod is measured for by itself: start, reload, memory
    count.py      instructions of a worker for each message, by perf or by valgrind
    goals.py      what is to be reached, and how far away it is
    report.py     the table, the JSON file and the plot
    gate.py       holds the instructions against the best figure that was ever recorded, best.json
    peers/        the other servers, each the least that its language or library lets one write

Rules
    Servers run on CPU 0 and the load on CPU 1. In a round all of them are up and take many turns of 50 ms: in one, each
    server comes once, in an order by chance. Only ratios within a turn mean anything, since a machine's speed varies;
    their median over all turns is what is reported, with the quartiles. Each round starts the servers anew, since where
    a process happens to lie in memory is worth some percent. What a server has to clear away after its turn falls into
    that of the next, which is why the order is by chance, and what is judged a median.
    Every byte is compared; a server that returns a wrong one ends the bench.
    The wall clock of a machine that has other work lies. "For each CPU second" divides by the CPU time of the server
    instead, and instructions are steadier still: one of the two decides where they disagree.
    The load must not be what is measured: its own CPU time is reported as its share of the time that the run took.
"""
