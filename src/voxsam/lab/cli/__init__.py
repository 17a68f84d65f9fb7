"""The commands of the laboratory, one thin file each."""
