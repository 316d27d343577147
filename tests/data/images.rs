//! Images without classes: patches, whole images, pairs and masks.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::data::Dataset;
use tikhonov::data::augment::Augment;
use tikhonov::data::loader::{Batch, Loader, LoaderOptions, Preparation};

use super::{at, made_by, mistake, numbers, open, refusal};
use crate::loader::{augment, batches, options};

/// `images` holds three pictures whose levels tell where they are: 16 · row + column, the second one column
/// wider, the third 255 minus that. `targets` holds 255 minus each, `masks` the level halved to 0 or 200, at
/// 120.
const PICTURES: &str = "
from PIL import Image
import os
for folder in ['images/deep', 'targets/deep', 'masks/deep']: os.makedirs(folder)
yy, xx = np.mgrid[:12, :16]
level = (16 * yy + xx).astype(np.uint8)
wide = np.pad(level, ((0, 0), (0, 1)), constant_values=7)
for name, a in [('a', level), ('deep/b', wide), ('deep/c', 255 - level)]:
    Image.fromarray(a).save(f'images/{name}.png')
    Image.fromarray(255 - a).save(f'targets/{name}.bmp')
    Image.fromarray(np.where(a > 120, 201, 3).astype(np.uint8)).save(f'masks/{name}.png')
";

fn section(folder: &Path, more: Value) -> Value {
    let mut images = json!({"root": at(folder, "images"), "mode": "grey"});
    images.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"train": {"images": images}})
}

fn set(folder: &Path, more: Value) -> Dataset {
    open(section(folder, more)).train
}

fn loader(set: &Dataset, steps: Vec<Augment>, change: impl FnOnce(&mut LoaderOptions)) -> Loader {
    let mut options = options();
    change(&mut options);
    Loader::new(set, &Preparation { augment: steps, ..Preparation::default() }, options).unwrap()
}

fn levels(xs: &Tensor) -> Vec<i64> {
    numbers(&(xs * 255.0)).iter().map(|level| level.round() as i64).collect()
}

/// All samples of some epochs, 5 x 5 each, with the sample's index.
fn patches(loader: &Loader, epochs: u64) -> Vec<(i64, Vec<i64>)> {
    let of = |batch: Batch| {
        let samples = batch.indices.len();
        (0..samples).map(|at| (batch.indices[at], levels(&batch.xs.get(at as i64)))).collect::<Vec<_>>()
    };
    (0..epochs).flat_map(|epoch| batches(loader, epoch, 0)).flat_map(of).collect()
}

#[test]
fn patches_are_cut_everywhere_in_all_eight_orientations_and_nothing_else() {
    let (folder, _) = made_by(PICTURES);
    let set = set(folder.path(), json!({"patch": 5, "per_image": 40}));
    assert_eq!((set.len(), &set.shape[..]), (120, &[1, 5, 5][..]));
    let loader = loader(&set, augment("[{dihedral: {}}]"), |_| {});
    let (mut places, mut orientations) = (BTreeSet::new(), BTreeSet::new());
    for (index, patch) in patches(&loader, 20) {
        // The first 40 samples are the first picture's: its levels tell row and column.
        if index >= 40 {
            continue;
        }
        let corner = *patch.iter().min().unwrap();
        let (top, left) = (corner / 16, corner % 16);
        let at = |row: usize, column: usize| {
            (patch[5 * row + column] / 16 - top, patch[5 * row + column] % 16 - left)
        };
        let (down, across) = (at(1, 0), at(0, 1));
        let step = |from: (i64, i64), to: (i64, i64)| (to.0 - from.0, to.1 - from.1);
        let (down, across) = (step(at(0, 0), down), step(at(0, 0), across));
        for row in 0..5 {
            for column in 0..5 {
                let (r, c) = (row as i64, column as i64);
                let origin = at(0, 0);
                let expected = (origin.0 + r * down.0 + c * across.0, origin.1 + r * down.1 + c * across.1);
                assert_eq!(at(row, column), expected, "a patch is a turned piece of the picture");
            }
        }
        places.insert((top, left));
        orientations.insert((down, across));
    }
    assert_eq!(orientations.len(), 8);
    assert_eq!(places.len(), (12 - 4) * (16 - 4), "800 draws of 96 places miss none with this seed");
}

#[test]
fn the_fast_path_of_a_dihedral_step_is_the_tensor_operation() {
    let (folder, _) = made_by(PICTURES);
    let set = set(folder.path(), json!({"patch": 5, "per_image": 40}));
    let fast = loader(
        &set,
        augment("[{dihedral: {}}, {crop: {padding: 2}}, {flip: {horizontal: true}}, {dihedral: {}}]"),
        |_| {},
    );
    // A step that only libtorch does, and that does nothing here, sends the whole batch that way.
    let slow = augment(
        "[{dihedral: {}}, {crop: {padding: 2}}, {flip: {horizontal: true}}, {dihedral: {}}, {rotation: {degrees: 0}}]",
    );
    let slow = loader(&set, slow, |_| {});
    for (fast, slow) in batches(&fast, 3, 0).iter().zip(&batches(&slow, 3, 0)) {
        assert_eq!(fast.indices, slow.indices);
        assert!(fast.xs.allclose(&slow.xs, 0.0, 1e-6, false));
    }
}

#[test]
fn neither_workers_nor_memory_nor_where_one_starts_change_a_patch() {
    let (folder, _) = made_by(PICTURES);
    let steps = || augment("[{dihedral: {}}]");
    let roomy = set(folder.path(), json!({"patch": 5, "per_image": 9}));
    let mut section = section(folder.path(), json!({"patch": 5, "per_image": 9}));
    section["memory_gib"] = json!(0.0);
    let tight = open(section).train;
    let expected = batches(&loader(&roomy, steps(), |_| {}), 2, 0);
    for (set, workers, from) in [(&roomy, 3, 0), (&tight, 0, 0), (&tight, 2, 1)] {
        let loader = loader(set, steps(), |options| options.workers = workers);
        let got = batches(&loader, 2, from);
        assert_eq!(got.len() + from, expected.len());
        for (got, expected) in got.iter().zip(&expected[from..]) {
            assert_eq!(got.xs, expected.xs);
        }
    }
}

#[test]
fn a_target_is_cut_and_turned_with_its_image() {
    let (folder, _) = made_by(PICTURES);
    let more = json!({"patch": 4, "per_image": 20, "target": at(folder.path(), "targets")});
    let set = set(folder.path(), more);
    let steps =
        augment("[{dihedral: {}}, {crop: {padding: 1, padding_mode: reflect}}, {flip: {vertical: true}}]");
    for workers in [0, 2] {
        let loader = loader(&set, steps.clone(), |options| options.workers = workers);
        for Batch { xs, ys, .. } in batches(&loader, 0, 0) {
            assert_eq!((xs.size()[1..].to_vec(), xs.size()), (vec![1, 4, 4], ys.size()));
            let target = 1.0 - &xs;
            assert!(ys.allclose(&target, 0.0, 1e-6, false));
        }
    }
}

#[test]
fn a_mask_tells_the_class_of_a_level_within_the_tolerance_and_is_not_normalised() {
    let (folder, _) = made_by(PICTURES);
    let mask = json!({
        "root": at(folder.path(), "masks"), "classes": ["low", "high"], "levels": [0, 200], "tolerance": 3
    });
    let set = set(folder.path(), json!({"patch": 4, "per_image": 20, "mask": mask}));
    assert_eq!(set.classes, ["low", "high"]);
    let normalize = tikhonov::data::normalize::Normalize { mean: vec![0.5], std: vec![0.25] };
    let prep = Preparation {
        normalize: Some(normalize),
        augment: augment("[{dihedral: {}}]"),
        ..Preparation::default()
    };
    let loader = Loader::new(&set, &prep, options()).unwrap();
    for Batch { xs, ys, .. } in batches(&loader, 0, 0) {
        let levels = ((xs * 0.25 + 0.5) * 255.0).round().squeeze_dim(1);
        assert_eq!(ys.kind(), Kind::Int64);
        assert_eq!(ys, levels.gt(120.0).to_kind(Kind::Int64));
    }
}

#[test]
fn images_of_any_size_are_judged_whole_one_by_one_in_order() {
    let (folder, _) = made_by(PICTURES);
    let set = set(folder.path(), json!({"target": at(folder.path(), "targets")}));
    assert_eq!(set.shape, [1, 0, 0]);
    assert_eq!(set.names, ["a.png", "deep/b.png", "deep/c.png"]);
    let loader = loader(&set, Vec::new(), |options| (options.train, options.batch_size) = (false, 64));
    assert_eq!(loader.steps(), 3);
    let sizes: Vec<_> =
        batches(&loader, 0, 0).iter().map(|batch| (batch.xs.size(), batch.ys.size())).collect();
    let size = |width| (vec![1, 1, 12, width], vec![1, 1, 12, width]);
    assert_eq!(sizes, [size(16), size(17), size(16)]);
    let first = &batches(&loader, 0, 0)[0];
    assert_eq!(levels(&first.xs), (0..192).collect::<Vec<_>>());
    assert_eq!(first.xs.device(), Device::Cpu);
}

#[test]
fn a_validation_fraction_takes_whole_images_that_no_patch_is_cut_from() {
    let (folder, _) = made_by(PICTURES);
    let mut section = section(folder.path(), json!({"patch": 5, "per_image": 4}));
    section["validation"] = json!({"fraction": 0.34});
    let sets = open(section);
    let validation = sets.validation.unwrap();
    assert_eq!((sets.train.len(), validation.len(), &validation.shape[..]), (8, 1, &[1, 0, 0][..]));
    assert!(!sets.train.names.contains(&validation.names[0]));
}

#[test]
fn what_makes_no_samples_is_refused_with_the_remedy() {
    let (folder, _) = made_by(PICTURES);
    let here = folder.path();
    let wrong = |more: Value| mistake(section(here, more));
    assert!(wrong(json!({"per_image": 3})).contains("say their size, as in `patch: 64`"));
    assert!(wrong(json!({"patch": 0})).contains("1 to 8192"));
    let mask = json!({"root": at(here, "masks"), "classes": ["a", "b"], "levels": [3, 3]});
    assert!(wrong(json!({"mask": mask})).contains("2 different levels"));

    std::fs::remove_file(here.join("targets/deep/c.bmp")).unwrap();
    let lonely = refusal(section(here, json!({"target": at(here, "targets")})));
    assert!(
        lonely.contains("1 of 3 images have no file of the same name") && lonely.contains("deep/c.png"),
        "{lonely}"
    );

    let whole = set(here, json!({}));
    let refused = Loader::new(&whole, &Preparation::default(), options()).err().unwrap();
    assert!(format!("{refused:#}").contains("`images: {patch: 64}`"));
    let paired = set(here, json!({"patch": 4, "target": at(here, "images")}));
    let jitter =
        Preparation { augment: augment("[{color_jitter: {brightness: 0.1}}]"), ..Preparation::default() };
    let refused = Loader::new(&paired, &jitter, options()).err().unwrap();
    assert!(format!("{refused:#}").contains("random_resized_crop, rotation, affine and perspective do"));

    let large = set(here, json!({"patch": 13, "per_image": 2}));
    let loader = loader(&large, Vec::new(), |_| {});
    let error = loader.epoch(0, 0).find_map(Result::err).unwrap();
    assert!(format!("{error:#}").contains("smaller than the patches of 13x13"), "{error:#}");
}
