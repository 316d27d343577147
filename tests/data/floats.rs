//! Pictures of many channels, of 16 bits and of floats, kept as they are.

use std::path::Path;

use serde_json::{Value, json};
use tch::Kind;
use tikhonov::data::Dataset;
use tikhonov::data::loader::{Loader, LoaderOptions, Preparation};

use super::{at, made_by, mistake, numbers, open, python_in, refusal, xs};
use crate::common::{run, succeeds, write_config};
use crate::loader::{augment, batches, options};

/// `im/0.npy` … are `[10, 12, 5]` float32, `tif` the same as TIFF, `deep` 16-bit grey PNG, `masks` of two classes;
/// `all.npy` has the five-channel ones as `[4, 5, 10, 12]`.
const PICTURES: &str = "
from PIL import Image
import os, struct
for folder in ['im', 'tif', 'deep/a', 'deep/b', 'masks']: os.makedirs(folder)
rng = np.random.default_rng(0)
def tiff(name, a):
    # Little-endian, one strip, pixel by pixel.
    h, w, c = a.shape
    bits = a.dtype.itemsize * 8
    form = 3 if a.dtype.kind == 'f' else 1
    tags = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, c, None), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, None),
            (277, 3, 1, c), (278, 3, 1, h), (279, 4, 1, a.nbytes), (284, 3, 1, 1), (338, 3, c - 1, 'extra'), (339, 3, c, 'form')]
    at = 8 + 2 + 12 * len(tags) + 4
    extra = b''
    entries = b''
    for tag, kind, count, value in tags:
        if value in (None, 'extra', 'form') and kind == 3:
            data = struct.pack(f'<{count}H', *[{None: bits, 'extra': 0, 'form': form}[value]] * count)
            if len(data) > 4:
                entries += struct.pack('<HHII', tag, kind, count, at + len(extra))
                extra += data
            else:
                entries += struct.pack('<HHI', tag, kind, count) + data.ljust(4, b'\\0')
        else:
            entries += struct.pack('<HHI', tag, kind, count) + struct.pack('<I', -1 % 2**32 if value is None else value)
    strip = at + len(extra)
    entries = entries.replace(struct.pack('<HHII', 273, 4, 1, 2**32 - 1), struct.pack('<HHII', 273, 4, 1, strip))
    with open(name, 'wb') as f:
        f.write(b'II*\\0' + struct.pack('<I', 8) + struct.pack('<H', len(tags)) + entries + b'\\0' * 4 + extra + a.tobytes())
all = []
for i in range(4):
    a = rng.normal(3, 2, (10, 12, 5)).astype(np.float32)
    all.append(a.transpose(2, 0, 1))
    np.save(f'im/{i}.npy', a if i % 2 else np.ascontiguousarray(a.transpose(2, 0, 1)))
    tiff(f'tif/{i}.tif', a)
    Image.fromarray((a[:, :, 0] > 3).astype(np.uint8)).save(f'masks/{i}.png')
    deep = rng.integers(0, 65535, (6, 6), np.uint16)
    Image.fromarray(deep).save(f'deep/{\"ab\"[i % 2]}/{i}.png')
    np.save(f'deep-{i}.npy', deep)
np.save('all.npy', np.stack(all))
";

fn images(folder: &Path, root: &str, more: Value) -> Value {
    let mut images = json!({"root": at(folder, root), "mode": {"float32": 5}, "patch": 6, "per_image": 3});
    images.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"images": images})
}

fn loader(set: &Dataset, steps: &str) -> Loader {
    let options = LoaderOptions { train: true, batch_size: 4, ..options() };
    Loader::new(set, &Preparation { augment: augment(steps), ..Preparation::default() }, options).unwrap()
}

#[test]
fn values_of_any_number_of_channels_come_out_as_they_are() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    // Cut and turned, every patch is a part of its picture, in all channels.
    let all: Vec<f64> = {
        let text = python_in(folder, "print(*np.load('all.npy').astype(np.float64).ravel())");
        text.split_whitespace().map(|value| value.parse().unwrap()).collect()
    };
    let value = |picture: usize, channel: usize, row: usize, column: usize| {
        all[((picture * 5 + channel) * 10 + row) * 12 + column]
    };
    for root in ["im", "tif"] {
        let set = open(json!({"train": images(folder, root, json!({}))})).train;
        assert_eq!((set.len(), set.shape.clone()), (12, vec![5, 6, 6]));
        for batch in batches(&loader(&set, "[]"), 0, 0) {
            assert_eq!(batch.xs.kind(), Kind::Float);
            for (place, index) in batch.indices.iter().enumerate() {
                let patch = numbers(&batch.xs.get(place as i64));
                let picture = *index as usize / 3;
                let fits = |top: usize, left: usize| {
                    (0..180).all(|at| patch[at] == value(picture, at / 36, top + at / 6 % 6, left + at % 6))
                };
                assert!((0..5).any(|top| (0..7).any(|left| fits(top, left))), "{root} {index}");
            }
        }
    }
    // Masks and turns go along.
    let masked = json!({"mask": {"root": at(folder, "masks"), "classes": ["low", "high"]}});
    let set = open(json!({"train": images(folder, "im", masked)})).train;
    for batch in batches(&loader(&set, "[{dihedral: {}}]"), 0, 0) {
        let high = batch.xs.select(1, 0).gt(3.0).to_kind(Kind::Int64);
        assert_eq!(numbers(&high), numbers(&batch.ys));
    }
}

#[test]
fn sixteen_bits_are_all_kept() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let source = json!({"folder": {"root": at(folder, "deep"), "size": 6, "mode": {"float32": 1}}});
    let set = open(json!({"train": source})).train;
    assert_eq!(xs(&set).kind(), Kind::Float);
    let text = python_in(
        folder,
        "print(*np.concatenate([(np.load(f'deep-{i}.npy') / 65535).astype(np.float32).astype(np.float64).ravel() for i in [0, 2, 1, 3]]))",
    );
    let expected: Vec<f64> = text.split_whitespace().map(|value| value.parse().unwrap()).collect();
    assert_eq!(numbers(xs(&set)), expected);
}

#[test]
fn a_network_of_five_channels_learns_masks_and_finds_them() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let source =
        images(folder, "tif", json!({"mask": {"root": at(folder, "masks"), "classes": ["low", "high"]}}));
    let text = format!(
        "model: {{layers: [{{conv2d: {{out_channels: 2, kernel_size: 1}}}}], input: [5, 6, 6]}}\ntask: segmentation\n\
         data: {{train: {source}, batch_size: 4, workers: 1, augment: [{{flip: {{horizontal: true}}}}]}}\n\
         optimizer: {{adam: {{lr: 0.1}}}}\ntrain: {{epochs: 20}}\noutput: {}\n",
        folder.join("run").display()
    );
    succeeds(&["train", &write_config(folder, &text), "--threads", "1"]);
    let out = folder.join("out").display().to_string();
    succeeds(&["predict", &folder.join("run").display().to_string(), &at(folder, "tif"), "-o", &out]);
    let right = python_in(folder, "
from PIL import Image
right = [(np.array(Image.open(f'out/{i}.png')) == np.array(Image.open(f'masks/{i}.png'))).mean() for i in range(4)]
print(np.mean(right) > 0.95)");
    assert_eq!(right.trim(), "True");
}

#[test]
fn damaged_and_unfit_values_are_named() {
    let (folder, _) = made_by(&format!("{PICTURES}
import shutil
def bad(name, a): os.makedirs(name); np.save(f'{{name}}/x.npy', a)
bad('nan', np.full((10, 12, 5), np.nan, np.float32))
bad('few', np.zeros((10, 12, 3), np.float32))
bad('both', np.zeros((5, 5, 5), np.float32))
bad('four', np.zeros((1, 10, 12, 5), np.float32))
bad('int', np.zeros((10, 12, 5), np.int64) - 1)
bad('object', np.zeros((10, 12, 5), np.complex64))
for name, cut in [('cut', 700), ('head', 40)]:
    os.makedirs(name); open(f'{{name}}/x.npy', 'wb').write(open('im/1.npy', 'rb').read()[:cut])
for name, change in [('tcut', lambda b: b[:900]), ('tag', lambda b: b[:20] + b'\\xff' * 60 + b[80:]), ('order', lambda b: b'MM' + b[2:]), ('none', lambda b: b[:6]), ('colour', lambda b: b)]:
    os.makedirs(name); open(f'{{name}}/x.tif', 'wb').write(change(open('tif/0.tif', 'rb').read()))
Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save('colour/x.tif')"));
    let folder = folder.path();
    for (root, expected) in [
        ("nan", "holds NaN or infinity"),
        ("few", "is [10, 12, 3]: neither 10 nor 3 is the number of channels, 5"),
        ("both", "channels first or last"),
        ("four", "and a picture is [H, W], [H, W, C] or [C, H, W]"),
        ("int", "and uint8, uint16 and floats are read"),
        ("object", "is no number type that is read here"),
        ("cut", "is truncated"),
        ("head", "header"),
        ("tcut", "cannot be decoded"),
        ("tag", "TIFF"),
        ("order", "is not a picture of a known format"),
        ("none", "x.tif: "),
        ("colour", "has 3 channels, and `mode: {float32: 5}` wants 5"),
    ] {
        let told = refusal(json!({"train": images(folder, root, json!({}))}));
        assert!(told.contains(expected) && told.contains("/x."), "{root}: {told}");
    }
    let source = json!({"folder": {"root": at(folder, "deep"), "size": 7, "mode": {"float32": 1}}});
    let told = refusal(json!({"train": source}));
    assert!(told.contains("is 6x6, and pictures of float32 are not resized"), "{told}");
    let mode = images(folder, "im", json!({"mode": {"float32": 0}}));
    assert!(mistake(json!({"train": mode})).contains("train.images.mode: a picture has 1 to 1024 channels"));
    let config = write_config(folder, "model: x\n");
    assert_eq!(run(&["train", &config]).0, 2);
}
