"""Computes CRC-32C, the checksum of SCTP, iSCSI and the PROXY protocol; zlib and binascii know another CRC-32.

Rule: byte by byte with one table: a header of 2 KiB takes a fraction of a millisecond, once per connection.
"""

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with its bits reversed since the bits of a byte come lowest first (RFC 4960 appendix B)."""

_ONES = 0xFFFFFFFF


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_REMAINDERS = tuple(_remainder(byte) for byte in range(256))


def crc32c(data: bytes) -> int:
    """Return the checksum of `data`."""
    crc = _ONES
    for byte in data:
        crc = crc >> 8 ^ _REMAINDERS[(crc ^ byte) & 0xFF]
    return crc ^ _ONES
