"""The flags that say which /metrics are scraped beside a load."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.load.proxy import Proxies
    from kvgauge.scrape.scraper import Watching

DEFAULT_INTERVAL_S, INTERVAL_S_MIN, INTERVAL_S_MAX = 1.0, 0.1, 3600.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics-url",
        action="append",
        default=[],
        metavar="URL",
        help="scrape this /metrics too, a worker's for example; may be repeated",
    )
    parser.add_argument(
        "--metrics-interval",
        type=float,
        default=DEFAULT_INTERVAL_S,
        metavar="S",
        help="between two scrapes (1); 0: scrape nothing",
    )


def watching_of(args: argparse.Namespace, proxies: "Proxies") -> "Watching | None":
    """Which /metrics to scrape; None: none. raises UsageError"""
    from kvgauge.failures import UsageError
    from kvgauge.scrape.scraper import Watching
    from kvgauge.scrape.source import SOURCES_MAX, metrics_url

    if args.metrics_interval == 0:
        if args.metrics_url:
            raise UsageError("--metrics-interval 0 scrapes nothing: leave --metrics-url away, or give an interval")
        return None
    if not INTERVAL_S_MIN <= args.metrics_interval <= INTERVAL_S_MAX:
        raise UsageError(f"--metrics-interval must be {INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g} s, or 0 for none")
    urls = tuple(dict.fromkeys(metrics_url(url, proxies.of(url)) for url in args.metrics_url))
    if len(urls) > SOURCES_MAX:
        raise UsageError(f"{len(urls)} --metrics-url are more than the {SOURCES_MAX} that one client scrapes")
    return Watching(urls=urls, interval_s=args.metrics_interval, proxies=proxies)


def conditions(watched: "Watching | None") -> dict[str, str | float | None]:
    """What a run that goes on must be given again; None where nothing was said."""
    interval_s = watched.interval_s if watched is not None else 0.0
    return {
        "metrics_urls": ",".join(watched.urls) or None if watched is not None else None,
        "metrics_interval_s": None if interval_s == DEFAULT_INTERVAL_S else interval_s,
    }
