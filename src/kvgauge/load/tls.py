"""TLS between the seam and HTTP: ssl over memory, so that the driver keeps its sockets and the kernel's stamps."""

import contextlib
import ssl
from pathlib import Path

import msgspec

from kvgauge.failures import LoadError

RECORD_BYTES_MAX = 16_384

# X509_V_ERR_*: what the checks of a certificate say, and what to do about it
_EXPIRED, _NOT_YET = 10, 9
_UNKNOWN = (18, 19, 20, 21)  # self-signed, alone or in the chain; issuer not found; chain cannot be checked
_WRONG_NAME = (62, 64)
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG")


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How far a server's certificate is checked.

    ca_file   PEM file of the authorities to trust instead of the system's
    insecure  check nothing; every record says `unverified` then
    """

    ca_file: Path | None = None
    insecure: bool = False


class TlsFailed(Exception):
    """No TLS session with the server, or no longer."""


def context_of(tls: Tls) -> ssl.SSLContext:
    """raises LoadError when the CA file cannot be used."""
    if tls.insecure and tls.ca_file is not None:
        raise LoadError("a CA file and insecure TLS were both asked for: insecure checks nothing; drop one of them")
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except (OSError, ValueError) as error:
        seen = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else "no PEM in it"
        raise LoadError(f"CA file {tls.ca_file} cannot be used: {seen}; give a file of PEM certificates") from None
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def explain(error: ssl.SSLError, host: str) -> str:
    """What went wrong and what to do about it, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        if error.verify_code in (_EXPIRED, _NOT_YET):
            return f"the server's certificate: {said}; renew it, or check this host's clock"
        if error.verify_code in _UNKNOWN:
            return f"the server's certificate: {said}: its authority is not known here; give its CA file"
        if error.verify_code in _WRONG_NAME:
            return f"the server's certificate is not for {host} ({said}); use a name that it holds"
        return f"the server's certificate: {said}"
    reason = (error.reason or "").upper()
    if reason in _NOT_TLS:
        return f"what answers at {host} does not speak TLS; write http://"
    if isinstance(error, ssl.SSLEOFError) or "EOF" in reason:
        return "the server ended the TLS session without a word"
    return f"TLS with {host}: {reason.replace('_', ' ').lower() or error}"


class Session:
    """One TLS session, client's side. Bytes in, bytes out; never blocks, has no socket.

    ended  the server has said that nothing more comes (close_notify)
    """

    __slots__ = ("_host", "_in", "_out", "_tls", "ended")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._host = host
        self.ended = False

    def shake(self, received: bytes = b"") -> bool:
        """Go on with the handshake. True when the session stands. raises TlsFailed."""
        self._in.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsFailed(explain(error, self._host)) from None
        return True

    def outgoing(self) -> bytes:
        """What has to reach the server: parts of the handshake, answers to key updates, alerts, `encrypt`ed bytes."""
        return self._out.read()

    def encrypt(self, data: bytes) -> bytes:
        """raises TlsFailed."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsFailed(explain(error, self._host)) from None
        return self._out.read()

    def decrypt(self, received: bytes) -> bytes:
        """All the plaintext there is, which may be none: epoll knows of the socket only. raises TlsFailed."""
        self._in.write(received)
        read, parts = self._tls.read, []
        try:
            while True:
                part = read(RECORD_BYTES_MAX)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
                if not self._in.pending and not self._tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsFailed(explain(error, self._host)) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def farewell(self) -> bytes:
        """The bytes that say that we end it."""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        return self._out.read()
