"""`voxsam serve`: scans are opened, clicked and saved over HTTP. The server knows no tensors: the worker does the work.

worker     the one model, and the one thread that works with it, for every client in turn
sessions   the scans that are open: leases, time-outs, capacity, the memory of all
store      the state folder: what clients did, so that it outlives the server
app        make_app: all of it as one HTTP application, within guard

A click: api/sessions (a route) -> saved (the session: its turn, its journal) -> worker -> voxsam.Session.
"""
