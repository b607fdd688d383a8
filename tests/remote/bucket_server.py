"""A bucket server: `python bucket_server.py FOLDER PORT` prints its port and serves bucket `b`.

The emulator of a library, with the one thing that it lacks and Google's buckets have: an object
that is to be made only where there is none (`ifGenerationMatch=0`).
"""

import sys
from functools import partial
from http import HTTPStatus
from http.server import HTTPServer

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

upload = objects._multipart_upload


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


def main(folder: str, port: str) -> None:
    objects._multipart_upload = upload_if_allowed
    storage = Storage(data_dir=folder)
    if not storage.get_bucket("b"):
        buckets.create_bucket("b", storage)
    handler = partial(server.RequestHandler, storage)
    httpd = HTTPServer(("127.0.0.1", int(port)), handler)
    print(httpd.server_port, flush=True)
    httpd.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
