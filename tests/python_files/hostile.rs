//! Files made to harm: nothing is run, memory stays bounded, the error names the place.

use std::time::Instant;

use tikhonov::pytorch::reader::source::Source;
use tikhonov::pytorch::reader::{PythonFile, read_source};

use super::{read_error, sample, script};
use crate::common::{outcome, succeeds, tikhonov};

/// A zip archive of stored entries, as `torch.save` would lay it out.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
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

fn text(text: &str) -> Vec<u8> {
    let mut out = vec![b'X'];
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
    out
}

fn long(number: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &number.to_le_bytes()].concat()
}

fn tuple(numbers: &[i64]) -> Vec<u8> {
    let inner: Vec<u8> = numbers.iter().flat_map(|&n| long(n)).collect();
    [b"(", &inner[..], b"t"].concat()
}

/// A float32 tensor in storage "0" of `len` elements.
fn tensor(len: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        long(len),
        b"tQ".to_vec(),
        long(offset),
        tuple(shape),
        tuple(strides),
        b"\x89NtR".to_vec(),
    ]
    .concat()
}

/// `{"w": value}` as a pickle.
fn dict(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", &text("w")[..], value, b"s."].concat()
}

/// Reads bytes as a file would be, all its tensors included; the memory that took must stay in bounds.
pub fn load(bytes: Vec<u8>) -> Result<(PythonFile, Vec<Vec<u8>>), String> {
    let limit = 4 * bytes.len() as u64 + (64 << 20);
    let mut result = Err(String::new());
    let memory = allocation_counter::measure(|| {
        result = load_all(bytes).map_err(|error| format!("{error:#}"));
    });
    assert!(memory.bytes_max <= limit, "{} bytes of memory, {limit} allowed", memory.bytes_max);
    result
}

fn load_all(bytes: Vec<u8>) -> anyhow::Result<(PythonFile, Vec<Vec<u8>>)> {
    let file = read_source(Source::Bytes(bytes))?;
    let found = file.find(None)?;
    let mut storages = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (_, tensor) in found.tensors.iter().filter(|(_, tensor)| seen.insert(tensor.storage)) {
        let mut buffer = vec![0; file.check_storage(tensor.storage)? as usize];
        file.read_storage(tensor.storage, &mut buffer)?;
        storages.push(buffer);
    }
    file.metadata(found.value);
    Ok((file, storages))
}

fn refused(bytes: Vec<u8>, message: &str) {
    match load(bytes) {
        Ok(_) => panic!("accepted; expected: {message}"),
        Err(error) => assert!(error.contains(message), "{error}\nexpected: {message}"),
    }
}

fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 48])])
}

#[test]
fn a_pickle_that_wants_to_run_a_command_is_read_as_data() {
    let (folder, _) = script(
        "class Evil:
    def __reduce__(self): return os.system, ('touch ' + P + '/marker',)
class Worse:
    def __reduce__(self): return eval, ('open(\"' + P + '/marker\", \"w\")',)
torch.save({'model': torch.nn.Linear(2, 1).state_dict(), 'evil': Evil(), 'worse': [Worse()]}, 'zip.pt')
torch.save({'model': torch.nn.Linear(2, 1).state_dict(), 'evil': Evil(), 'worse': [Worse()]}, 'old.pt', _use_new_zipfile_serialization=False)",
    );
    for file in ["zip.pt", "old.pt"] {
        let stdout = succeeds(&["inspect", sample(&folder, file).to_str().unwrap()]);
        assert!(stdout.contains("<posix.system>") && stdout.contains(".eval>"), "{stdout}");
        assert!(!sample(&folder, "marker").exists());
    }
}

#[test]
fn files_of_another_byte_order_are_refused() {
    let (folder, _) = script(
        "state = {'w': torch.ones(2)}
torch.save(state, 'a.pt'); torch.save(state, 'c.pt', _use_new_zipfile_serialization=False)
src = zipfile.ZipFile('a.pt')
with zipfile.ZipFile('b.pt', 'w') as dst:
    for name in src.namelist(): dst.writestr(name, b'big' if name.endswith('byteorder') else src.read(name))
raw = open('c.pt', 'rb').read(); at = raw.index(b'little_endian')
at = raw.index(b'\\x88', at); open('d.pt', 'wb').write(raw[:at] + b'\\x89' + raw[at+1:])",
    );
    for file in ["b.pt", "d.pt"] {
        let error = read_error(sample(&folder, file));
        assert!(error.contains("big-endian"), "{error}");
    }
}

#[test]
fn views_outside_their_storage_are_refused() {
    assert!(load(archive(&dict(&tensor(12, 0, &[3, 4], &[4, 1])))).is_ok());
    assert!(load(archive(&dict(&tensor(12, 12, &[0, 4], &[4, 1])))).is_ok());
    let big = 1 << 40;
    for (offset, shape, strides) in [
        (1, &[3, 4][..], &[4, 1][..]),
        (0, &[3, 4], &[5, 1]),
        (13, &[0], &[1]),
        (0, &[big, big], &[0, 0]),
        (0, &[2, 2], &[i64::MAX, i64::MAX]),
        (0, &[0, i64::MAX, 3], &[1, 1, 1]),
        (i64::MAX, &[2], &[i64::MAX]),
        (0, &[2], &[1, 1]),
        (0, &[1; 65], &[1; 65]),
    ] {
        assert!(
            load(archive(&dict(&tensor(12, offset, shape, strides)))).is_err(),
            "{offset} {shape:?} {strides:?}"
        );
    }
    refused(archive(&dict(&tensor(12, 0, &[-3], &[1]))), "-3 is negative");
    refused(archive(&dict(&tensor(12, 11, &[3], &[-1]))), "-1 is negative");
    refused(archive(&dict(&tensor(12, -1, &[3], &[1]))), "negative storage offset");
    refused(archive(&dict(&tensor(-12, 0, &[3], &[1]))), "negative size");
    refused(archive(&dict(&tensor(i64::MAX, 0, &[3], &[1]))), "overflow");
    // The pickle promises more, or less, than the entry holds.
    refused(archive(&dict(&tensor(1 << 40, 0, &[3], &[1]))), "holds 48 bytes");
    refused(archive(&dict(&tensor(11, 0, &[3], &[1]))), "holds 48 bytes");
    refused(zip(&[("a/data.pkl", &dict(&tensor(12, 0, &[3], &[1])))]), "`data/0` is missing");
    // A view that repeats one element for ever costs nothing to name and must not be unfolded.
    refused(archive(&dict(&tensor(12, 0, &[1 << 40], &[0]))), "unfolds");
}

#[test]
fn a_pickle_that_multiplies_or_nests_without_end_costs_neither_memory_nor_the_stack() {
    let start = Instant::now();
    let weights = tensor(12, 0, &[3], &[1]);
    let file = |metadata: Vec<u8>| {
        archive(&[b"\x80\x02}(", &text("w")[..], &weights, &text("m"), &metadata, b"u."].concat())
    };
    // Each list holds the one before twice: 2^200 leaves in all.
    let mut laughs = b"]".to_vec();
    for level in 0..200u8 {
        laughs.extend([b'q', level, b'0', b']', b'h', level, b'a', b'h', level, b'a']);
    }
    assert!(load(file(laughs)).is_ok());
    // A list in a list in a list, half a million deep; and as many open marks.
    let deep = [vec![b']'; 500_000], vec![b'a'; 499_999]].concat();
    let _ = load(file(deep));
    let _ = load(file([vec![b'('; 500_000], vec![b't'; 500_000]].concat()));
    // A list that holds itself.
    assert!(load(file(b"]q\x00h\x00a".to_vec())).is_ok());
    // A million references to one megabyte are a megabyte.
    let long_text = "x".repeat(1 << 20);
    let many = [b"](", &text(&long_text)[..], b"q\x01", &b"h\x01".repeat(1 << 18), b"e"].concat();
    assert!(load(file(many)).is_ok());
    // Fifty million objects from fifty megabytes of opcodes.
    refused(file([b"]("[..].to_vec(), vec![b'}'; 20 << 20], b"e".to_vec()].concat()), "unfolds to more than");
    // Copies of a large set, made by its constructor.
    let copies = [b"(", &b"K\x00".repeat(1 << 17)[..], b"tq\x01cbuiltins\nset\nq\x02"].concat();
    let copies = [&copies[..], &b"h\x02h\x01\x85R".repeat(1000)].concat();
    refused(file(copies), "unfolds to more than");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn a_module_tree_that_loops_or_fans_out_ends() {
    // class M with state {_parameters, _buffers, _modules}; the modules hold `self` under many names.
    let module = |children: &[u8]| {
        let parts = ["_parameters", "_buffers"].map(|key| [&text(key)[..], b"}"].concat()).concat();
        [b"\x80\x02cm\nM\n)\x81q\x00}(", &parts[..], &text("_modules"), b"}(", children, b"uub."].concat()
    };
    let itself = [&text("a")[..], b"h\x00"].concat();
    refused(archive(&module(&itself)), "nested deeper than");
    let twice = [&itself[..], &text("b"), b"h\x00"].concat();
    refused(archive(&module(&twice)), "nested deeper than");

    // Each level holds the next one twice under two names: 2^60 paths and no loop.
    let mut levels = b"\x80\x02".to_vec();
    for level in 0..60u8 {
        let parts = ["_parameters", "_buffers"].map(|key| [&text(key)[..], b"}"].concat()).concat();
        levels.extend([b"cm\nM\n)\x81q", &[level][..], b"}(", &parts, &text("_modules"), b"}("].concat());
        if level > 0 {
            levels.extend([&text("a")[..], &[b'h', level - 1], &text("b"), &[b'h', level - 1]].concat());
        }
        levels.extend(b"uub");
        if level < 59 {
            levels.push(b'0');
        }
    }
    levels.push(b'.');
    refused(archive(&levels), "unfolds to more than");
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let huge = u64::MAX.to_le_bytes();
    for opcode in [0x8d, 0x8e, 0x96, 0x95] {
        refused(archive(&[b"\x80\x04", &[opcode][..], &huge].concat()), "truncated");
    }
    for opcode in [b'X', b'B', b'T', 0x8b] {
        refused(archive(&[b"\x80\x02", &[opcode][..], &[0xff; 4]].concat()), "truncated");
    }
    refused(archive(b"\x80\x02}"), "the data ends here");
    refused(archive(b"\x80\x02s."), "the stack is too short");
    refused(archive(b"\x80\x02(K\x01s."), "the stack is too short");
    refused(archive(b"\x80\x02h\x07."), "memo 7 was never stored");
    refused(archive(b"\x80\x02\xff."), "not a pickle opcode");
    refused(archive(b"I1\n."), "text opcode");
    refused(archive(b"\x80\x09."), "protocol 9");
    refused(archive(&[b"c", &[b'a'; 5000][..]].concat()), "a name of more than 1024 bytes");
    refused(archive(b"\x80\x02]."), "it holds no tensors");
}

#[test]
fn an_archive_that_lies_about_its_entries_is_refused() {
    let pickle = dict(&tensor(12, 0, &[3], &[1]));
    let good = archive(&pickle);
    assert!(load(good.clone()).is_ok());
    let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let second = directory + 46 + "a/data.pkl".len();
    let edit = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    refused(edit(second + 42, &0u32.to_le_bytes()), "local header");
    refused(edit(second + 42, &u32::MAX.to_le_bytes()), "zip64");
    refused(edit(second + 42, &[0xff, 0xff, 0xff, 0x7f]), "outside the archive");
    refused(edit(second + 20, &[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]), "disagrees");
    refused(edit(second + 8, &[1]), "encrypted");
    refused(edit(second + 10, &[99]), "method 99");
    refused(edit(second + 46, b"a/data/1"), "disagrees");
    refused(edit(directory + 16, &[1, 2, 3, 4]), "disagrees");
    refused(edit(40, &[0xee]), "damaged");
    refused(zip(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)]), "two entries are called");
    refused(zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]), "several entries data.pkl");
    refused(zip(&[("a/x", b"")]), "without an entry data.pkl");
    refused(zip(&[]), "neither a zip archive");

    // Two entries over the same bytes: the whole second one lies in the first one's data.
    let inner = zip(&[("a/data/0", &[0; 48])]);
    let mut nested = zip(&[("a/data.pkl", &pickle), ("a/data/1", &inner), ("a/data/0", &[0; 48])]);
    let inside = nested.windows(8).position(|w| w == b"a/data/1").unwrap() + 8;
    let entry = nested.windows(8).rposition(|w| w == b"a/data/0").unwrap() - 46;
    nested[entry + 42..entry + 46].copy_from_slice(&(inside as u32).to_le_bytes());
    refused(nested, "overlap");
}

#[test]
fn a_deflate_bomb_is_refused_before_it_unfolds() {
    let (folder, _) = script(
        "import pickle
torch.save({'w': torch.zeros(4)}, 'a.pt')
raw = zipfile.ZipFile('a.pt').read('a/data.pkl').replace(b'K\\x04', b'J' + (100 << 20).to_bytes(4, 'little'))
with zipfile.ZipFile('b.pt', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    z.writestr('a/data.pkl', raw); z.writestr('a/data/0', bytes(400 << 20))
with zipfile.ZipFile('c.pt', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    z.writestr('a/data.pkl', bytes(400 << 20))",
    );
    for file in ["b.pt", "c.pt"] {
        refused(std::fs::read(sample(&folder, file)).unwrap(), "unfolds to");
    }
}

#[test]
fn a_safetensors_header_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let file = |header: &str, data: usize| {
        std::fs::write(
            &path,
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat(),
        )
        .unwrap();
        &path
    };
    assert_eq!(super::read(file(good, 8)).tensors.len(), 1);
    read_error(file(good, 7));
    read_error(file(good, 9));
    read_error(file(&good.replace("[2]", "[3]"), 8));
    read_error(file(&good.replace("[2]", "[4611686018427387904,4,2]"), 8));
    read_error(file(&good.replace("[0,8]", "[8,0]"), 8));
    read_error(file(&good.replace("F32", "F33"), 8));
    read_error(file(&format!("{{\"a\":{}", "[".repeat(100_000)), 8));
    let doubled = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    read_error(file(doubled, 8));
    std::fs::write(&path, [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat()).unwrap();
    read_error(&path);
}

#[test]
fn what_is_no_checkpoint_says_so_and_exits_with_4() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    for (bytes, message) in [
        (&b""[..], "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"PK\x03\x04", "truncated or damaged"),
        (b"\x80\x02]q\x00.", "not one of torch.save"),
        (b"hello", "neither a zip archive"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = read_error(&path);
        assert!(error.contains(message) && error.contains("x.pt"), "{error}");
    }
    assert!(read_error(folder.path()).contains("not a regular file"));
    assert!(read_error("/dev/zero").contains("not a regular file"));
    read_error(folder.path().join("missing"));
    let (code, _, stderr) = outcome(tikhonov().arg("inspect").arg(&path).output().unwrap());
    assert!(code == 4 && stderr.contains("x.pt"), "{code} {stderr}");
}
