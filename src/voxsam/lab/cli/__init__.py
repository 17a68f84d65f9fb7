"""The laboratory's commands, one thin file each."""
