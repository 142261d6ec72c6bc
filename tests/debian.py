"""Install the Debian packages whose programs the interop tests drive, if this runs as root; say what is missing if not.

Without them those tests are skipped and named at the end; with CI=true that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAMS = {
    "curl": "curl",
    "wget": "wget",
    "git": "git",
    "chromium-headless-shell": "chromium-headless-shell",
    "proxychains4": "proxychains4",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "nc": "netcat-openbsd",
    "microsocks": "microsocks",
    "danted": "dante-server",
    "tinyproxy": "tinyproxy-bin",
    "socksify": "dante-client",
    "haproxy": "haproxy",
    "nginx": "nginx-light",
    "tnftp": "tnftp",
    "ip": "iproute2",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "openssl": "openssl",
    "tor-resolve": "tor",
    "certutil": "libnss3-tools",
    "java": "default-jdk-headless",
    "javac": "default-jdk-headless",
    "keytool": "default-jdk-headless",
    "node": "nodejs",
    "php": "php-cli php-curl",
    "man": "man-db",
    "lexgrog": "man-db",
    "zsh": "zsh",
    "fish": "fish",
    "mandoc": "mandoc",
    "lwp-request": "libwww-perl liblwp-protocol-https-perl",
}
"""What the tests call: the packages that have it."""

OTHERS = frozenset({"cargo", "npm", "terraform"})
"""What Debian has not, or not new enough: tests of these are skipped where they are not installed, in CI too."""

PATH = "/usr/sbin:/sbin:" + os.environ.get("PATH", "")


def missing() -> list[str]:
    """The packages whose programs are not there."""
    packages = [found for program, found in PROGRAMS.items() if shutil.which(program, path=PATH) is None]
    return sorted(set(" ".join(packages).split()))


def main() -> int:
    """Install; fails only where it must not (CI)."""
    wanted = missing()
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing", *wanted, flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        quiet = {"env": environment, "stdout": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)  # type: ignore[call-overload]
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
        if subprocess.run([*command, *wanted], check=False, **quiet).returncode:  # type: ignore[call-overload]
            for package in missing():  # one that is not to be had keeps none of the others away
                subprocess.run([*command, package], check=False, **quiet)  # type: ignore[call-overload]
        wanted = missing()
    if wanted:
        print("not installed:", *wanted, "(as root, `make test` installs them)", flush=True)
    return int(bool(wanted) and os.environ.get("CI") == "true")


if __name__ == "__main__":
    sys.exit(main())
