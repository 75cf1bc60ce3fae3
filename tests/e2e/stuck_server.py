"""A FUSE server that hangs, and whose process cannot end by the kernel's own rules: `stuck_server.py MOUNTPOINT [USER]`.

It says nothing of itself. It never answers a READ either, which keeps the page locked, and then stores into that page: the storing thread waits in the
kernel, where no signal reaches it, until the connection is aborted. The mount passes for one of stfs, of that user.
"""

import ctypes
import os
import struct
import sys
import threading

SIZE = 4096
HEADER, ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, INIT, OPENDIR, BATCH_FORGET = 1, 2, 3, 14, 15, 18, 26, 27, 42
NOTIFY_STORE, ENOENT = 4, 2
ROOT, FILE = 1, 2


def attributes(node):
    mode, size = (0o040755, 0) if node == ROOT else (0o100644, SIZE)
    return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, SIZE, 0)


def store(device):
    data = struct.pack("<QQII", FILE, 0, SIZE, 0) + bytes(SIZE)
    os.write(device, ANSWER.pack(ANSWER.size + len(data), NOTIFY_STORE, 0) + data)


def serve(device):
    while True:
        request = os.read(device, 1 << 17)
        _, opcode, unique, node = HEADER.unpack_from(request)[:4]
        body, error = b"", 0
        if opcode == INIT:
            body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 1 << 16, 1, 0, 0, 0)
        elif opcode == LOOKUP and request[HEADER.size :] == b".stfs\0":
            continue
        elif opcode == LOOKUP and request[HEADER.size :] == b"file\0":
            body = struct.pack("<QQQQII", FILE, 0, 60, 60, 0, 0) + attributes(FILE)
        elif opcode == GETATTR:
            body = struct.pack("<QII", 60, 0, 0) + attributes(node)
        elif opcode in (OPEN, OPENDIR):
            body = struct.pack("<QIi", 0, 0, 0)
        elif opcode == READ:
            threading.Thread(target=store, args=[device]).start()
            continue
        elif opcode in (FORGET, BATCH_FORGET):
            continue
        elif opcode != RELEASE:
            error = -ENOENT
        os.write(device, ANSWER.pack(ANSWER.size + len(body), error, unique) + body)


def main():
    point, user = sys.argv[1], (sys.argv[2:] or ["0"])[0]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={user},group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"stuck", os.fsencode(point), b"fuse.stfs", 1, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    serve(device)


if __name__ == "__main__":
    main()
