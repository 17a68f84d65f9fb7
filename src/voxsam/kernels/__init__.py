"""Faster forms of parts of the network, each equal to the plain one."""
