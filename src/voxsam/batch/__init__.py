"""Many scans with one model: the scans to do (listing), each one's three steps, with reading, network and writing
overlapped (worker), and the run as a whole with its table (run)."""
