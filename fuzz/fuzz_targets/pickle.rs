//! Any bytes as data.pkl of an archive whose checksums are right, plain or TorchScript by the first bit.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&kind, pickle)) = data.split_first() else { return };
    let code = "class M(Module):\n  __parameters__ = [\"weight\", ]\n  __buffers__ = [\"b\", ]\n";
    // The sizes of the seeds' storages.
    let mut entries = vec![("a/data.pkl", pickle), ("a/data/0", &[0; 16][..])];
    entries.extend(
        ["a/data/1", "a/data/2", "a/data/3", "a/data/4", "a/data/5", "a/data/6"]
            .map(|name| (name, &[1; 8][..])),
    );
    if kind & 1 == 1 {
        entries.push(("a/constants.pkl", b"\x80\x02)."));
        entries.push(("a/code/__torch__.py", code.as_bytes()));
    }
    common::exercise(zip(&entries));
});

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc32fast::hash(data).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.bytes());
        out.extend(*data);
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}
