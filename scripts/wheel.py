"""Packs a binary and python/tikhonov_train into a wheel; scripts/wheel runs it. Prints the wheel's path.

The tag is what the binary's symbol versions allow (PEP 600). Needs readelf and strip.
"""

import argparse, base64, hashlib, pathlib, platform, re, struct, subprocess, sys, tempfile, zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME, MODULE = "tikhonov-train", "tikhonov_train"
# From bin/ in the module's folder to the torch beside the module.
RPATH = "$ORIGIN/../../torch/lib"
# The libraries that any system has, and those that come with torch (PEP 600; torch brings its libgomp).
LIBRARIES = re.compile(r"(libtorch_cpu|libc10|libgomp.*|libstdc\+\+|libgcc_s|libm|libc|libpthread|libdl|librt|ld-linux.*)\.so.*")
# The first glibc of a manylinux tag whose systems have this libstdc++ (auditwheel's policies).
GLIBCXX = {24: 28, 25: 31, 26: 31, 27: 31, 28: 31, 29: 34, 30: 35, 32: 38, 33: 39}


def fail(message):
    sys.exit(f"error: {message}")


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True).stdout


def set_rpath(path):
    """Writes RPATH over the library path that the linker put in, as DT_RPATH, and zeros over what is left of it."""
    data = bytearray(path.read_bytes())
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, offset + size * i) for i in range(count)]
    at, length = next((h[2], h[5]) for h in headers if h[0] == 2)
    entries = {tag: (place, value) for place in range(at, at + length, 16) for tag, value in [struct.unpack_from("<QQ", data, place)]}
    place, text = entries.get(29) or entries.get(15) or fail(f"{path} has no library path to write over")
    text += next(h[2] - h[3] + entries[5][1] for h in headers if h[0] == 1 and h[3] <= entries[5][1] < h[3] + h[5])
    room = data.index(0, text) - text
    if room < len(RPATH):
        fail(f"{path}: its library path has {room} bytes, too few for {RPATH}")
    data[text:text + room] = RPATH.encode().ljust(room, b"\0")
    struct.pack_into("<Q", data, place, 15)
    path.write_bytes(data)


def tag_of(binary):
    """py3-none-manylinux_2_NN_ARCH, from the newest symbol versions that the binary needs."""
    versions = set(re.findall(r"Name: ((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)", readelf("--version-info", binary)))
    glibc = max(int(v.split(".")[1]) for v in versions if v.startswith("GLIBC_"))
    newest = max(int(v.split(".")[2]) for v in versions if v.startswith("GLIBCXX_3.4."))
    if newest > max(GLIBCXX):
        fail(f"which systems have GLIBCXX_3.4.{newest} is not known: add it to GLIBCXX in scripts/wheel.py")
    cxx = next(GLIBCXX[known] for known in sorted(GLIBCXX) if known >= newest)
    tag = f"py3-none-manylinux_2_{max(glibc, cxx)}_{platform.machine()}"
    if max(glibc, cxx) > 34:
        wanted = rf"\S+@(?:GLIBC_2\.(?:3[5-9]|[4-9]\d)|GLIBCXX_3\.4\.[3-9]\d)\S*"
        symbols = sorted(set(re.findall(wanted, readelf("--dyn-syms", binary))))
        print(f"{tag}: not manylinux_2_34, because of {', '.join(symbols)}", file=sys.stderr)
    return tag


def check(binary, foreign):
    """Refuses a binary that needs other libraries than torch's and the system's, or holds paths of this machine."""
    dynamic = readelf("-d", binary)
    if f"(RPATH)              Library rpath: [{RPATH}]" not in dynamic:
        fail(f"{binary} does not look for torch in {RPATH}: build it with TIKHONOV_WHEEL=1, or add --set-rpath")
    strange = [name for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if not LIBRARIES.fullmatch(name)]
    if strange:
        fail(f"{binary} needs {', '.join(strange)}, which neither torch nor every system has")
    data = binary.read_bytes()
    for path in foreign:
        if (at := data.find(path.encode())) >= 0:
            text = data[at:data.find(b"\0", at)][:150].decode(errors="replace")
            fail(f"{binary} holds a path of this machine, {data.count(path.encode())} times: {text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--set-rpath", action="store_true", help="write the library path into a copy of the binary")
    parser.add_argument("--foreign", action="append", default=[], metavar="PATH", help="refuse a binary that holds this text")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    if not options.binary.is_file():
        fail(f"there is no binary {options.binary}")
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    with tempfile.TemporaryDirectory() as folder:
        binary = pathlib.Path(folder) / "tikhonov"
        subprocess.run(["strip", "--strip-all", "-o", binary, options.binary], check=True)
        if options.set_rpath:
            set_rpath(binary)
        check(binary, options.foreign)
        print(write(binary, version, tag_of(binary), options.output))


def write(binary, version, tag, folder):
    info = f"{MODULE}-{version}.dist-info"
    metadata = f"""\
Metadata-Version: 2.4
Name: {NAME}
Version: {version}
Summary: {re.search(r'^description = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]}
License-Expression: MIT OR Apache-2.0
License-File: LICENSE-MIT
License-File: LICENSE-APACHE
Requires-Python: >=3.10
Requires-Dist: torch==2.11.*
"""
    files = {f"{MODULE}/{path.name}": path.read_bytes() for path in sorted((ROOT / "python" / MODULE).glob("*.py"))}
    files[f"{MODULE}/bin/tikhonov"] = binary.read_bytes()
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: scripts/wheel\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\ntikhonov = {MODULE}.launcher:main\n".encode()
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        files[f"{info}/licenses/{name}"] = (ROOT / name).read_bytes()
    digest = lambda data: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    record = [f"{path},sha256={digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{MODULE}-{version}-{tag}.whl"
    # The same bytes from the same files: no dates. Whole or not at all.
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if "/bin/" in path else 0o100644) << 16
            archive.writestr(entry, data)
    part.replace(wheel)
    return wheel


if __name__ == "__main__":
    main()
