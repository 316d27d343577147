//! idx, CIFAR and numpy files.

use std::fs;

use serde_json::json;
use tch::Kind;
use tikhonov::data::{Dataset, Targets};

use super::{at, class_sums, labels, made_by, mistake, numbers, open, python_in, refusal, values, xs};
use crate::common::data_dir;

#[test]
fn fashion_mnist_reads_as_numpy_reads_it() {
    let Some(data) = data_dir("fashion_mnist_reads_as_numpy_reads_it") else { return };
    let folder = data.join("fashion-mnist");
    let idx = |part: &str, limit: usize| {
        let (images, labels) =
            (format!("{part}-images-idx3-ubyte.gz"), format!("{part}-labels-idx1-ubyte.gz"));
        json!({"idx": {"images": at(&folder, &images), "labels": at(&folder, &labels), "limit": limit}})
    };
    let sets = open(json!({"train": idx("train", 60_000), "test": idx("t10k", 1000)}));
    let expected = python_in(
        &folder,
        "
import gzip
for part, n in [('train', 60000), ('t10k', 1000)]:
    x = np.frombuffer(gzip.open(part + '-images-idx3-ubyte.gz').read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    y = np.frombuffer(gzip.open(part + '-labels-idx1-ubyte.gz').read(), np.uint8, offset=8)
    print(sums(x[:n])); print(sums(y[:n]))
",
    );
    assert_eq!(class_sums(&sets.train) + &class_sums(sets.test.as_ref().expect("a test set")), expected);
    assert_eq!(sets.train.shape, [1, 28, 28]);
    assert_eq!(sets.train.classes.len(), 10);
}

#[test]
fn the_real_cifar_batch_reads_as_numpy_reads_it() {
    let Some(data) = data_dir("the_real_cifar_batch_reads_as_numpy_reads_it") else { return };
    let folder = data.join("cifar-10");
    let sets = open(json!({
        "train": {"cifar10": {"files": [at(&folder, "data_batch_1.bin")], "classes": at(&folder, "batches.meta.txt")}},
        "test": {"cifar10": {"files": at(&folder, "test_batch_first1000.bin"), "classes": at(&folder, "batches.meta.txt")}},
    }));
    let expected = python_in(
        &folder,
        "
for name in ['data_batch_1.bin', 'test_batch_first1000.bin']:
    a = np.fromfile(name, np.uint8).reshape(-1, 3073)
    print(sums(a[:, 1:].reshape(-1, 3, 32, 32))); print(sums(a[:, 0]))
",
    );
    assert_eq!(class_sums(&sets.train) + &class_sums(sets.test.as_ref().expect("a test set")), expected);
    assert_eq!(sets.train.classes[6], "frog");
}

/// Ten 4x5 pictures with labels, plain and gzipped.
const IDX: &str = "
import gzip, struct
rng = np.random.default_rng(1)
x = rng.integers(0, 256, (10, 4, 5), dtype=np.uint8); y = np.arange(10, dtype=np.uint8) % 3
open('x', 'wb').write(struct.pack('>4B3I', 0, 0, 8, 3, *x.shape) + x.tobytes())
open('y', 'wb').write(struct.pack('>4BI', 0, 0, 8, 1, 10) + y.tobytes())
for n in 'xy': open(n + '.gz', 'wb').write(gzip.compress(open(n, 'rb').read()))
print(sums(x[:, None])); print(sums(y))
";

#[test]
fn idx_files_read_plain_and_gzipped_and_limited() {
    let (folder, expected) = made_by(IDX);
    let idx = |images: &str, labels: &str| json!({"train": {"idx": {"images": at(&folder, images), "labels": at(&folder, labels)}}});
    let plain = open(idx("x", "y")).train;
    assert_eq!(class_sums(&plain), expected);
    let zipped = open(idx("x.gz", "y.gz")).train;
    assert_eq!(class_sums(&zipped), expected);
    assert_eq!(plain.fingerprint, zipped.fingerprint);
    let mut limited = idx("x.gz", "y");
    limited["train"]["idx"]["limit"] = json!(4);
    let limited = open(limited).train;
    assert_eq!(labels(&limited), [0, 1, 2, 0]);
    assert_ne!(limited.fingerprint, plain.fingerprint);
}

#[test]
fn damaged_idx_files_are_refused_with_their_name() {
    let (folder, _) = made_by(IDX);
    let idx = |images: &str, labels: &str| json!({"train": {"idx": {"images": at(&folder, images), "labels": at(&folder, labels)}}});
    for whole in ["x", "x.gz"] {
        let bytes = fs::read(folder.path().join(whole)).expect("the file");
        for cut in [0, 1, 3, 4, 7, 15, 16, 17, bytes.len() / 2, bytes.len() - 9, bytes.len() - 1] {
            fs::write(folder.path().join("cut"), &bytes[..cut]).expect("written");
            let text = refusal(idx("cut", "y"));
            assert!(text.contains("cut:"), "{whole} cut at {cut}: {text}");
        }
        let longer = [bytes.as_slice(), b"more"].concat();
        fs::write(folder.path().join("long"), longer).expect("written");
        assert!(refusal(idx("long", "y")).contains("long:"));
    }
    let mut zipped = fs::read(folder.path().join("x.gz")).expect("the file");
    let middle = zipped.len() / 2;
    zipped[middle] ^= 0x10;
    fs::write(folder.path().join("flipped"), &zipped).expect("written");
    assert!(refusal(idx("flipped", "y")).contains("flipped:"));
    // A header that promises 64 TiB must not make room for them.
    let mut vast = fs::read(folder.path().join("x")).expect("the file");
    vast[4..16].copy_from_slice(&[0x7f; 12]);
    fs::write(folder.path().join("vast"), &vast).expect("written");
    assert!(refusal(idx("vast", "y")).contains("truncated"));
    assert!(refusal(idx("y", "x")).contains("swapped"));
    fs::write(folder.path().join("few"), [&[0, 0, 8, 1, 0, 0, 0, 2], [0, 1].as_slice()].concat())
        .expect("written");
    assert!(refusal(idx("x", "few")).contains("10 pictures"));
    assert!(mistake(idx("none", "y")).starts_with("train.idx.images: there is no file"));
}

#[test]
fn cifar_100_has_fine_and_coarse_labels_and_damage_is_refused() {
    let (folder, expected) = made_by(
        "
a = np.random.default_rng(2).integers(0, 256, (6, 3074), dtype=np.uint8)
a[:, 0] = [0, 1, 19, 3, 4, 5]; a[:, 1] = [99, 1, 2, 0, 50, 7]
a.tofile('train.bin'); a.ravel()[:-1].tofile('cut.bin')
b = a.copy(); b[4, 0] = 20; b.tofile('label.bin')
open('pickled', 'wb').write(b'\\x80\\x02}q')
x = a[:, 2:].reshape(-1, 3, 32, 32)
print(sums(x)); print(sums(a[:, 1])); print(sums(x)); print(sums(a[:, 0]))
",
    );
    let cifar = |file: &str, labels: &str| json!({"train": {"cifar100": {"files": at(&folder, file), "labels": labels}}});
    let (fine, coarse) = (open(cifar("train.bin", "fine")).train, open(cifar("train.bin", "coarse")).train);
    assert_eq!(class_sums(&fine) + &class_sums(&coarse), expected);
    assert_eq!((fine.classes.len(), coarse.classes.len()), (100, 20));
    assert!(refusal(cifar("cut.bin", "fine")).contains("truncated"));
    assert!(refusal(cifar("label.bin", "coarse")).contains("record 4 has label 20"));
    assert!(refusal(cifar("pickled", "fine")).contains("binary version"));
}

#[test]
fn numpy_arrays_of_every_number_type_read_as_numpy_has_them() {
    let (folder, printed) = made_by(
        "
rng = np.random.default_rng(3)
x = rng.integers(0, 100, (4, 3)); y = rng.normal(size=4)
np.save('y', y)
for t in ['u1', 'i1', '<i2', '>i2', '<u2', '>u4', '<i4', '>i8', '<u8', '<f2', '>f4', '<f8']:
    np.save(t.strip('<>') + ('_big' if t[0] == '>' else ''), x.astype(t))
np.save('fortran', np.asfortranarray(x.astype('f4')))
print(*x.ravel()); print(*y)
",
    );
    let mut lines = printed
        .lines()
        .map(|line| line.split(' ').map(|x| x.parse().expect("a number")).collect::<Vec<f64>>());
    let (expected_xs, expected_ys) = (lines.next().expect("xs"), lines.next().expect("ys"));
    for name in
        ["u1", "i1", "i2", "i2_big", "u2", "u4_big", "i4", "i8_big", "u8", "f2", "f4_big", "f8", "fortran"]
    {
        let file = at(&folder, &format!("{name}.npy"));
        let set = open(json!({"train": {"npy": {"xs": file, "ys": at(&folder, "y.npy")}}})).train;
        assert_eq!(numbers(xs(&set)), expected_xs, "{name}");
        assert_eq!(values(&set), expected_ys, "{name}");
        assert_eq!(set.shape, [3]);
    }
}

#[test]
fn numpy_images_come_in_either_layout_and_from_archives() {
    let (folder, expected) = made_by(
        "
rng = np.random.default_rng(4)
x = rng.integers(0, 256, (5, 3, 8, 6), dtype=np.uint8); y = np.array([0, 1, 2, 1, 0])
np.savez('plain', x=x, y=y); np.savez_compressed('packed', x=x.transpose(0, 2, 3, 1), y=y.astype('i2'))
np.save('grey', x[:, 0]); np.save('y', y); np.save('float', (x / 255).astype('f4'))
print(sums(x)); print(sums(y)); print(sums(x)); print(sums(y)); print(sums(x[:, :1])); print(sums(y))
",
    );
    let plain =
        open(json!({"train": {"npy": {"file": at(&folder, "plain.npz"), "xs": "x", "ys": "y"}}})).train;
    let packed = json!({"train": {"npy": {"file": at(&folder, "packed.npz"), "xs": "x", "ys": "y", "layout": "nhwc"}}});
    let packed = open(packed).train;
    let grey =
        open(json!({"train": {"npy": {"xs": at(&folder, "grey.npy"), "ys": at(&folder, "y.npy")}}})).train;
    assert_eq!(class_sums(&plain) + &class_sums(&packed) + &class_sums(&grey), expected);
    let float =
        open(json!({"train": {"npy": {"xs": at(&folder, "float.npy"), "ys": at(&folder, "y.npy")}}})).train;
    assert_eq!((xs(&float).kind(), float.shape.as_slice()), (Kind::Float, [3, 8, 6].as_slice()));
    let wrong = refusal(json!({"train": {"npy": {"file": at(&folder, "packed.npz"), "xs": "x", "ys": "y"}}}));
    assert!(!wrong.is_empty());
}

#[test]
fn damaged_and_unfit_numpy_files_are_refused_with_their_name() {
    let (folder, _) = made_by(
        "
x = np.arange(60, dtype='f4').reshape(20, 3); np.save('x', x); np.save('y', np.zeros(20)); np.savez_compressed('z', x=x, y=x[:, 0])
n = x.copy(); n[7, 1] = np.nan; np.save('nan', n); np.save('object', np.array([{}] * 20)); np.save('y19', np.zeros(19))
np.save('complex', x.astype('c8')); np.save('negative', np.full(20, -1)); np.save('records', np.zeros(20, [('a', 'f4')]))
np.save('empty', np.zeros((0, 3)))
b = open('x.npy', 'rb').read()
open('vast.npy', 'wb').write(b.replace(b'(20, 3)', b'(4000000000, 4000000000, 4000000000)'[:len(b'(20, 3)')]))
open('shape.npy', 'wb').write(b.replace(b'(20, 3)', b'(99, 9)'))
open('junk.npy', 'wb').write(b[:10] + b'\\xff' * 118 + b[128:])
",
    );
    let npy = |xs: &str, ys: &str| json!({"train": {"npy": {"xs": at(&folder, xs), "ys": at(&folder, ys)}}});
    for (whole, is_archive) in [("x.npy", false), ("z.npz", true)] {
        let bytes = fs::read(folder.path().join(whole)).expect("the file");
        for cut in [0, 1, 6, 8, 9, 50, 127, 128, 129, bytes.len() / 2, bytes.len() - 1] {
            fs::write(folder.path().join("cut"), &bytes[..cut]).expect("written");
            let data = match is_archive {
                true => json!({"train": {"npy": {"file": at(&folder, "cut"), "xs": "x", "ys": "y"}}}),
                false => npy("cut", "y.npy"),
            };
            let text = refusal(data);
            assert!(text.contains("cut"), "{whole} cut at {cut}: {text}");
        }
    }
    // Any single damaged byte of an archive's data shows in its checksum.
    let mut archive = fs::read(folder.path().join("z.npz")).expect("the file");
    let middle = 120;
    archive[middle] ^= 1;
    fs::write(folder.path().join("flipped"), &archive).expect("written");
    assert!(
        refusal(json!({"train": {"npy": {"file": at(&folder, "flipped"), "xs": "x", "ys": "y"}}}))
            .contains("flipped")
    );
    for (name, word) in [
        ("nan.npy", "sample 7"),
        ("object.npy", "object"),
        ("complex.npy", "c8"),
        ("records.npy", "records"),
        ("vast.npy", "vast"),
        ("shape.npy", "truncated"),
        ("junk.npy", "header"),
        ("empty.npy", "empty"),
    ] {
        let text = refusal(npy(name, "y.npy"));
        assert!(text.contains(word), "{name}: {text}");
    }
    assert!(refusal(npy("x.npy", "y19.npy")).contains("one entry per sample"));
    assert!(refusal(npy("x.npy", "negative.npy")).contains("count from 0"));
    let key = refusal(json!({"train": {"npy": {"file": at(&folder, "z.npz"), "xs": "a", "ys": "y"}}}));
    assert!(key.contains("there is no array `a` (there are x, y)"), "{key}");
}

#[test]
fn a_test_set_takes_the_class_indices_of_the_training_set() {
    let (folder, _) = made_by("np.save('x', np.zeros((3, 2))); np.save('y', np.array([0, 1, 1]))");
    let npy = |classes: &[&str]| json!({"npy": {"xs": at(&folder, "x.npy"), "ys": at(&folder, "y.npy"), "classes": classes}});
    let sets = open(json!({"train": npy(&["cat", "dog"]), "test": npy(&["dog", "cat"])}));
    assert_eq!(labels(sets.test.as_ref().expect("a test set")), [1, 0, 0]);
    let text = refusal(json!({"train": npy(&["cat", "dog"]), "test": npy(&["dog", "cow"])}));
    assert!(text.contains("class `cow` of the test set"), "{text}");
}

#[test]
fn an_array_of_zeros_and_ones_says_which_of_several_classes_each_sample_has() {
    let (folder, _) = made_by(
        "np.save('x.npy', np.zeros((4, 1, 2, 2), np.uint8))
np.save('y.npy', np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], np.uint8))
np.save('two.npy', np.array([[1, 0, 1], [0, 2, 0], [0, 1, 0], [1, 1, 1]], np.uint8))",
    );
    let source = |ys: &str, classes: &[&str]| json!({"npy": {"xs": at(&folder, "x.npy"), "ys": at(&folder, ys), "targets": "multi_label", "classes": classes}});
    let sets =
        open(json!({"train": source("y.npy", &["a", "b", "c"]), "test": source("y.npy", &["c", "a", "b"])}));
    let multi_label = |set: &Dataset| match &set.targets {
        Targets::MultiLabel(ys) => numbers(ys),
        _ => panic!("something else"),
    };
    assert_eq!(multi_label(&sets.train), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
    assert_eq!(
        (sets.train.classes.join(" "), sets.train.class_counts()),
        ("a b c".to_owned(), vec![2, 2, 2])
    );
    // The test set has its columns in another order: they follow the names.
    let test = sets.test.unwrap();
    assert_eq!(test.classes, sets.train.classes);
    assert_eq!(multi_label(&test), [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    let told = refusal(json!({"train": source("two.npy", &["a", "b", "c"])}));
    assert!(told.contains("two.npy: entry 1 holds what is neither 0 nor 1"), "{told}");
    let told = refusal(json!({"train": source("y.npy", &["a", "b"])}));
    assert!(told.contains("only 2 class names are declared"), "{told}");
}
