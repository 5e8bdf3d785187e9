"""The packets of a vsock device: a header of 44 bytes and, behind it, bytes of a stream. VIRTIO 1.2, 5.10.6."""

from __future__ import annotations

from struct import Struct

# src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt: little endian.
HEADER = Struct("<QQIIIHHIII")

HOST = 2  # the context identifier (CID) of the host, 5.10.4
STREAM = 1  # the only type of socket that is served

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)

# Flags of SHUTDOWN: what its sender will do no more.
NO_RECEIVE, NO_SEND = 1, 2
BOTH = NO_RECEIVE | NO_SEND

# The most bytes that one packet carries: what Linux makes (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE), and a page table of copying.
LENGTH_MAX = 64 * 1024

# An event's only field, and its only value: every connection is gone, and guest_cid is to be read again. 5.10.6.7.
TRANSPORT_RESET = bytes(4)
