"""Many scans with one model: what is asked for (listing), reading, network and writing at once (overlap), each scan's
three steps (worker), what was done (ledger), and the run as a whole (run)."""
