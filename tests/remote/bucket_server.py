"""A bucket server: `python bucket_server.py FOLDER PORT` prints its port and serves bucket `b`.

The emulator of a library, with two things that it lacks and Google's buckets have: an object that
is to be made only where there is none (`ifGenerationMatch=0`), and content that is kept to the byte
(it reads uploads as e-mail, which takes some line ends away).
"""

import json
import re
import sys
from functools import partial
from http import HTTPStatus
from http.server import HTTPServer

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

upload, read_data = objects._multipart_upload, server._read_data


def upload_if_allowed(request, response, storage):
    if request.query.get("ifGenerationMatch") == ["0"]:
        try:
            storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
        except NotFound:
            pass
        else:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    upload(request, response, storage)


def read_to_the_byte(request_handler, query):
    """An upload as gcsfs sends it: two parts, their lines ended by a newline alone."""
    kind = request_handler.headers.get("Content-Type") or ""
    if not kind.startswith("multipart/related"):
        return read_data(request_handler, query)
    mark = b"\n--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
    about, _, rest = server._read_raw_data(request_handler).partition(mark + b"\n")
    head, _, content = rest.partition(b"\n\n")
    return {
        "meta": json.loads(about.partition(b"\n\n")[2]),
        "content": content.removesuffix(mark + b"--"),
        "content-type": head.decode().partition(":")[2].strip(),
    }


def main(folder: str, port: str) -> None:
    objects._multipart_upload, server._read_data = upload_if_allowed, read_to_the_byte
    storage = Storage(data_dir=folder)
    if not storage.get_bucket("b"):
        buckets.create_bucket("b", storage)
    handler = partial(server.RequestHandler, storage)
    httpd = HTTPServer(("127.0.0.1", int(port)), handler)
    print(httpd.server_port, flush=True)
    httpd.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
