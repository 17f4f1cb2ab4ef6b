"""Network cameras on this computer, HTTP and RTSP, whose frames say which they are."""

from __future__ import annotations

import base64
import struct
import time
from http.server import BaseHTTPRequestHandler
from socketserver import StreamRequestHandler

import cv2
import numpy as np


def numbered(i: int) -> np.ndarray:
    """A frame that says which it is, also after compression: a black or white block per bit."""
    bits = [(i >> bit) & 1 for bit in range(8)]
    return np.repeat(np.kron(np.uint8([bits]) * 255, np.ones((48, 10), np.uint8))[..., None], 3, 2)


def number(image: np.ndarray) -> int:
    blocks = image.reshape(48, 8, 10, 3).mean((0, 2, 3)) > 127
    return sum(int(bit) << i for i, bit in enumerate(blocks))


class Camera(BaseHTTPRequestHandler):
    """Motion JPEG as network cameras send it: 40 frames, one each 5 ms."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for i in range(40):
            data = cv2.imencode(".jpg", numbered(i))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + data + b"\r\n")
            except OSError:
                return
            time.sleep(0.005)

    def log_message(self, *args) -> None:
        """Nothing on standard error."""


class RTSPCamera(StreamRequestHandler):
    """Motion JPEG by RTSP (RFC 2326, 2435) over TCP, with a password: 40 frames, one each 5 ms."""

    SDP = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
        "m=video 0 RTP/AVP 26\r\na=control:track\r\na=framerate:25\r\n"
    )

    def handle(self) -> None:
        while request := self._request():
            method, headers = request
            reply, body, status = {}, "", "200 OK"
            secret = base64.b64encode(b"me:secret").decode()
            if method != "OPTIONS" and headers.get("authorization") != f"Basic {secret}":
                status, reply = "401 Unauthorized", {"WWW-Authenticate": 'Basic realm="camera"'}
            elif method == "DESCRIBE":
                body = self.SDP
                reply = {"Content-Type": "application/sdp", "Content-Length": len(body)}
            elif method == "SETUP" and "RTP/AVP/TCP" not in headers["transport"]:
                status = "461 Unsupported Transport"
            elif method == "SETUP":
                reply = {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1", "Session": "1"}
            lines = [f"RTSP/1.0 {status}", f"CSeq: {headers['cseq']}"]
            lines += [f"{key}: {value}" for key, value in reply.items()]
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            if method == "PLAY":
                return self._play()

    def _request(self) -> tuple[str, dict[str, str]] | None:
        """Method and headers; None at the end."""
        method = self.rfile.readline().decode().partition(" ")[0]
        lines = iter(lambda: self.rfile.readline().decode().strip(), "")
        parts = (line.partition(":") for line in lines)
        return (method, {key.lower(): text.strip() for key, _, text in parts}) if method else None

    def _play(self) -> None:
        for i in range(40):
            packet = rtp_jpeg(numbered(i), i)
            try:
                self.wfile.write(struct.pack("!cBH", b"$", 0, len(packet)) + packet)
            except OSError:
                return
            time.sleep(0.005)


def rtp_jpeg(image: np.ndarray, number: int) -> bytes:
    """A small image as one RTP packet with its own quantization tables (RFC 2435)."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tables, at = b"", 2
    while data[at + 1] != 0xDA:  # start of scan
        size = struct.unpack("!H", data[at + 2 : at + 4])[0]
        if data[at + 1] == 0xDB:  # tables of 64 bytes, each after a byte with its number
            segment = data[at + 4 : at + 2 + size]
            tables += b"".join(segment[i + 1 : i + 65] for i in range(0, len(segment), 65))
        at += 2 + size
    scan = data[at + 2 + struct.unpack("!H", data[at + 2 : at + 4])[0] : -2]
    height, width = image.shape[:2]
    head = struct.pack("!BBHII", 0x80, 0x80 | 26, number, 3600 * number, 1)
    # Type 1: 4:2:0; quality 255: the tables are in the packet.
    jpeg = struct.pack("!IBBBB", 0, 1, 255, width // 8, height // 8)
    return head + jpeg + struct.pack("!BBH", 0, 0, len(tables)) + tables + scan
