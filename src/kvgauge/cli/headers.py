"""The flags for how a server is asked, which `run` and `load` share: headers, keys, certificates, proxies."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.load.headers import Headers
    from kvgauge.load.proxy import Proxies
    from kvgauge.load.tls import Tls


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--header, --header-env, --api-key-env, --ca-file, --insecure, --proxy and --proxy-from-env."""
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="sent to the URL with each request"
    )
    parser.add_argument(
        "--header-env",
        action="append",
        default=[],
        metavar="NAME:VARIABLE",
        help="a header whose value is that environment variable's; it is written down nowhere",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="send that environment variable's value as Authorization: Bearer; it is written down nowhere",
    )
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="of an https URL: trust these authorities (PEM), not the system's"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="of an https URL: do not check its certificate; every record says so"
    )
    parser.add_argument(
        "--proxy", metavar="URL", help="go to the URL through this http proxy, which is measured with it (none)"
    )
    parser.add_argument(
        "--proxy-from-env", action="store_true", help="... or as HTTP_PROXY, HTTPS_PROXY and NO_PROXY say"
    )


def proxies_of(args: argparse.Namespace) -> "Proxies":
    """raises UsageError"""
    import os

    from kvgauge.failures import UsageError
    from kvgauge.load.proxy import NO_PROXIES, Proxies, Proxy

    if args.proxy is None and not args.proxy_from_env:
        return NO_PROXIES
    if args.url is None:
        raise UsageError("--proxy and --proxy-from-env go with --url; the embedded target is on this machine")
    if args.proxy is not None and args.proxy_from_env:
        raise UsageError("--proxy and --proxy-from-env were both given: which one is meant? Leave one away")
    proxies = Proxies(Proxy(args.proxy)) if args.proxy is not None else Proxies(environment=os.environ)
    proxies.of(args.url)
    return proxies


def headers_of(args: argparse.Namespace) -> "Headers":
    """raises UsageError"""
    import os

    from kvgauge.failures import UsageError
    from kvgauge.load.headers import read_headers

    if args.url is None and (args.header or args.header_env or args.api_key_env):
        raise UsageError("headers and keys go with --url; the embedded target asks for none")
    return read_headers(args.header, args.header_env, args.api_key_env, os.environ)


def tls_of(args: argparse.Namespace) -> "Tls | None":
    """None: as the system would check it. raises UsageError, LoadError"""
    from kvgauge.failures import UsageError
    from kvgauge.load.tls import Tls, context_of

    if args.ca_file is None and not args.insecure:
        return None
    if args.url is None:
        raise UsageError("--ca-file and --insecure go with --url; the embedded target has no certificate")
    tls = Tls(ca_file=args.ca_file, insecure=args.insecure)
    context_of(tls)
    return tls


def tls_text(args: argparse.Namespace) -> str | None:
    """How certificates are checked, for what a run was conducted under."""
    if args.insecure:
        return "not verified"
    return f"authorities of {args.ca_file}" if args.ca_file is not None else None
