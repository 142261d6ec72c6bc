"""The variables of a program behind a proxy."""

from __future__ import annotations

import os

import pytest

from tabi.launch.environment import (
    ADDED,
    BUNDLE,
    TrustFiles,
    added_authorities,
    inherited_proxy,
    make_environment,
    named_authorities,
)

URL = "http://127.0.0.1:4000"
TRUST = TrustFiles("/t/bundle.pem", "/t/added.pem", "/t/trust.p12", "/t/wgetrc", "/t/php")
JAVA = (
    "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=4000 -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=4000 "
    "-Dhttp.nonProxyHosts="
)


def made(inherited: dict[str, str], trust: TrustFiles | None = None) -> dict[str, str]:
    """The environment for a proxy at port 4000."""
    return make_environment(inherited, "127.0.0.1", 4000, trust)


def test_an_empty_environment() -> None:
    """Each spelling of the proxy's variables, an http URL in all of them, and no word of authorities."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    assert made({}) == {
        **dict.fromkeys((*names, *map(str.lower, names)), URL),
        "NO_PROXY": "",
        "no_proxy": "",
        "NODE_USE_ENV_PROXY": "1",
        "JAVA_TOOL_OPTIONS": JAVA,
    }


def test_what_is_inherited_stays_but_for_proxies() -> None:
    """Whatever the variable, it comes through; what named another proxy, or none, does not."""
    inherited = {
        "PATH": "/bin",
        "SSL_CERT_FILE": "/company.pem",
        "https_proxy": "http://user:secret@company:3128",
        "NO_PROXY": "localhost,.company",
        "no_proxy": "*",
    }
    environ = made(inherited)
    assert (environ["PATH"], environ["SSL_CERT_FILE"]) == ("/bin", "/company.pem")
    assert (environ["NO_PROXY"], environ["no_proxy"]) == ("", "")
    assert "company:3128" not in str(environ)
    assert inherited["no_proxy"] == "*"  # it is not changed


@pytest.mark.parametrize(
    "name", ["ws_proxy", "WSS_PROXY", "grpc_proxy", "PIP_PROXY", "npm_config_https_proxy", "NPM_CONFIG_PROXY"]
)
def test_a_variable_of_one_program_is_replaced_only_where_it_is_set(name: str) -> None:
    """It would win over HTTPS_PROXY. Who has not set it does not get it."""
    assert name not in made({})
    assert made({name: "http://company:3128"})[name] == URL


@pytest.mark.parametrize("name", ["no_grpc_proxy", "npm_config_noproxy", "NPM_CONFIG_NOPROXY"])
def test_exceptions_of_one_program_are_emptied(name: str) -> None:
    """What they name would go past the proxy."""
    assert name not in made({})
    assert made({name: "localhost"})[name] == ""


@pytest.mark.parametrize(
    ("inherited", "name"),
    [({}, None), ({"http_proxy": ""}, None), ({"https_proxy": "http://company:1"}, "https_proxy")],
)
def test_the_proxy_that_was_there(inherited: dict[str, str], name: str | None) -> None:
    """It is not used, which is said where something fails."""
    assert inherited_proxy(inherited) == name


def test_options_of_java_are_added_to_those_that_are_there() -> None:
    """They stand last, where they win. The variables that win over JAVA_TOOL_OPTIONS get them too, if they are set."""
    environ = made({"JAVA_TOOL_OPTIONS": "-Xmx1g", "_JAVA_OPTIONS": "-Dhttp.proxyHost=company"})
    assert environ["JAVA_TOOL_OPTIONS"] == f"-Xmx1g {JAVA}"
    assert environ["_JAVA_OPTIONS"] == f"-Dhttp.proxyHost=company {JAVA}"
    assert "JDK_JAVA_OPTIONS" not in environ


def test_authorities() -> None:
    """A bundle where a variable replaces what a program knows, ours alone where it adds to it."""
    environ = made({}, TRUST)
    assert {environ[name] for name in BUNDLE} == {"/t/bundle.pem"}
    assert {environ[name] for name in ADDED} == {"/t/added.pem"}
    assert environ["WGETRC"] == "/t/wgetrc"
    assert environ["JAVA_TOOL_OPTIONS"].endswith(
        " -Djavax.net.ssl.trustStore=/t/trust.p12 -Djavax.net.ssl.trustStoreType=PKCS12"
        " -Djavax.net.ssl.trustStorePassword=changeit"
    )
    assert set(environ) == set(made({})) | {*BUNDLE, *ADDED, "WGETRC", "PHP_INI_SCAN_DIR"}


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("/a b/p", '"-Djavax.net.ssl.trustStore=/a b/p"'),
        ('/a "b/p', "'-Djavax.net.ssl.trustStore=/a \"b/p'"),
        ("/a'b/p", '"-Djavax.net.ssl.trustStore=/a\'b/p"'),
    ],
)
def test_a_path_with_spaces_is_quoted_for_java(path: str, option: str) -> None:
    """Java splits the variable at spaces."""
    assert f" {option} " in made({}, TRUST._replace(java=path))["JAVA_TOOL_OPTIONS"]


@pytest.mark.parametrize(("inherited", "value"), [({}, ":/t/php"), ({"PHP_INI_SCAN_DIR": "/own"}, "/own:/t/php")])
def test_folders_of_settings_of_php_are_kept(inherited: dict[str, str], value: str) -> None:
    """An empty part stands for the usual one."""
    assert made(inherited, TRUST)["PHP_INI_SCAN_DIR"] == value


def test_npm_has_one_spelling() -> None:
    """It takes any case, and one of them wins: only ours is left."""
    environ = made({"NPM_CONFIG_CAFILE": "/company.pem"}, TRUST)
    assert [name for name in environ if name.lower() == "npm_config_cafile"] == ["npm_config_cafile"]


def test_the_authorities_that_are_inherited() -> None:
    """Files of all variables that we replace, and the folders of SSL_CERT_DIR."""
    inherited = {
        "SSL_CERT_FILE": "/a.pem",
        "PIP_CERT": "/b.pem",
        "NODE_EXTRA_CA_CERTS": "/c.pem",
        "NPM_CONFIG_CAFILE": "/d.pem",
        "AWS_CA_BUNDLE": "",
        "SSL_CERT_DIR": os.pathsep.join(("/one", "", "/two")),
        "PATH": "/bin",
    }
    assert list(named_authorities(inherited)) == ["/a.pem", "/b.pem", "/c.pem", "/d.pem", "/one", "/two"]
    assert list(added_authorities(inherited)) == ["/c.pem"]
