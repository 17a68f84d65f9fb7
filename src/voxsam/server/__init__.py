"""`voxsam serve`: scans are opened, clicked and saved over HTTP. The server knows no tensors: sessions do the work.

settings   what the server is told when it starts
device     the one model, and the one thread that works with it, for every client in turn
store      the sessions that are open: leases, time-outs, capacity, memory
app        make_app: all of it as one HTTP application
"""
