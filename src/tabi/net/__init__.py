"""Sockets on asyncio, without asyncio's transports.

Vocabulary: a *reactor* tells a handler that its descriptor is ready; a *stream* is a socket that a task can wait on;
*dial* opens a connection, *listen* accepts them, *resolve* turns names into addresses. A *deadline* ends a wait.
"""
