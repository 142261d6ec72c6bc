"""Fingerprints: TLS and HTTP as destinations see them, of the client itself (``mirror``) or of a browser (a preset).

presets.py      the names, and what stands behind them
openssl.py      hellos of OpenSSL, by `ssl`
boring.py       hellos of Chrome, by BoringSSL (the package `utls`, in the extra ``fingerprint``)
mirror.py       which of both comes nearest to a client's hello
difference.py   what is not the same in two hellos
fields.py       fields of HTTP/1 in a browser's order
http2.py        HTTP/2 as a browser begins it
choose.py       which session has which: what interception asks
"""
