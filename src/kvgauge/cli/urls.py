"""`run --url`: which deployment runs which test."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvgauge.plan.records import Plan


def read_urls(given: "Sequence[str]", plan: "Plan") -> dict[str, str]:
    """Test name -> URL, empty for the embedded target. Each is `URL` or `TEST=URL`.

    raises  UsageError when they are not as many as the plan has tests, or name one that it has not
    """
    from kvgauge.failures import UsageError
    from kvgauge.plan.nodes import nearest

    if not given:
        return {}
    names = [test.name for test in plan.tests]
    if plan.mode != "paired":
        if len(given) > 1:
            raise UsageError(f"{len(given)} URLs: only a plan of mode paired sets two deployments side by side")
        if len(names) != 1:
            raise UsageError(
                f"one deployment runs one test, and this plan has {len(names)}: say which one runs at {given[0]} "
                f"with --test NAME ({', '.join(names)})"
            )
    found: dict[str, str] = {}
    for text in given:
        name, equals, url = text.partition("=")
        if name not in names and (not equals or "/" in name):  # a URL may hold a sign of equality, behind its slashes
            name, url = (names[0], text) if plan.mode != "paired" else ("", text)
        if not name:
            raise UsageError(f"--url {text}: of a paired plan say whose it is: --url 'TEST=URL' ({', '.join(names)})")
        if name not in names:
            raise UsageError(f"--url {text}: no test is called {name!r}; {nearest(name, names)}")
        if name in found:
            raise UsageError(f"--url {text}: {name!r} has one already: {found[name]}")
        if url in found.values():
            raise UsageError(f"--url {text}: the other test runs there too, and a deployment beside itself is none")
        found[name] = url
    if missing := [name for name in names if name not in found]:
        raise UsageError(f"no --url for {', '.join(map(repr, missing))}: a paired plan needs both deployments, or none")
    return found
