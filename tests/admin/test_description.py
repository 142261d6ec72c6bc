"""The description of the API is right by the rules of OpenAPI, and has all that there is."""

from __future__ import annotations

from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from tabi.admin.access import Access
from tabi.admin.app import PAGE, Admin
from tabi.admin.description import describe
from tabi.admin.operations import OPERATIONS
from tabi.config import parse_config

DESCRIPTION = describe(OPERATIONS, "1.2.3")


def test_it_is_openapi() -> None:
    """As another program checks it."""
    errors = [error.message for error in OpenAPIV31SpecValidator(DESCRIPTION).iter_errors()]
    assert errors == []


def test_it_has_every_route_and_no_other() -> None:
    """But for the files of the page."""
    admin = Admin(None, Access(None, None), parse_config(""))  # type: ignore[arg-type]
    routes = {
        (method, route.path)
        for route in admin.routes
        if isinstance(route, Route) and route.path not in PAGE
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(method.upper(), path) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert described == routes


def test_it_says_what_an_operation_needs() -> None:
    """A token or none, its parameters, its body and its answers."""
    paths = DESCRIPTION["paths"]
    assert paths["/metrics"]["get"]["security"] == []
    assert "security" not in paths["/sessions"]["get"]
    assert DESCRIPTION["security"] == [{"token": []}]
    sessions = {one["name"]: one for one in paths["/sessions"]["get"]["parameters"]}
    assert sessions["sort"]["schema"]["enum"] == ["seconds", "up", "down", "octets"]
    assert not sessions["limit"]["required"]
    (name,) = paths["/faults/{name}"]["patch"]["parameters"]
    assert (name["in"], name["required"]) == ("path", True)
    assert paths["/faults"]["post"]["requestBody"]["required"]
    assert {"200", "401", "403", "503"} <= set(paths["/reload"]["post"]["responses"])
