"""The admin API in the words of OpenAPI 3.1, made from its operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabi.admin.operations import EXPLAIN, Operation

PLAIN = (
    ("/healthz", "Whether the process of the API answers.", "text/plain"),
    ("/readyz", "Whether every worker accepts clients: 200, else 503.", "text/plain"),
    ("/metrics", "Metrics for Prometheus, or OpenMetrics if the client asks for that.", "text/plain"),
)
"""What needs no token."""

LISTS = (
    ("/history", "The last hour, a row every ten seconds.", "application/json"),
    ("/egress/history", "How members of pools were in the last hour, every ten seconds.", "application/json"),
    ("/events", "News as they come: server-sent events.", "text/event-stream"),
    ("/config", "The configuration as it is used, without secrets.", "application/json"),
    ("/openapi.json", "This description.", "application/json"),
)


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for path, text, media in PLAIN:
        paths[path] = {"get": {"summary": text, "security": [], "responses": answers(media)}}
    for path, text, media in LISTS:
        paths[path] = {"get": {"summary": text, "responses": answers(media)}}
    body = {"required": True, "content": {"application/json": {"schema": EXPLAIN}}}
    text = "What would become of a request, rule by rule, and why."
    paths["/explain"] = {"post": {"summary": text, "requestBody": body, "responses": answers("application/json")}}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = of_operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tabi", "version": version, "description": "See and steer a running tabi."},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {"type": "string"},
                        "path": {"type": "string", "description": "The key or the parameter that is wrong."},
                    },
                }
            },
        },
    }


def of_operation(one: Operation) -> dict[str, Any]:
    """One operation."""
    found: dict[str, Any] = {
        "summary": one.text,
        "description": "Needs the token for everything." if one.scope == "full" else "Needs a token.",
        "responses": answers("application/json"),
    }
    if one.parameters:
        found["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "description": parameter.text,
                "required": parameter.place == "path",
                "schema": dict(parameter.schema),
            }
            for parameter in one.parameters
        ]
    if one.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": one.body}}}
    return found


def answers(media: str) -> dict[str, Any]:
    """The answers of an operation."""
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    texts = {
        "400": "Something of the request is wrong.",
        "401": "The token is missing or wrong.",
        "403": "The token is for reading only, or another page has asked.",
        "503": "The server does not answer.",
    }
    found: dict[str, Any] = {"200": {"description": "Done.", "content": {media: {}}}}
    return found | {status: {"description": text, **error} for status, text in texts.items()}
