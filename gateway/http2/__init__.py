"""HTTP/2 (RFC 9113) for the gRPC listener: frames, header compression, one connection, and gRPC on top of it.

grpcio's own asyncio server costs several times as much processor time for a call as everything that the gateway
does with it (docs/decisions/0003). Header compression is python-hyper's ``hpack``; what is here is the framing, flow
control, and the limits that a public port needs.
"""
