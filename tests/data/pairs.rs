//! Pictures with images as targets: at a scale, by templates, by BasicSR's lists, in other colours.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::Tensor;
use tikhonov::data::augment::Augment;
use tikhonov::data::loader::{Loader, Preparation};
use tikhonov::data::{Dataset, Targets};

use super::{at, made_by, mistake, numbers, open, python_in, refusal};
use crate::common::{run, saved, succeeds, write_config};
use crate::loader::{augment, batches, options};

/// `HR/0001.png` … of 24 x 18 and the same as `LR/0001x3.png` of every third pixel: a picture is its target at
/// [::3, ::3]. `list.txt` and `pairs.txt` name two of the four, as BasicSR and Real-ESRGAN do.
const PICTURES: &str = "
from PIL import Image
import os
for folder in ['HR', 'LR', 'grey', 'one']: os.makedirs(folder)
rng = np.random.default_rng(0)
for i in range(1, 5):
    a = rng.integers(0, 255, (18, 24, 3), np.uint8)
    Image.fromarray(a).save(f'HR/000{i}.png')
    Image.fromarray(a[::3, ::3]).save(f'LR/000{i}x3.png')
    Image.fromarray(a).convert('L').save(f'grey/000{i}.png')
    Image.fromarray(a[::3, ::3]).save(f'one/{i}.png')
    Image.fromarray(a[::3, ::3]).convert('L').save(f'one/{i}_edges.png')
open('list.txt', 'w').write('0003.png (18,24,3)\\n0001.png (18,24,3)\\n')
open('pairs.txt', 'w').write('HR/0002.png, LR/0002x3.png\\nHR/0004.png, LR/0004x3.png\\n')
";

fn section(folder: &Path, more: Value) -> Value {
    let mut images =
        json!({"root": at(folder, "LR"), "target": at(folder, "HR"), "filename_tmpl": "{}x3", "patch": 4});
    for (key, value) in more.as_object().unwrap() {
        images[key] = value.clone();
    }
    images.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    json!({"train": {"images": images}})
}

fn set(folder: &Path, more: Value) -> Dataset {
    open(section(folder, more)).train
}

fn loader(set: &Dataset, steps: Vec<Augment>) -> Loader {
    let options = tikhonov::data::loader::LoaderOptions { train: true, batch_size: 3, ..options() };
    Loader::new(set, &Preparation { augment: steps, ..Preparation::default() }, options).unwrap()
}

#[test]
fn a_target_at_a_scale_is_cut_and_turned_with_its_picture() {
    let (folder, _) = made_by(PICTURES);
    let set = set(folder.path(), json!({"per_image": 5}));
    assert!(matches!(set.targets, Targets::Images { channels: 3, scale: 3 }));
    assert_eq!((set.len(), set.shape.clone()), (20, vec![3, 4, 4]));
    assert!(
        set.notes.contains(&"targets are 3 times as large as the pictures".to_owned()),
        "{:?}",
        set.notes
    );
    let turns = augment("[{flip: {horizontal: true, vertical: true}}, dihedral]");
    for (steps, is_turned) in [(Vec::new(), false), (turns, true)] {
        for batch in batches(&loader(&set, steps), 0, 0) {
            assert_eq!(batch.xs.size()[1..], [3, 4, 4]);
            assert_eq!(batch.ys.size()[1..], [3, 12, 12]);
            // Where nothing is turned a picture is its target at [::3, ::3]; a turn may take another corner.
            let corners = |row: i64, column: i64| -> Tensor {
                batch.ys.slice(2, row, None, 3).slice(3, column, None, 3)
            };
            let same = |ys: &Tensor, at: i64| numbers(&ys.get(at)) == numbers(&batch.xs.get(at));
            for at in 0..batch.xs.size()[0] {
                let found = [(0, 0), (0, 2), (2, 0), (2, 2)].iter().any(|&(r, c)| same(&corners(r, c), at));
                assert!(found && (is_turned || same(&corners(0, 0), at)));
            }
        }
    }
    let crop = augment("[{crop: {padding: 1}}]");
    let prep = Preparation { augment: crop, ..Preparation::default() };
    let told = Loader::new(&set, &prep, tikhonov::data::loader::LoaderOptions { train: true, ..options() });
    let told = format!("{:#}", told.err().unwrap());
    assert!(told.contains("augment: `crop` does not go with targets"), "{told}");
}

#[test]
fn pairs_are_found_by_templates_and_by_lists() {
    let (folder, _) = made_by(PICTURES);
    let folder = folder.path();
    let names = |more: Value| set(folder, more).names.join(" ");
    assert_eq!(names(json!({})), "0001x3.png 0002x3.png 0003x3.png 0004x3.png");
    assert_eq!(names(json!({"meta_info": at(folder, "list.txt")})), "0003x3.png 0001x3.png");
    let base = json!({"root": folder.display().to_string(), "target": folder.display().to_string(),
        "meta_info": at(folder, "pairs.txt"), "filename_tmpl": null});
    assert_eq!(names(base), "LR/0002x3.png LR/0004x3.png");
    // In one folder, what is called as a target is none of the pictures; colours become grey.
    let one = json!({"root": at(folder, "one"), "target": at(folder, "one"), "filename_tmpl": null,
        "target_tmpl": "{}_edges", "target_mode": "grey"});
    let set = set(folder, one);
    assert_eq!(set.names.join(" "), "1.png 2.png 3.png 4.png");
    assert!(matches!(set.targets, Targets::Images { channels: 1, scale: 1 }));
    let batch = batches(&loader(&set, Vec::new()), 0, 0).remove(0);
    assert_eq!((batch.xs.size()[1], batch.ys.size()[1]), (3, 1));
}

#[test]
fn pairs_that_do_not_fit_are_named() {
    let (folder, _) = made_by(PICTURES);
    let path = folder.path();
    let told = |more: Value| refusal(section(path, more));
    let found = told(json!({"scale": 2}));
    assert!(found.contains("4 of 4 targets are not 2 times as large as their picture"), "{found}");
    let found = told(json!({"filename_tmpl": "{}x4"}));
    assert!(found.contains("4 of 4 images have no file of the same name less `x4` in"), "{found}");
    fs::write(path.join("list.txt"), "0001.png (1,2,3)\n0009.png\n\n0008.png\n").unwrap();
    let found = told(json!({"meta_info": at(path, "list.txt")}));
    for part in ["4 files of the 3 pairs in", "list.txt:2: ", "LR/0009x3.png", "list.txt:4: ", "HR/0008.png"]
    {
        assert!(found.contains(part), "{found}");
    }
    fs::write(path.join("list.txt"), b"\xff\xfe").unwrap();
    assert!(told(json!({"meta_info": at(path, "list.txt")})).contains("is no UTF-8 text"));
    fs::write(path.join("list.txt"), "\n").unwrap();
    assert!(told(json!({"meta_info": at(path, "list.txt")})).contains("lists no pair"));
    python_in(path, "from PIL import Image\nImage.new('RGB', (25, 18)).save('HR/0002.png')");
    let found = told(json!({}));
    assert!(
        found.contains("1 of 4 targets are not 3 times as large") && found.contains("0002x3.png is 8x6"),
        "{found}"
    );
    for (more, expected) in [
        (json!({"filename_tmpl": "x3"}), "train.images.filename_tmpl: is a name with one `{}` in it"),
        (json!({"scale": 0}), "train.images.scale: must be 1 to 16, not 0"),
        (json!({"target": null}), "train.images.filename_tmpl: is about the targets, and there are none"),
        (json!({"meta_info": at(path, "none.txt")}), "train.images.meta_info: there is no file"),
    ] {
        let found = mistake(section(path, more));
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn a_network_learns_super_resolution_from_pairs_and_restores_with_it() {
    let (folder, _) = made_by(PICTURES);
    let path = folder.path();
    let source = |more: Value| section(path, more)["train"].clone();
    let config = |network: &str| {
        let text = format!(
            "model: {{layers: [{network}], input: [3, 4, 4]}}\ntask: {{reconstruction: {{degrade: none, loss: mse}}}}\n\
             data: {{train: {}, validation: {}, batch_size: 4, normalize: none}}\noptimizer: {{sgd: {{lr: 0.1}}}}\n\
             train: {{epochs: 2}}\noutput: {}\n",
            source(json!({"per_image": 2})),
            source(json!({"patch": null})),
            path.join("run").display()
        );
        write_config(path, &text)
    };
    let (code, _, told) = run(&["train", &config("{conv2d: {out_channels: 3, kernel_size: 3, padding: 1}}")]);
    assert!(code == 2 && told.contains("the targets are 3 times as large as the pictures"), "{told}");
    succeeds(&[
        "train",
        &config(
            "{conv2d: {out_channels: 27, kernel_size: 3, padding: 1}}, {pixel_shuffle: {upscale_factor: 3}}",
        ),
        "--threads",
        "1",
    ]);
    assert!(!saved(&path.join("run"), "model").is_empty());
    let output = path.join("out.png").display().to_string();
    succeeds(&[
        "restore",
        &path.join("run").display().to_string(),
        &at(path, "LR/0001x3.png"),
        "-o",
        &output,
    ]);
    let size = python_in(path, "from PIL import Image\nprint(Image.open('out.png').size)");
    assert_eq!(size.trim(), "(24, 18)");
}
