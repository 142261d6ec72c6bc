"""The ingresses: what a client says, up to the point where its octets are payload.

Vocabulary: a *listener* is the socket that accepts; an *ingress* speaks one protocol with the client and fills in the
session; one file for each command carries it out: decide, open, answer, carry.
"""
