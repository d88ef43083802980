"""Acts: sockets, the three lists, the loop."""
