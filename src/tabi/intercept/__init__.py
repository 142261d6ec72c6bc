"""Looks into TLS and HTTP, for the sessions that `[[intercept]]` chooses: a carrier, as the relays are one.

Nothing here is imported where no configuration wants it. It needs ``pip install 'tabi[intercept]'``.

    authority    the certificate and key of ours that clients trust, with which it signs
    leaf         a certificate for one destination, signed by the authority, that says what the destination's says
    verdict      what OpenSSL says of a destination's certificate
    mirror       show the client what the destination has shown: never more good than that
"""
