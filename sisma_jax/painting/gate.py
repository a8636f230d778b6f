"""A gate between network and page: limits the length of requests and the files that they may name.

gradio limits the size of each uploaded file, but neither the number of files in a request nor the
size of other requests. It also downloads any address that a request names in place of an uploaded
file, and returns the content.
"""

import asyncio
import json
import re
from typing import Any

from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sisma_jax.painting.temporary import TemporaryFiles

_UNUSED = re.compile(r"/gradio_api/(file[=/]https?:|proxy=|process_recording$)")
"""Routes of gradio that the page does not use, and that would let visitors make the server fetch
addresses or decode videos."""
MOST_NAMED = 100
"""Limit of files that one request may name; the page's own requests name about thirty."""
_AROUND_A_FILE = 2**16
"""Bytes in the request of an upload besides the file: its name and type."""


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, files: TemporaryFiles, most_upload: int, most_message: int):
        """
        Args:
          app: the application behind the gate.
          files: folder of uploads, the only one that requests may name; tidied before uploads.
          most_upload: limit in bytes of an uploaded file.
          most_message: limit in bytes of any other request.
        """
        self.app, self.files = app, files
        self.most_upload, self.most_message = most_upload, most_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _UNUSED.search(scope["path"]):
            await PlainTextResponse("the page has no such part", 404)(scope, receive, send)
        elif _header(scope, b"content-type").startswith(b"multipart/"):
            await self._upload(scope, receive, send)
        else:
            await self._message(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = self.most_upload + _AROUND_A_FILE
        too_long = (
            f"the upload is longer than {self.most_upload / 2**20:g} MiB: send a smaller file"
        )
        if _length(scope) > most:
            return await PlainTextResponse(too_long, 413)(scope, receive, send)
        await asyncio.to_thread(self.files.tidy)
        done = 0

        async def counted() -> Message:
            nonlocal done
            message = await receive()
            done += len(message.get("body", b""))
            if done > most:
                # On this exception gradio deletes what it has written of the upload, and it answers
                # 413 to these words.
                raise MultiPartException(f"{too_long} (the maximum allowed size)")
            return message

        await self.app(scope, counted, send)

    async def _message(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = bytearray(), _length(scope) <= self.most_message
        if not more:
            return await _refused(413, "the request is too long")(scope, receive, send)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.most_message:
                return await _refused(413, "the request is too long")(scope, receive, send)
            more = message.get("more_body", False)
        if wrong := self._wrong_with(bytes(body)):
            return await _refused(400, wrong)(scope, receive, send)
        bodies: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return bodies.pop() if bodies else await receive()

        return await self.app(scope, again, send)

    def _wrong_with(self, body: bytes) -> str:
        """Why a request is refused, if it names files other than the page's own; otherwise ""."""
        try:
            left: list[Any] = [json.loads(body)]
        except ValueError:  # not JSON, so gradio reads no file from it
            return ""
        except RecursionError:
            return "the request is nested too deeply"
        named: set[str] = set()
        while left:
            value = left.pop()
            if isinstance(value, list):
                left.extend(value)
            elif isinstance(value, dict):
                left.extend(value.values())
                path = value.get("path")
                if not isinstance(path, str) or path in named:
                    continue
                named.add(path)
                if len(named) > MOST_NAMED:
                    return "the request names too many files"
                if not self.files.holds(path):
                    return "the request names a file that was not uploaded to this page: upload it"
        return ""


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _length(scope: Scope) -> int:
    """The announced length of the body; 0 if there is none."""
    announced = _header(scope, b"content-length")
    return int(announced) if announced.isdigit() else 0


def _refused(status: int, sentence: str) -> Response:
    """An error response in the form that gradio's page shows."""
    return JSONResponse({"detail": sentence}, status)
