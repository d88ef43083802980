"""Decides. Pure: bytes and times come in, bytes and wishes go out; nothing here opens a socket or reads a clock."""
