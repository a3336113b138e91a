"""The alert rules: promtool's checks, and tests of their own."""

import re
import subprocess
from pathlib import Path

import yaml
from kleinserve.metrics import Metrics

from tests.debian import program
from tests.deploy.prometheus import DEPLOY

RULES, TESTS = DEPLOY / "prometheus/klein.rules.yml", DEPLOY / "prometheus/klein.rules.test.yml"


def alerts() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool", "prometheus"), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid() -> None:
    """promtool takes the rules and the configuration."""
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(DEPLOY / "prometheus/prometheus.yml"))


def test_rules_fire() -> None:
    """Each alert fires on series that show its trouble, and not on ones near by."""
    promtool("test", "rules", str(TESTS))


def test_each_has_tests() -> None:
    """Every alert is tested twice: where it fires, and where it keeps quiet."""
    tested = {test["name"]: test["alert_rule_test"] for test in yaml.safe_load(TESTS.read_text())["tests"]}
    assert set(tested) == {f"{rule['alert']} {kind}" for rule in alerts() for kind in ("fires", "keeps quiet")}
    for name, (expected,) in tested.items():
        assert bool(expected["exp_alerts"]) == name.endswith(" fires")


def test_names_are_ours() -> None:
    """The rules name metrics that the server has, and the page of operations names every alert."""
    exposed = {line.split()[2] for line in Metrics().exposition().decode().splitlines() if line.startswith("# TYPE")}
    page = (Path(DEPLOY).parent / "docs/OPERATIONS.md").read_text()
    for rule in alerts():
        for name in re.findall(r"klein_\w+", str(rule["expr"])):
            assert name in exposed or re.sub("_(bucket|count|sum)$", "", name) in exposed, name
        assert f"`{rule['alert']}`" in page
