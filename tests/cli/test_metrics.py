"""`tabi metrics`, as somebody uses it beside a server that runs."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from operating import operated
from processes import run_here, run_tabi, tunnels


def test_metrics_of_all_workers(tmp_path: Path) -> None:
    """In both formats, as other programs read them; a listener without [admin] has them, too."""
    with operated(tmp_path, arguments=("--workers", "2")) as operator, tunnels(operator.proxy.address, 3) as found:
        for tunnel in found:
            tunnel.check()
        for parse, options in ((parse_text, ()), (parse_openmetrics, ("--openmetrics",))):
            done = run_here("metrics", *options, "--socket", operator.socket)
            assert (done.returncode, done.stderr) == (0, b"")
            samples = [sample for family in parse(done.stdout.decode()) for sample in family.samples]
            values = {sample.name: sample.value for sample in samples}
            assert values["tabi_sessions_open"] == 3
            assert values["tabi_workers"] == 2
            assert values["tabi_build_info"] == 1
        done = run_tabi("metrics", "--socket", operator.socket)
        assert done.stdout.startswith(b"# HELP tabi_sessions_total ")
