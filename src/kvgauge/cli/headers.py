"""The flags for headers and keys, which `run` and `load` share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgauge.load.headers import Headers


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--header, --header-env and --api-key-env."""
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


def headers_of(args: argparse.Namespace) -> "Headers":
    """raises UsageError"""
    import os

    from kvgauge.failures import UsageError
    from kvgauge.load.headers import read_headers

    if args.url is None and (args.header or args.header_env or args.api_key_env):
        raise UsageError("headers and keys go with --url; the embedded target asks for none")
    return read_headers(args.header, args.header_env, args.api_key_env, os.environ)
