//! Shards of pictures: WebDataset's tar files and Hugging Face's parquet files.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::image_tables::{config, trained, weights};
use super::{at, labels, made_by, open, python_in};
use crate::common::{killed_at, saved, succeeds};

/// Pictures in folders `im/a`, `im/b`, `im/c`, and the same files in two shards: the second is smaller.
const PICTURES: &str = "
from PIL import Image
import os, tarfile, io, json
rng = np.random.default_rng(0)
members = []
for k, c in enumerate('abc'):
    os.makedirs(f'im/{c}')
    for i in range(8):
        a = np.kron(rng.integers(0, 255, (5, 6, 3), np.uint8), np.ones((6, 8, 1), np.uint8))
        a[:, :, k] //= 4
        Image.fromarray(a).save(f'im/{c}/{i}.jpg', quality=90)
        members.append((f'{c}/{i}', k, open(f'im/{c}/{i}.jpg', 'rb').read()))
def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
for shard, part in enumerate([members[:15], members[15:]]):
    with tarfile.open(f's-{shard:03}.tar', 'w') as tar:
        for key, label, data in part:
            add(tar, key + '.jpg', data)
            add(tar, key + '.cls', str(label).encode())
            add(tar, key + '.json', json.dumps({'kind': 'abc'[label], 'size': label / 2}).encode())
";

fn tar_shards(folder: &Path) -> Value {
    json!({"table": {"file": at(folder, "s-{000..001}.tar"), "size": 8, "label": "cls"}})
}

/// The pictures of `im` as Hugging Face's `datasets` writes them, `group` rows in a row group.
fn write_parquet(
    folder: &Path,
    name: &str,
    group: usize,
    compression: Compression,
    dictionary: bool,
    page: usize,
) {
    let schema = "message schema { optional group image { optional binary bytes; optional binary path (UTF8); } \
                  optional int64 label; }";
    let info = json!({"info": {"features": {"image": {"_type": "Image"},
        "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}});
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        .set_data_page_row_count_limit(page)
        .set_write_batch_size(1)
        .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_owned(), info.to_string())]))
        .build();
    let file = File::create(folder.join(name)).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut rows = Vec::new();
    for (label, class) in ["a", "b", "c"].iter().enumerate() {
        for index in 0..8 {
            rows.push((label as i64, fs::read(folder.join(format!("im/{class}/{index}.jpg"))).unwrap()));
        }
    }
    for rows in rows.chunks(group) {
        let mut group = writer.next_row_group().unwrap();
        let levels = vec![2; rows.len()];
        let pictures: Vec<ByteArray> = rows.iter().map(|(_, bytes)| bytes.clone().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&pictures, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let labels: Vec<i64> = rows.iter().map(|(label, _)| *label).collect();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn shards_train_to_the_bits_of_the_same_pictures_in_folders() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let plain = json!({"folder": {"root": at(folder, "im"), "size": 8}});
    write_parquet(folder, "plain.parquet", 24, Compression::UNCOMPRESSED, false, 5);
    write_parquet(folder, "zstd.parquet", 9, Compression::ZSTD(ZstdLevel::default()), true, 3);
    let parquet = |name: &str| json!({"table": {"file": at(folder, name), "size": 8}});
    // Resident; decoded when their turn comes; and with the augmentation that decodes a part of each.
    for (name, more) in [
        ("resident", ""),
        ("files", ", memory_gib: 0, validation: {fraction: 0.2}"),
        ("cut", ", memory_gib: 0, augment: [{random_resized_crop: {}}, {flip: {horizontal: true}}]"),
    ] {
        let a = weights(folder, &format!("{name}-folder"), &plain, more);
        assert_eq!(a, weights(folder, &format!("{name}-tar"), &tar_shards(folder), more), "{name}");
        for file in ["plain.parquet", "zstd.parquet"] {
            assert_eq!(a, weights(folder, &format!("{name}-{file}"), &parquet(file), more), "{name} {file}");
        }
    }
    // Killed in the middle of epochs, they end with the same bits.
    for (name, source) in [("tar", tar_shards(folder)), ("parquet", parquet("zstd.parquet"))] {
        let run = folder.join(format!("killed-{name}"));
        let config = config(folder, &run, &source, ", memory_gib: 0, validation: {fraction: 0.2}");
        let often = "train={epochs: 20, log_every: 1, checkpoint: {every_steps: 1, keep: 1}}";
        let args = ["train", &config, "--threads", "1", "--set", often, "--resume"];
        let kills = killed_at(&[10, 40], &run.join("metrics.jsonl"), &args);
        assert!(kills > 0, "the run was over before it was killed");
        let whole = folder.join(format!("whole-{name}"));
        succeeds(&[&args[..], &["--output", whole.to_str().unwrap()]].concat());
        assert_eq!(saved(&run, "model"), saved(&whole, "model"), "{name}");
    }
}

#[test]
fn parquet_is_read_however_it_is_packed_and_says_its_classes() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let expected = open(json!({"train": {"folder": {"root": at(folder, "im"), "size": 8}}})).train;
    let gzip = Compression::GZIP(GzipLevel::default());
    for (index, (group, compression, dictionary, page)) in [
        (24, Compression::SNAPPY, true, 1000),
        (100, Compression::SNAPPY, false, 1),
        (7, gzip, true, 2),
        (1, Compression::UNCOMPRESSED, true, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{index}.parquet");
        write_parquet(folder, &name, group, compression, dictionary, page);
        let set = open(json!({"train": {"table": {"file": at(folder, &name), "size": 8}}})).train;
        assert_eq!(super::bytes(super::xs(&set)), super::bytes(super::xs(&expected)), "{index}");
        assert_eq!((labels(&set), &set.classes), (labels(&expected), &expected.classes));
        assert!(set.notes.join("\n").contains("column `image` holds the pictures"), "{:?}", set.notes);
    }
}

#[test]
fn members_of_a_tar_shard_are_columns() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let by = |label: &str| {
        let mut source = tar_shards(folder);
        source["table"]["label"] = json!(label);
        open(json!({"train": source})).train
    };
    assert_eq!(by("json.kind").classes, ["a", "b", "c"]);
    assert_eq!(super::values(&by("json.size"))[8], 0.5);
    assert_eq!(by("cls").name(15).unwrap(), "s-000/b/7.jpg".replace("s-000", "s-001"));
    let mut missing = tar_shards(folder);
    missing["table"]["label"] = json!("json.kin");
    let told = super::mistake(json!({"train": missing}));
    assert!(told.contains("there is no column `json.kin`; did you mean `json.kind`?"), "{told}");
}

/// Trains on a damaged file: exit 3 with the file, or exit 0 with what was left out; never anything else.
fn outcome(folder: &Path, index: usize, source: &Value) -> (i32, String) {
    let (code, _, told) =
        trained(folder, &folder.join(format!("run{index}")), source, ", memory_gib: 0, max_skipped: 0.1");
    (code, told)
}

#[test]
fn every_damage_of_a_tar_shard_is_named() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let whole = fs::read(folder.join("s-000.tar")).unwrap();
    // Members of the first sample begin with blocks of their own.
    let header = |block: usize| block * 512;
    let jpg = u64::from_str_radix(std::str::from_utf8(&whole[124..135]).unwrap(), 8).unwrap() as usize;
    let cls = header(1) + jpg.div_ceil(512) * 512;
    let cut = |len: usize| whole[..len].to_vec();
    let with = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    let made = |script: &str| {
        python_in(
            folder,
            &format!(
                "
import tarfile, io
def add(tar, name, data, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name); info.size = len(data); info.type = kind; tar.addfile(info, io.BytesIO(data))
jpg = open('im/a/0.jpg', 'rb').read()
tar = tarfile.open('made.tar', 'w')
{script}
tar.close()"
            ),
        );
        fs::read(folder.join("made.tar")).unwrap()
    };
    let gzip = {
        python_in(
            folder,
            "import gzip; open('x.tar', 'wb').write(gzip.compress(open('s-000.tar', 'rb').read()))",
        );
        fs::read(folder.join("x.tar")).unwrap()
    };
    let cases: Vec<(Vec<u8>, i32, &str)> = vec![
        (Vec::new(), 3, "is empty"),
        (cut(100), 3, "damaged.tar"),
        (cut(512 + 10), 3, "is truncated within a/0.jpg; write the shard again"),
        (cut(cls), 3, "has no end mark"),
        (cut(cls + 100), 3, "damaged.tar"),
        (cut(whole.len() / 2), 3, "damaged.tar"),
        (with(0, b"\xff\xff\xff"), 3, "damaged.tar"),
        (with(148, b"0000000"), 3, "damaged.tar"),
        (with(cls + 124, b"zzzzzzzzzzz"), 3, "damaged.tar"),
        (with(cls + 512, b"x"), 3, "damaged.tar"),
        (with(512, &[0; 64]), 0, "skipped damaged/a/0.jpg: "),
        (gzip, 3, "is compressed; unpack it"),
        ([whole.clone(), whole.clone()].concat(), 3, "goes on behind its end mark"),
        (
            made("add(tar, 'a.jpg', jpg); add(tar, 'a.cls', b'0'); add(tar, 'b.cls', b'1')"),
            3,
            "column `jpg` holds no picture; remove the sample",
        ),
        (
            made("add(tar, 'a.jpg', jpg); add(tar, 'a.cls', b'0'); add(tar, 'b.jpg', jpg)"),
            3,
            "b.jpg: column `cls` is empty",
        ),
        (
            made("add(tar, 'a.jpg', jpg); add(tar, 'a.cls', b'0'); add(tar, 'a.jpg', jpg)"),
            3,
            "holds a.jpg twice",
        ),
        (
            made("add(tar, 'a.jpg', jpg); add(tar, 'b.jpg', jpg); add(tar, 'a.cls', b'0')"),
            3,
            "a.cls comes again after other samples",
        ),
        (
            made("add(tar, 'a.jpg', jpg); add(tar, 'a.cls', b'\\xff\\xfe')"),
            3,
            "column `cls` holds neither text nor",
        ),
        (
            made("add(tar, 'a.jpg', jpg); add(tar, 'a.cls', b'0'); add(tar, 'a.json', b'{')"),
            3,
            "a.json is no JSON",
        ),
        (made("add(tar, 'a', jpg)"), 3, "has no extension, and KEY.EXTENSION is wanted"),
        (
            made(
                "add(tar, 'a.jpg', b''); add(tar, 'a.cls', b'0'); add(tar, 'b.jpg', jpg); add(tar, 'b.cls', b'1')",
            ),
            0,
            "skipped damaged/a.jpg: is empty",
        ),
    ];
    let mut wrong = String::new();
    for (index, (bytes, wanted, expected)) in cases.into_iter().enumerate() {
        fs::write(folder.join("damaged.tar"), bytes).unwrap();
        let source = json!({"table": {"file": at(folder, "damaged.tar"), "size": 8, "image": "jpg", "label": "cls", "targets": "classes", "classes": ["a", "b", "c"]}});
        let (code, told) = outcome(folder, index, &source);
        if code != wanted || !told.contains(expected) {
            wrong += &format!("{index}, exit {code}, not {wanted} with `{expected}`: {told}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_damage_of_a_parquet_file_is_named() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let source = json!({"table": {"file": at(folder, "damaged.parquet"), "size": 8, "image": "image", "label": "label"}});
    write_parquet(folder, "whole.parquet", 9, Compression::SNAPPY, true, 2);
    let whole = fs::read(folder.join("whole.parquet")).unwrap();
    let len = whole.len();
    let footer = u32::from_le_bytes(whole[len - 8..len - 4].try_into().unwrap()) as usize;
    let mut cases: Vec<Vec<u8>> = vec![Vec::new(), b"PAR1".to_vec(), b"path,label\n".to_vec()];
    cases.extend([4, len / 3, len - footer, len - 8, len - 4, len - 1].map(|len| whole[..len].to_vec()));
    let with = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    // Nothing can tell that the coefficients of a JPEG stream are damaged; that its start is, can.
    let picture =
        |from: usize| from + whole[from..].windows(3).position(|bytes| bytes == [0xff, 0xd8, 0xff]).unwrap();
    // The footer, its length, its mark; headers of pages and pages.
    cases.extend([
        with(len - 4, b"PAR2"),
        with(len - 8, &[0xff; 4]),
        with(len - 8, &[1, 0, 0, 0]),
        with(len - 8 - footer, &[0xff; 16]),
        with(len - 8 - footer / 2, &[0; 32]),
        with(len - 8 - footer + 20, &[0x55; 16]),
        with(4, &[0xff; 12]),
        with(60, &[0; 200]),
        with(picture(0), &[0; 64]),
        with(picture(len / 2), &[0; 64]),
        with(picture(len / 3) - 30, &[0xee; 30]),
    ]);
    assert!(cases.len() >= 20);
    let mut wrong = String::new();
    for (index, bytes) in cases.into_iter().enumerate() {
        fs::write(folder.join("damaged.parquet"), bytes).unwrap();
        let (code, told) = outcome(folder, index, &source);
        // Damaged pictures within the share that may be skipped are left out, and listed.
        let is_named = told.contains("damaged.parquet") || told.contains("damaged/row ");
        if !(code == 3 && is_named || code == 0 && told.contains("skipped damaged/row ")) {
            wrong += &format!("{index}, exit {code}: {told}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
