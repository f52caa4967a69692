"""Small servers on the loopback, for tests of what is fetched."""

import contextlib
import http.server


class Handler(http.server.BaseHTTPRequestHandler):
    """Says nothing on the terminal, and bears clients that go away: that is what is tested."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def finish(self):
        with contextlib.suppress(OSError, ValueError):
            super().finish()


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *args):
        pass
