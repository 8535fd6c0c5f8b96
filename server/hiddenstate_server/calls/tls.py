"""TLS of the public port: the server's certificate, and whose clients' certificates are asked for."""

from __future__ import annotations

import ssl

import grpc

from hiddenstate_server.errors import StartError
from hiddenstate_server.settings import Settings


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Credentials from the PEM files of the settings, None without any.

    StartError where the files are missing or do not belong together.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # gRPC would say only that the port cannot be bound. An empty password keeps OpenSSL from asking for one.
        context.load_cert_chain(certificate, key, password="")
        if client_ca is not None:
            context.load_verify_locations(client_ca)
        pair = (key.read_bytes(), certificate.read_bytes())
        authority = None if client_ca is None else client_ca.read_bytes()
    except OSError as error:
        files = ", ".join(str(path) for path in (certificate, key, client_ca) if path is not None)
        raise StartError(f"the TLS files {files} cannot be used: {error}") from error
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
