"""`voxsam serve`: open, click and save scans over HTTP. The server itself handles no tensors; the worker does the work.

worker     the one model, and the one thread that works with it, for every client in turn
sessions   the open scans: leases, time-outs, capacity, total memory
store      the state folder: what clients did, so that it outlives the server
app        make_app: all of it as one HTTP application, behind guard

A click: api/sessions (a route) -> saved (the session: its turn, its journal) -> worker -> voxsam.Session.
"""
