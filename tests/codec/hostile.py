"""Files made to cost more than they should: each is a few kilobytes to 10 MiB. Made here, so that none is kept.

`python -m tests.codec.hostile` decodes them at full size, one by one, and prints what each takes.
"""

import asyncio
import struct
import time
import zlib
from collections.abc import Callable

import psutil
from kleinserve.codec.intake import Intake
from kleinserve.config import Config
from kleinserve.errors import RefusedReference

from tests.codec.files import chunk, exif, picture, png, saved

PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
SOS = b"\xff\xda"


def interlaced(edge: int, depth: int, colour_type: int) -> bytes:
    """An interlaced PNG whose seven passes are made of filtered rows."""
    bits = depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    rows = []
    for x, y, across, down in PASSES:
        width, height = -(-(edge - x) // across), -(-(edge - y) // down)
        rows.append((b"\4" + bytes([7]) + bytes(-(-width * bits // 8) - 1)) * height)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, depth, colour_type, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"".join(rows), 1)) + chunk(b"IEND", b"")


def sixteen_bit(edge: int) -> bytes:
    return png(edge, edge, 16, 6, bytes(range(8)) * edge)


def many_scans(edge: int, scans: int) -> bytes:
    """A progressive JPEG that says its last refinement again and again."""
    whole = saved(picture(edge, edge), "JPEG", progressive=True, quality=60)
    last = whole.rindex(SOS)
    return whole[:-2] + whole[last:-2] * (scans - whole.count(SOS)) + whole[-2:]


def jpeg_with(before_frame: bytes = b"", in_scan: bytes = b"", edge: int = 64) -> bytes:
    whole = saved(picture(edge, edge), "JPEG")
    return whole[:2] + before_frame + whole[2:-2] + in_scan + whole[-2:]


def png_with(before: bytes = b"", after: bytes = b"") -> bytes:
    return png(64, 64, 8, 2, bytes(192), before, after)


def webp_with_chunks(count: int) -> bytes:
    body = saved(picture(64, 64), "WEBP")[8:] + b"abcd\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bomb(kind: bytes, head: bytes, unpacked_bytes: int) -> bytes:
    return chunk(kind, head + zlib.compress(bytes(unpacked_bytes), 9))


def exif_of_many_entries(count: int) -> bytes:
    """EXIF whose first directory is full of entries that each point at the same long text."""
    entry = struct.pack(">HHII", 0x010E, 2, 60_000, 8)
    return b"MM\0*" + struct.pack(">IH", 8, count) + entry * count + bytes(4)


def corpus(size: float) -> dict[str, Callable[[], bytes]]:
    """By name, how each is made. `size` 1: as large as the limits allow (25 megapixels, 10 MiB); 0.1: a tenth of it."""
    edge, mib = int(5000 * size**0.5), int(10 * 2**20 * size)
    return {
        "progressive, 60 scans": lambda: many_scans(edge, 60),
        "progressive, 1000 scans": lambda: many_scans(edge // 8, 1000),
        "fill bytes before the frame": lambda: jpeg_with(b"\xff" * (mib - 9000)),
        "fill bytes in the scan": lambda: jpeg_with(in_scan=b"\xff" * (mib - 9000)),
        "stuffed bytes in the scan": lambda: jpeg_with(in_scan=b"\xff\0" * (mib // 2 - 9000)),
        "restarts in the scan": lambda: jpeg_with(in_scan=b"\xff\xd0" * (mib // 2 - 9000)),
        "junk before the frame": lambda: jpeg_with(b"\xff\xfe\0\2" + bytes(mib - 9000)),
        "comments": lambda: jpeg_with(b"\xff\xfe\0\2" * int(1_000_000 * size)),
        "a few thousand comments": lambda: jpeg_with(b"\xff\xfe\0\2" * 2000),
        "chunks": lambda: png_with(before=chunk(b"teSt", b"") * int(300_000 * size)),
        "empty IDATs": lambda: png_with(after=chunk(b"IDAT", b"") * int(100_000 * size)),
        "interlaced RGBA of 16 bits": lambda: interlaced(edge, 16, 6),
        "interlaced grey": lambda: interlaced(edge, 8, 0),
        "RGBA of 16 bits": lambda: sixteen_bit(edge),
        "zTXt bomb": lambda: png_with(bomb(b"zTXt", b"a\0\0", int(2**30 * size)) * 5),
        "iTXt bomb": lambda: png_with(bomb(b"iTXt", b"a\0\1\0\0\0", int(2**30 * size)) * 5),
        "iCCP bomb": lambda: png_with(bomb(b"iCCP", b"a\0\0", int(2**30 * size))),
        "IDAT bomb": lambda: png_with(after=bomb(b"IDAT", b"", int(2**31 * size))),
        "EXIF of 65,535 entries": lambda: png_with(chunk(b"eXIf", exif_of_many_entries(65_535))),
        "WebP chunks": lambda: webp_with_chunks(int(1_000_000 * size)),
        "lossless WebP": lambda: saved(picture(edge, edge, "RGBA"), "WEBP", lossless=True, method=0, quality=0),
        "CMYK, progressive, turned": lambda: saved(
            picture(edge, edge, "CMYK"), "JPEG", progressive=True, subsampling=0, exif=exif(5)
        ),
    }


def mebibytes() -> float:
    """What this process and all under it hold, each shared page counted once."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    held = 0
    for process in family:
        try:
            held += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return held / 2**20


def processor_seconds() -> float:
    """What the workers' forks have taken until now."""
    times = [worker.cpu_times() for worker in psutil.Process().children()]
    return sum(time.children_user + time.children_system for time in times)


async def main() -> None:
    """Print each file's size, seconds (of processor too), answer, and the peak of memory while it was decoded."""
    intake = Intake(Config(), lambda outcome, seconds: None)
    intake.start()
    await intake.decode("warm", [png_with()] * 4, keep_alpha=True)
    before = mebibytes()
    for name, make in corpus(1).items():
        data = make()
        start, spent, peak = time.monotonic(), processor_seconds(), 0.0
        decoding = asyncio.ensure_future(intake.decode("hostile", [data], keep_alpha=True))
        while not decoding.done():
            await asyncio.wait([decoding], timeout=0.02)
            peak = max(peak, mebibytes())
        error = decoding.exception()
        assert error is None or isinstance(error, RefusedReference)
        answer = error.message if error else "decoded"
        seconds, spent = time.monotonic() - start, processor_seconds() - spent
        size = len(data) / 2**20
        print(f"{name:30} {size:5.2f} MiB {seconds:6.2f} s, {spent:.2f} s of processor, {peak:4.0f} MiB  {answer}")
        del data, decoding, error
    print(f"memory of all processes: {before:.0f} MiB before, {mebibytes():.0f} MiB after")
    await intake.close()


if __name__ == "__main__":
    asyncio.run(main())
