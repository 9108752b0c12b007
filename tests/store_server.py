"""A loopback server that implements the parts of the S3 and Google Cloud Storage protocols that the tests need."""

import contextlib
import hashlib
import json
import re
import threading
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.loopback import running

BUCKET, KEY_ID, SECRET = "bucket", "AKIALOOPBACK00000000", "loopback+secret/of+forty+characters+abcd"


class Server(ThreadingHTTPServer):
    """A server with one bucket; `objects` are its contents by name and `asked` lists the requests."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.key_id = KEY_ID
        self.uploads: dict[str, dict] = {}
        self.lock = threading.Lock()
        self.generation: dict[str, int] = {}
        self.count = 1

    def handle_error(self, request, client_address):
        """Ignore clients that were killed."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that direct clients to the server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
        }

    def on_request(self) -> None:
        """Do nothing; tests replace this to observe every request."""

    def put(self, name: str, content: bytes) -> None:
        with self.lock:
            self.count += 1
            self.objects[name], self.generation[name] = content, self.count

    def below(self, query: dict[str, str]) -> tuple[list[str], list[str], str]:
        """Return the names and folders of one page of a listing, and the token of the next page."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("pageToken") or ""
        size = int(query.get("max-keys") or query.get("maxResults") or 1000)
        names: list[str] = []
        folders: list[str] = []
        for name in sorted(self.objects):
            if not name.startswith(prefix):
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entry = prefix + head + cut if cut else name
            if entry <= after or entry in folders:
                continue
            if len(names) + len(folders) == size:
                return names, folders, max(names[-1:] + folders[-1:])
            (folders if cut else names).append(entry)
        return names, folders, ""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.body()
        self.server.asked.append(f"{self.command} {self.path}")
        if match := re.fullmatch(
            r"/(upload/|download/|)storage/v1/b/([^/]+)(?:/(o|storageLayout)(?:/([^/]+))?)?", url.path
        ):
            self.google(match[1], match[2], match[3], unquote(match[4] or ""), query, body)
        elif url.path == "/batch/storage/v1":
            self.google_batch(body)
        else:
            bucket, _, name = unquote(url.path).lstrip("/").partition("/")
            self.amazon(bucket, name, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        else:
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        plain = b""
        while content:
            size, _, content = content.partition(b"\r\n")
            length = int(size.split(b";")[0], 16)
            if not length:
                break
            plain, content = plain + content[:length], content[length + 2 :]
        return plain

    def reply(self, code: int, content: bytes = b"", kind: str = "application/xml", **headers: str) -> None:
        self.server.on_request()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send(self, name: str) -> None:
        """Send an object, or a range of it."""
        content = self.server.objects[name]
        headers = {
            "ETag": f'"{hashlib.md5(content).hexdigest()}"',
            "x_goog_generation": str(self.server.generation[name]),
        }
        headers |= {"Last_Modified": "Sat, 21 Nov 2026 12:00:00 GMT", "Accept_Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match:
            self.reply(200, content, "application/octet-stream", **headers)
            return
        begin = int(match[1]) if match[1] else max(0, len(content) - int(match[2]))
        end = min(int(match[2]) + 1, len(content)) if match[1] and match[2] else len(content)
        if begin >= len(content):
            self.reply(416, b"", Content_Range=f"bytes */{len(content)}")
            return
        headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        self.reply(206, content[begin:end], "application/octet-stream", **headers)

    # S3

    def refuse(self, code: int, kind: str) -> None:
        self.reply(code, f"<Error><Code>{kind}</Code><Message>{kind} {KEY_ID}</Message></Error>".encode())

    def amazon(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> None:
        objects = self.server.objects
        if self.server.key_id not in self.headers.get("Authorization", ""):
            self.refuse(403, "InvalidAccessKeyId")
        elif bucket != BUCKET:
            self.refuse(404, "NoSuchBucket")
        elif not name and self.command == "HEAD":
            self.reply(200)
        elif not name and "delete" in query:
            for gone in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                objects.pop(gone, None)
            self.reply(200, b"<DeleteResult></DeleteResult>")
        elif not name:
            self.amazon_list(query)
        elif self.command == "PUT" and "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
            self.reply(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        elif self.command == "PUT":
            self.server.put(name, body)
            self.reply(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        elif self.command == "POST" and "uploads" in query:
            self.server.uploads[upload := f"upload{len(self.server.uploads)}"] = {}
            self.reply(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
        elif self.command == "POST" and "uploadId" in query:
            parts = self.server.uploads.pop(query["uploadId"])
            self.server.put(name, b"".join(parts[number] for number in sorted(parts)))
            self.reply(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        elif self.command == "DELETE":
            objects.pop(name, None)
            self.reply(204)
        elif name not in objects:
            self.refuse(404, "NoSuchKey")
        else:
            self.send(name)

    def amazon_list(self, query: dict[str, str]) -> None:
        names, folders, token = self.server.below(query)
        text = "".join(
            f"<Contents><Key>{quote(name)}</Key><Size>{len(self.server.objects[name])}</Size>"
            f'<ETag>"{hashlib.md5(self.server.objects[name]).hexdigest()}"</ETag>'
            "<LastModified>2026-11-21T12:00:00.000Z</LastModified></Contents>"
            for name in names
        ) + "".join(f"<CommonPrefixes><Prefix>{quote(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        more = f"<NextContinuationToken>{quote(token)}</NextContinuationToken>" if token else ""
        cut = f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>"
        self.reply(
            200,
            f"<ListBucketResult><KeyCount>{len(names) + len(folders)}</KeyCount>{cut}{more}{text}</ListBucketResult>".encode(),
        )

    # Google Cloud Storage

    def json(self, value: object, code: int = 200, **headers: str) -> None:
        self.reply(code, json.dumps(value).encode(), "application/json", **headers)

    def about(self, name: str) -> dict:
        content, generation = self.server.objects[name], str(self.server.generation[name])
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(content)), "generation": generation,
            "metageneration": "1", "etag": generation, "updated": "2026-11-21T12:00:00.000Z", "timeCreated": "2026-11-21T12:00:00.000Z",
        }  # fmt: skip

    def missing(self) -> None:
        self.json({"error": {"code": 404, "message": "Not Found"}}, 404)

    def google(self, way: str, bucket: str, what: str | None, name: str, query: dict[str, str], body: bytes) -> None:
        objects = self.server.objects
        if self.server.key_id != KEY_ID:
            self.json({"error": {"code": 401, "message": f"Anonymous caller {KEY_ID}"}}, 401)
        elif bucket != BUCKET:
            self.missing()
        elif what != "o":
            self.json(
                {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET, "location": "US", "locationType": "region"}
            )
        elif way == "upload/":
            self.google_upload(query, body)
        elif not name:
            names, folders, token = self.server.below(query)
            more = {"nextPageToken": token} if token else {}
            self.json({"kind": "storage#objects", "items": [self.about(n) for n in names], "prefixes": folders} | more)
        elif name not in objects:
            self.missing()
        elif self.command == "DELETE":
            objects.pop(name, None)
            self.reply(204)
        elif query.get("alt") == "media":
            self.send(name)
        else:
            self.json(self.about(name))

    def google_upload(self, query: dict[str, str], body: bytes) -> None:
        name = query.get("name", "")
        if query.get("uploadType") == "multipart":
            message = BytesParser(policy=HTTP).parsebytes(
                f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body
            )
            about, _ = message.iter_parts()
            name = json.loads(
                about.get_content() if about.get_content_maintype() == "text" else about.get_payload(decode=True)
            )["name"]
            part = body.split(b"--" + message.get_boundary().encode())[2]
            line = b"\r\n" if part.startswith(b"\r\n") else b"\n"
            body = part.partition(2 * line)[2].removesuffix(line)
        elif query.get("uploadType") == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            self.server.uploads[upload := f"upload{self.server.count}-{len(self.server.uploads)}"] = {
                "name": name,
                "body": b"",
            }
            address = f"http://127.0.0.1:{self.server.server_port}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={upload}"
            self.json({}, Location=address)
            return
        elif query.get("uploadType") == "resumable":
            upload = self.server.uploads[query["upload_id"]]
            upload["body"] += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                self.reply(308, Range=f"bytes=0-{len(upload['body']) - 1}")
                return
            name, body = upload["name"], upload["body"]
        if query.get("ifGenerationMatch", "") == "0" and name in self.server.objects:
            self.json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            return
        self.server.put(name, body)
        self.json(self.about(name))

    def google_batch(self, body: bytes) -> None:
        """Handle a batch, which contains only removals."""
        message = BytesParser(policy=HTTP).parsebytes(
            f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body
        )
        answers = []
        for part in message.iter_parts():
            line = part.get_payload(decode=True).decode().splitlines()[0]
            name = unquote(re.search(r"/o/([^ ?]+)", line)[1])
            found = self.server.objects.pop(name, None) is not None
            number = part["Content-ID"].strip("<>").rpartition("+")[2]
            status = "204 No Content" if found else "404 Not Found"
            answers.append(
                f"--answers\r\nContent-Type: application/http\r\nContent-ID: <response-x+{number}>\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n"
            )
        self.reply(200, ("".join(answers) + "--answers--").encode(), "multipart/mixed; boundary=answers")


def serving() -> contextlib.AbstractContextManager[Server]:
    """Run a server."""
    return running(Server())
