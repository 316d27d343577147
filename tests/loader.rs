//! The loader: batches are pure functions of (seed, epoch, step), whatever makes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use tikhonov::data::augment::Augment;
use tikhonov::data::loader::{Batch, Loader, LoaderOptions, Preparation};
use tikhonov::data::normalize::{Normalize, NormalizeSpec};
use tikhonov::data::{DataSpec, Dataset, Files, Fit, Framing, ImageFile, Mode, Resize, Samples, Targets};
use tikhonov::util::exit_code::{self, ExitCode};
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::{data_dir, python};

/// Augmentations as a config writes them.
pub fn augment(yaml: &str) -> Vec<Augment> {
    let tree: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
    tikhonov::util::yaml::decode(&tree).unwrap()
}

pub fn options() -> LoaderOptions {
    LoaderOptions {
        batch_size: 8,
        train: true,
        drop_last: false,
        seed: 7,
        device: Device::Cpu,
        kind: Kind::Float,
        workers: 0,
    }
}

pub fn dataset(xs: Tensor, targets: Targets) -> Dataset {
    Dataset {
        shape: xs.size()[1..].to_vec(),
        samples: Samples::Resident(xs),
        targets,
        classes: Vec::new(),
        features: Vec::new(),
        names: Vec::new(),
        columns: BTreeMap::new(),
        fingerprint: String::new(),
        skipped: Vec::new(),
        notes: Vec::new(),
    }
}

/// Pictures of reproducible random levels, three classes.
pub fn pictures(n: i64, channels: i64, height: i64, width: i64) -> Dataset {
    let mut draw = CounterRng::new(1, 0, 0, RngStream::Generate);
    let bytes: Vec<u8> = (0..n * channels * height * width).map(|_| draw.below(256) as u8).collect();
    let xs = Tensor::from_slice(&bytes).view([n, channels, height, width]);
    dataset(xs, Targets::Classes((0..n).map(|index| index % 3).collect()))
}

fn prep(yaml: &str, channels: usize) -> Preparation {
    let normalize = Normalize { mean: vec![0.4; channels], std: vec![0.3; channels] };
    Preparation { normalize: Some(normalize), augment: augment(yaml), ..Preparation::default() }
}

pub fn batches(loader: &Loader, epoch: u64, from: usize) -> Vec<Batch> {
    loader.epoch(epoch, from).map(|batch| batch.unwrap()).collect()
}

pub fn floats(xs: &Tensor) -> Vec<f64> {
    Vec::try_from(xs.to_kind(Kind::Double).to_device(Device::Cpu).contiguous().view(-1)).unwrap()
}

fn same(a: &[Batch], b: &[Batch]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.indices == b.indices && a.xs.equal(&b.xs) && a.ys.equal(&b.ys) && a.xs.kind() == b.xs.kind()
        })
}

const EVERYTHING: &str = "[{crop: {padding: 2}}, {flip: {horizontal: true, vertical: true}}, \
    {rotation: {degrees: 20}}, {color_jitter: {brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.1}}, \
    {random_resized_crop: {scale: [0.5, 1]}}, {noise: {sigma: 0.1}}, {cutout: {size: 3, p: 0.7}}, \
    {mixup: {alpha: 0.4}}, {cutmix: {}}]";

#[test]
fn a_batch_is_the_same_wherever_the_epoch_starts() {
    let set = pictures(43, 3, 12, 10);
    for steps in ["[]", "[{flip: {horizontal: true}}, {crop: {padding: 3}}, {cutout: {size: 4}}]", EVERYTHING]
    {
        let loader = Loader::new(&set, &prep(steps, 3), options()).unwrap();
        let whole = batches(&loader, 5, 0);
        assert_eq!(whole.len(), 6);
        assert_eq!(whole.len(), loader.steps());
        for from in 1..6 {
            assert!(same(&whole[from..], &batches(&loader, 5, from)), "{steps} from {from}");
        }
        let again = Loader::new(&set, &prep(steps, 3), options()).unwrap();
        assert!(same(&whole, &batches(&again, 5, 0)));
        assert!(!same(&whole, &batches(&loader, 6, 0)), "epochs must differ");
        let other = Loader::new(&set, &prep(steps, 3), LoaderOptions { seed: 8, ..options() }).unwrap();
        assert!(!same(&whole, &batches(&other, 5, 0)), "seeds must differ");
    }
}

#[test]
fn every_sample_appears_once_per_epoch_in_the_drawn_order() {
    let set = pictures(43, 1, 4, 4);
    let loader = Loader::new(&set, &Preparation::default(), options()).unwrap();
    let got: Vec<i64> = batches(&loader, 2, 0).into_iter().flat_map(|batch| batch.indices).collect();
    assert_eq!(got, CounterRng::new(7, 2, 0, RngStream::Order).permutation(43));
    let dropped = LoaderOptions { drop_last: true, ..options() };
    let loader = Loader::new(&set, &Preparation::default(), dropped).unwrap();
    assert_eq!(loader.steps(), 5);
    assert!(batches(&loader, 2, 0).iter().all(|batch| batch.xs.size()[0] == 8));
}

#[test]
fn a_batch_larger_than_the_set_is_the_whole_set() {
    let set = pictures(5, 1, 4, 4);
    let loader =
        Loader::new(&set, &Preparation::default(), LoaderOptions { batch_size: 99, ..options() }).unwrap();
    let batches = batches(&loader, 0, 0);
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].xs.size(), [5, 1, 4, 4]);
    assert_eq!(batches[0].ys.size(), [5]);
}

#[test]
fn evaluation_is_in_order_and_untouched() {
    let set = pictures(20, 3, 6, 5);
    let untrained = LoaderOptions { train: false, ..options() };
    let loader = Loader::new(&set, &prep(EVERYTHING, 3), untrained).unwrap();
    let batches = batches(&loader, 3, 0);
    let Samples::Resident(raw) = &set.samples else { unreachable!() };
    let xs = Tensor::cat(&batches.iter().map(|batch| &batch.xs).collect::<Vec<_>>(), 0);
    let want = (raw.to_kind(Kind::Float) / 255.0 - 0.4f64) / 0.3f64;
    assert!(xs.equal(&want), "torchvision's ToTensor and Normalize, to the last bit");
    let labels: Vec<i64> =
        batches.iter().flat_map(|batch| Vec::<i64>::try_from(&batch.ys).unwrap()).collect();
    assert_eq!(labels, (0..20).map(|index| index % 3).collect::<Vec<_>>());
}

#[test]
fn the_one_pass_over_bytes_equals_the_operations_of_libtorch() {
    // The same levels as floating-point pictures take the way of tensors.
    let set = pictures(40, 3, 9, 7);
    let Samples::Resident(levels) = &set.samples else { unreachable!() };
    for kind in [Kind::Float, Kind::Double] {
        for mode in ["constant", "edge", "reflect", "symmetric"] {
            let fill = if mode == "constant" { 51 } else { 0 };
            let steps = format!(
                "[{{flip: {{horizontal: true, vertical: true}}}}, \
                 {{crop: {{padding: 4, padding_mode: {mode}, fill: {fill}, size: [8, 11]}}}}, \
                 {{flip: {{vertical: true}}}}, {{crop: {{padding: 1, fill: 255}}}}, {{cutout: {{size: 5, p: 0.8}}}}]"
            );
            let floats = dataset(levels.to_kind(kind) / 255.0, Targets::Unknown);
            let options = LoaderOptions { kind, ..options() };
            let one_pass = Loader::new(&set, &prep(&steps, 3), options.clone()).unwrap();
            let tensors = Loader::new(&floats, &prep(&steps, 3), options).unwrap();
            assert_eq!(one_pass.shape(), [3, 8, 11]);
            for (a, b) in batches(&one_pass, 1, 0).iter().zip(batches(&tensors, 1, 0)) {
                assert_eq!(a.xs.kind(), kind);
                assert!(a.xs.equal(&b.xs), "{mode} {kind:?}");
            }
        }
    }
}

#[test]
fn tables_are_normalised_by_numpys_mean_and_std() {
    let rows = 57;
    let mut draw = CounterRng::new(2, 0, 0, RngStream::Generate);
    let mut values = Vec::new();
    for _ in 0..rows {
        values.extend([draw.normal() * 3.0 + 100.0, draw.uniform() * 1e-3, 4.5]);
    }
    let xs = Tensor::from_slice(&values).view([rows, 3]);
    let ys = xs.narrow(1, 0, 1) * 2.0;
    let set = dataset(xs, Targets::Values(ys));
    let normalize = NormalizeSpec::Auto.resolve(&set).unwrap().unwrap();
    let script =
        format!("import numpy as np\nx = np.array({values:?}).reshape(-1, 3)\nprint(*x.mean(0), *x.std(0))");
    let want: Vec<f64> = python(&script).split_whitespace().map(|word| word.parse().unwrap()).collect();
    for column in 0..2 {
        assert!((normalize.mean[column] / want[column] - 1.0).abs() < 1e-13);
        assert!((normalize.std[column] / want[3 + column] - 1.0).abs() < 1e-12);
    }
    assert_eq!(normalize.std[2], 1.0, "a constant feature is only centred");
    let prep = Preparation { normalize: Some(normalize), augment: Vec::new(), ..Preparation::default() };
    let kind = Kind::Double;
    let loader = Loader::new(&set, &prep, LoaderOptions { kind, batch_size: 100, ..options() }).unwrap();
    let batch = batches(&loader, 0, 0).remove(0);
    let (variance, mean) = batch.xs.var_mean_correction([0i64].as_slice(), 0, false);
    assert!(floats(&mean).iter().all(|mean| mean.abs() < 1e-12));
    let variance = floats(&variance);
    assert!((variance[0] - 1.0).abs() < 1e-9 && (variance[1] - 1.0).abs() < 1e-9 && variance[2] == 0.0);
    // Targets go with their samples and are left as they are.
    let restored = batch.xs.narrow(1, 0, 1) * prep.normalize.as_ref().unwrap().std[0]
        + prep.normalize.as_ref().unwrap().mean[0];
    assert!((batch.ys - restored * 2.0).abs().max().double_value(&[]) < 1e-9);
}

#[test]
fn pictures_are_normalised_by_numpys_mean_and_std() {
    let set = pictures(31, 3, 5, 6);
    let Samples::Resident(xs) = &set.samples else { unreachable!() };
    let values: Vec<u8> = Vec::try_from(xs.view(-1)).unwrap();
    let script = format!(
        "import numpy as np\nx = np.array({values:?}, np.uint8).reshape(31, 3, 5, 6) / 255\n\
         print(*x.mean((0, 2, 3)), *x.std((0, 2, 3)))"
    );
    let want: Vec<f64> = python(&script).split_whitespace().map(|word| word.parse().unwrap()).collect();
    let Normalize { mean, std } = NormalizeSpec::Auto.resolve(&set).unwrap().unwrap();
    for (got, want) in mean.iter().chain(&std).zip(&want) {
        assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    }
}

#[test]
fn mean_and_std_of_many_files_are_those_of_512_spread_evenly_over_the_set() {
    let folder = tempfile::tempdir().unwrap();
    // Of 768 pictures every second and third counts, and the last quarter is white.
    let files = (0..768u16).map(|index| {
        let path = folder.path().join(format!("{index}.pgm"));
        let level = if index < 576 { 0 } else { 255 };
        std::fs::write(&path, [&b"P5 2 1 255\n"[..], &[level, level]].concat()).unwrap();
        ImageFile::new(path, Mode::Grey)
    });
    let fit = Fit { height: 1, width: 2, resize: Resize::Squash, smooth: None, eval: None };
    let files = Files::new(files.collect(), Vec::new(), Framing::Fit(fit), 0, 0);
    let set = Dataset {
        samples: Samples::Files(Arc::new(files)),
        shape: vec![1, 1, 2],
        ..dataset(Tensor::zeros([768, 1], (Kind::Float, Device::Cpu)), Targets::Unknown)
    };
    let Normalize { mean, std } = NormalizeSpec::Auto.resolve(&set).unwrap().unwrap();
    assert!((mean[0] - 0.25).abs() < 1e-12 && (std[0] - 0.1875f64.sqrt()).abs() < 1e-12, "{mean:?} {std:?}");
}

#[test]
fn normalize_is_auto_none_or_numbers() {
    let read = |yaml: &str| -> Result<NormalizeSpec, String> {
        let tree: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
        tikhonov::util::yaml::decode(&tree).map_err(|error| error.to_string())
    };
    assert_eq!(read("auto").unwrap(), NormalizeSpec::Auto);
    assert_eq!(read("none").unwrap(), NormalizeSpec::None);
    let given = read("{mean: [0.1307], std: [0.3081]}").unwrap();
    assert_eq!(given, NormalizeSpec::Given(Normalize { mean: vec![0.1307], std: vec![0.3081] }));
    for spec in [NormalizeSpec::Auto, NormalizeSpec::None, given] {
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<NormalizeSpec>(&text).unwrap(), spec, "{text}");
    }
    assert!(read("{mean: [0.1], sdt: [0.3]}").unwrap_err().contains("sdt"));
    assert!(read("automatic").unwrap_err().contains("auto"));
    assert_eq!(read("{mean: [0.1], std: [0.0]}").unwrap().validate().unwrap_err().path, "std.0");
    assert_eq!(read("{mean: [0.1, 0.2], std: [0.3]}").unwrap().validate().unwrap_err().path, "std");
    let error = read("{mean: [0, 0], std: [1, 1]}").unwrap().resolve(&pictures(2, 3, 2, 2)).unwrap_err();
    assert_eq!(exit_code::code(&error), ExitCode::Usage as u8, "{error:#}");
}

#[test]
fn a_table_with_nan_cannot_be_normalised() {
    let set = dataset(Tensor::from_slice(&[1.0, f64::NAN]).view([2, 1]), Targets::Unknown);
    let error = NormalizeSpec::Auto.resolve(&set).unwrap_err();
    assert_eq!(exit_code::code(&error), ExitCode::Data as u8, "{error:#}");
}

#[test]
fn what_does_not_suit_the_samples_is_refused() {
    let table = dataset(Tensor::zeros([4, 3], (Kind::Float, Device::Cpu)), Targets::Classes(vec![0; 4]));
    let refused = [
        (&table, "[{flip: {horizontal: true}}]"),
        (&table, "[{cutmix: {}}]"),
        (&pictures(4, 1, 8, 8), "[{color_jitter: {hue: 0.1}}]"),
        (&pictures(4, 1, 8, 8), "[{crop: {size: 9}}]"),
        (&pictures(4, 1, 8, 8), "[{crop: {padding: 8, padding_mode: reflect}}]"),
    ];
    for (set, steps) in refused {
        let prep = Preparation { augment: augment(steps), ..Preparation::default() };
        let error = Loader::new(set, &prep, options()).err().expect(steps);
        assert_eq!(exit_code::code(&error), ExitCode::Usage as u8, "{error:#}");
        Loader::new(set, &prep, LoaderOptions { train: false, ..options() })
            .expect("no augmentation, no complaint");
    }
}

/// A folder of `n` PNGs of different sizes; those in `damaged` hold no picture.
fn files(n: usize, damaged: &[usize], forgiven: usize) -> (tempfile::TempDir, Dataset) {
    let folder = tempfile::tempdir().unwrap();
    let mut draw = CounterRng::new(3, 0, 0, RngStream::Generate);
    let mut files = Vec::new();
    for index in 0..n {
        let path = folder.path().join(format!("{index:03}.png"));
        if damaged.contains(&index) {
            std::fs::write(&path, b"\x89PNG\r\n\x1a\nno more").unwrap();
        } else {
            let (width, height) = (20 + draw.below(10) as u32, 24 + draw.below(6) as u32);
            image::RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([(x * 8) as u8, (y * 8) as u8, (index * 9) as u8])
            })
            .save(&path)
            .unwrap();
        }
        files.push(ImageFile::new(path, Mode::Rgb));
    }
    let fit = Fit { height: 16, width: 12, resize: Resize::Squash, smooth: None, eval: None };
    let set = Dataset {
        samples: Samples::Files(Arc::new(Files::new(files, Vec::new(), Framing::Fit(fit), forgiven, 0))),
        targets: Targets::Classes((0..n as i64).collect()),
        shape: vec![3, 16, 12],
        classes: (0..n).map(|index| index.to_string()).collect(),
        features: Vec::new(),
        names: (0..n).map(|index| format!("{index:03}.png")).collect(),
        columns: BTreeMap::new(),
        fingerprint: String::new(),
        skipped: Vec::new(),
        notes: Vec::new(),
    };
    (folder, set)
}

#[test]
fn streamed_batches_do_not_depend_on_the_number_of_workers() {
    let (_folder, set) = files(21, &[], 0);
    let lists = [
        "[]",
        "[{random_resized_crop: {size: 10}}, {flip: {horizontal: true}}, {cutout: {size: 3}}]",
        "[{random_resized_crop: {scale: [0.3, 1]}}, {rotation: {degrees: 10}}, {noise: {sigma: 0.1}}, {mixup: {alpha: 1}}]",
    ];
    for steps in lists {
        let make =
            |workers| Loader::new(&set, &prep(steps, 3), LoaderOptions { workers, ..options() }).unwrap();
        let alone = make(0);
        let want = batches(&alone, 1, 0);
        assert_eq!(want.len(), 3);
        for workers in [1, 2, 5] {
            let loader = make(workers);
            assert!(same(&want, &batches(&loader, 1, 0)), "{steps} with {workers}");
            assert!(same(&want[2..], &batches(&loader, 1, 2)), "{steps} with {workers} from 2");
        }
    }
}

#[test]
fn streamed_pictures_equal_resident_ones() {
    let (_folder, set) = files(10, &[], 0);
    let Samples::Files(files) = &set.samples else { unreachable!() };
    let bytes: Vec<u8> = files
        .files
        .iter()
        .flat_map(|file| files.fit().unwrap().whole(&file.decode().unwrap()).planes())
        .collect();
    let resident =
        dataset(Tensor::from_slice(&bytes).view([10, 3, 16, 12]), Targets::Classes((0..10).collect()));
    let steps = "[{flip: {horizontal: true}}, {crop: {padding: 2}}, {rotation: {degrees: 5}}]";
    for steps in ["[]", "[{flip: {horizontal: true}}, {crop: {padding: 2}}]", steps] {
        let a = Loader::new(&set, &prep(steps, 3), LoaderOptions { workers: 2, ..options() }).unwrap();
        let b = Loader::new(&resident, &prep(steps, 3), options()).unwrap();
        assert!(same(&batches(&a, 4, 0), &batches(&b, 4, 0)), "{steps}");
    }
}

/// The flowers, in memory or decoded on demand.
fn flowers(memory_gib: f64, augment: &str) -> Option<Dataset> {
    let root = data_dir("the loader on the flowers")?.join("photos/flowers/train");
    let yaml = format!(
        "{{train: {{folder: {{root: {}, size: 64}}}}, memory_gib: {memory_gib}, augment: {augment}}}",
        root.display()
    );
    let spec: DataSpec = tikhonov::util::yaml::decode(&serde_yaml::from_str(&yaml).unwrap()).unwrap();
    Some(spec.open(0).unwrap().train)
}

#[test]
fn streamed_flowers_equal_resident_flowers() {
    let (Some(resident), Some(streamed)) = (flowers(1.0, "[]"), flowers(0.0, "[]")) else { return };
    assert!(
        matches!(streamed.samples, Samples::Files(_)) && matches!(resident.samples, Samples::Resident(_))
    );
    let normalize = NormalizeSpec::Auto.resolve(&resident).unwrap();
    // 300 files: the streamed set is measured on all of them.
    assert_eq!(normalize, NormalizeSpec::Auto.resolve(&streamed).unwrap());
    let list =
        "[{flip: {horizontal: true}}, {crop: {padding: 4, padding_mode: reflect}}, {cutout: {size: 16}}]";
    let prep = Preparation { normalize, augment: augment(list), ..Preparation::default() };
    let options = LoaderOptions { batch_size: 64, workers: 3, ..options() };
    let a = Loader::new(&resident, &prep, options.clone()).unwrap();
    let b = Loader::new(&streamed, &prep, options).unwrap();
    assert!(same(&batches(&a, 1, 0), &batches(&b, 1, 0)));
}

#[test]
fn a_damaged_picture_is_replaced_by_the_next_in_training() {
    let (_folder, set) = files(9, &[2, 3, 8], 3);
    for workers in [0, 3] {
        let loader = Loader::new(&set, &prep("[]", 3), LoaderOptions { workers, ..options() }).unwrap();
        let order = CounterRng::new(7, 0, 0, RngStream::Order).permutation(9);
        let want: Vec<i64> = order.iter().map(|&i| if i == 2 || i == 3 { 4 } else { i % 8 }).collect();
        for _ in 0..2 {
            let batches = batches(&loader, 0, 0);
            let got: Vec<i64> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
            assert_eq!(got, want);
            let labels = batches.iter().flat_map(|batch| Vec::<i64>::try_from(&batch.ys).unwrap());
            assert_eq!(labels.collect::<Vec<_>>(), want);
        }
        let skipped: Vec<String> = loader.skipped().into_iter().map(|skipped| skipped.name).collect();
        assert_eq!(skipped, ["002.png", "003.png", "008.png"]);
    }
}

#[test]
fn a_damaged_picture_is_left_out_of_an_evaluation() {
    let (_folder, set) = files(9, &[2, 8], 2);
    let untrained = LoaderOptions { train: false, workers: 2, batch_size: 4, ..options() };
    let loader = Loader::new(&set, &prep("[]", 3), untrained).unwrap();
    let batches = batches(&loader, 0, 0);
    let indices: Vec<&[i64]> = batches.iter().map(|batch| batch.indices.as_slice()).collect();
    // The last batch would have been 8 alone.
    assert_eq!(indices, [&[0, 1, 3][..], &[4, 5, 6, 7]]);
    assert!(batches.iter().all(|batch| batch.xs.size()[0] == batch.indices.len() as i64));
    // Blue tells which file a picture is of.
    for batch in &batches {
        let blue = batch.xs.select(1, 2).mean_dim([1i64, 2].as_slice(), false, Kind::Double) * 0.3 + 0.4;
        let wanted = Tensor::from_slice(&batch.indices).to_kind(Kind::Double) * 9.0 / 255.0;
        assert!(blue.allclose(&wanted, 0.0, 1e-5, false), "{:?}", batch.indices);
    }
}

#[test]
fn more_damaged_pictures_than_forgiven_end_with_exit_3() {
    let (_folder, set) = files(12, &[1, 5], 1);
    for workers in [0, 1, 4] {
        let loader = Loader::new(&set, &prep("[]", 3), LoaderOptions { workers, ..options() }).unwrap();
        let mut epoch = loader.epoch(0, 0);
        let error = epoch.find_map(Result::err).expect("an error");
        assert_eq!(exit_code::code(&error), ExitCode::Data as u8);
        let text = format!("{error:#}");
        assert!(
            text.contains("001.png") && text.contains("005.png") && text.contains("max_skipped"),
            "{text}"
        );
        assert!(epoch.next().is_none(), "nothing comes after an error");
    }
}

#[test]
fn dropping_an_epoch_stops_its_workers() {
    let (_folder, set) = files(40, &[], 0);
    let loader =
        Loader::new(&set, &prep("[]", 3), LoaderOptions { workers: 3, batch_size: 2, ..options() }).unwrap();
    for taken in 0..3 {
        let mut epoch = loader.epoch(0, 0);
        for _ in 0..taken {
            epoch.next().unwrap().unwrap();
        }
        drop(epoch);
    }
    // The threads hold the samples; when all have gone, the loader is the only one to know them.
    drop(loader);
    let Samples::Files(files) = &set.samples else { unreachable!() };
    assert_eq!(Arc::strong_count(files), 1);
}

/// `cargo test --release --test all -- --ignored --nocapture milliseconds_per_batch`
#[test]
#[ignore = "a timing, not a check"]
fn milliseconds_per_batch_of_128_pictures_of_fashion_mnists_size() {
    let set = pictures(12800, 1, 28, 28);
    let lists = [
        "[]",
        "[{flip: {horizontal: true}}, {crop: {padding: 2}}]",
        "[{flip: {horizontal: true}}, {crop: {padding: 2}}, {cutout: {size: 8}}]",
        "[{flip: {horizontal: true}}, {crop: {padding: 2}}, {mixup: {alpha: 0.2}}]",
        "[{rotation: {degrees: 10}}]",
        "[{random_resized_crop: {}}]",
        "[{noise: {sigma: 0.1}}]",
    ];
    for threads in [1, 2, 4] {
        tch::set_num_threads(threads);
        for steps in lists {
            let options = LoaderOptions { batch_size: 128, ..options() };
            let loader = Loader::new(&set, &prep(steps, 1), options).unwrap();
            let mut times: Vec<f64> = (0..2)
                .flat_map(|epoch| {
                    let mut batches = loader.epoch(epoch, 0);
                    std::iter::from_fn(move || {
                        let start = std::time::Instant::now();
                        batches.next().map(|batch| (batch.unwrap(), start.elapsed().as_secs_f64() * 1e3).1)
                    })
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let (least, median) = (times[0], times[times.len() / 2]);
            println!("{threads} threads: {median:.3} ms per batch (least {least:.3})  {steps}");
        }
    }
}

/// `cargo test --release --test all -- --ignored --nocapture pictures_per_second`
#[test]
#[ignore = "a timing, not a check"]
fn pictures_per_second_of_streamed_flowers_with_random_resized_crops_to_64() {
    let list = "[{random_resized_crop: {}}, {flip: {horizontal: true}}]";
    let Some(set) = flowers(1.0, list) else { return };
    for workers in [1, 2, 4] {
        let options = LoaderOptions { batch_size: 32, workers, ..options() };
        let loader = Loader::new(&set, &prep(list, 3), options).unwrap();
        let start = std::time::Instant::now();
        let seen: i64 = loader.epoch(0, 0).map(|batch| batch.unwrap().xs.size()[0]).sum();
        println!("{workers} workers: {:.0} pictures/s", seen as f64 / start.elapsed().as_secs_f64());
    }
}
