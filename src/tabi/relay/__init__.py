"""Moving octets once both ends are open.

Vocabulary: a *relay* joins a client's socket and a server's; a *flow* is one direction of it, from its *source* to its
*sink*, uplink (to the server) or downlink; a *pipe* carries a flow inside the kernel. No task, no object per chunk.
A flow may pass through a *stage*. A *carrier* gets both streams: the relays, or a program's own carrier.
"""
