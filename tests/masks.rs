//! Segmentation masks in the encodings of the field, read through the binary as a user reads them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{python, read_json, run, saved, succeeds};

/// Eight pictures of 32 x 32 with a bright object on a dark ground, and a function that saves `cls`, the
/// classes, and `border`, where a class is hard to tell, in a folder by a function of them.
const PICTURES: &str = "
import os, numpy as np
from PIL import Image
os.chdir(PLACE)
os.makedirs('im', exist_ok=True)
rng = np.random.default_rng(0)
scenes = []
for i in range(8):
    cls = np.zeros((32, 32), np.uint8)
    top, left = rng.integers(2, 12, 2)
    cls[top:top + 14, left:left + 10] = 1
    cls[26:30, 3:29] = 2
    picture = np.array([20, 120, 220])[cls] + rng.normal(0, 12, cls.shape)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(f'im/{i}.png')
    border = np.zeros(cls.shape, bool)
    border[top - 1, left:left + 10] = True
    scenes.append((cls, border))
def masks(folder, make, name='{}.png'):
    os.makedirs(folder, exist_ok=True)
    for i, (cls, border) in enumerate(scenes):
        image = make(cls, border)
        (image if hasattr(image, 'save') else Image.fromarray(image)).save(f'{folder}/{name.format(i)}')
voc = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]] + [[224, 224, 192]] * 253, np.uint8)
def palette(a):
    image = Image.fromarray(a, 'P')
    image.putpalette(voc.ravel().tolist())
    return image
";

fn place(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    python(&format!("PLACE = {:?}\n{PICTURES}\n{script}", folder.path().to_str().unwrap()));
    folder
}

/// A config whose masks are `mask`, and whose test set is the training set.
fn config(folder: &Path, mask: &str, classes: &str) -> String {
    let images = |more: &str| {
        format!(
            "{{images: {{root: {0}/im, mode: grey{more}, mask: {{root: {0}/{mask}, classes: {classes}}}}}}}",
            folder.display()
        )
    };
    let count = classes.split(']').next().unwrap_or_default().split(',').count();
    let text = format!(
        "device: cpu\nthreads: 1\nseed: 1\nmodel: {{name: unet-milesial, args: {{size: 32, width: 4, classes: {count}}}}}\n\
         task: segmentation\ndata:\n  train: {}\n  test: {}\n  batch_size: 8\noptimizer: {{adamw: {{lr: 0.01}}}}\n\
         train: {{epochs: 4}}\n",
        images(", patch: 32, per_image: 8"),
        images(""),
    );
    let path = folder.join(format!("{}.yaml", mask.split(',').next().unwrap_or_default()));
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Trains, and gives the last metrics of the test set and the log.
fn train(folder: &Path, mask: &str, classes: &str) -> (Value, String) {
    let output = folder.join(format!("run-{}", mask.split(',').next().unwrap_or_default()));
    succeeds(&["train", &config(folder, mask, classes), "--output", output.to_str().unwrap(), "--quiet"]);
    let result = read_json(output.join("result.json"));
    (result, fs::read_to_string(output.join("log.txt")).unwrap())
}

fn refused(folder: &Path, mask: &str, classes: &str) -> String {
    let output = folder.join("refused");
    let config = config(folder, mask, classes);
    let (code, _, stderr) = run(&["train", &config, "--output", output.to_str().unwrap(), "--quiet"]);
    assert_eq!(code, 3, "{mask}: {stderr}");
    stderr
}

fn number(value: &Value, key: &str) -> f64 {
    fn find(value: &Value, key: &str) -> Option<f64> {
        match value {
            Value::Object(map) => map
                .get(key)
                .and_then(Value::as_f64)
                .or_else(|| map.values().find_map(|value| find(value, key))),
            _ => None,
        }
    }
    find(value, key).unwrap_or_else(|| panic!("no {key} in {value}"))
}

const THREE: &str = "[ground, thing, bar]";

#[test]
fn one_set_of_masks_in_every_encoding_trains_the_same_weights() {
    let folder = place(
        "
masks('numbers', lambda c, b: c)
masks('palette', lambda c, b: palette(c))
masks('packed', lambda c, b: palette(c), '{}.bmp')
masks('gif', lambda c, b: palette(c), '{}.gif')
masks('deep', lambda c, b: c.astype(np.uint16))
masks('levels', lambda c, b: np.array([0, 127, 255], np.uint8)[c])
masks('rounded', lambda c, b: np.array([0, 128, 255], np.uint8)[c])
masks('rgb', lambda c, b: voc[c])
masks('alpha', lambda c, b: np.dstack([voc[c], np.where(c > 0, 255, 0).astype(np.uint8)]))
masks('jpeg', lambda c, b: np.array([0, 127, 255], np.uint8)[c], '{}.jpg')
masks('high', lambda c, b: np.array([3, 900, 65535], np.uint16)[c])
masks('greyrgb', lambda c, b: np.dstack([c] * 3))",
    );
    let colours = "levels: ['#000000', '#800000', [0, 128, 0]]";
    let (result, log) = train(folder.path(), "numbers", THREE);
    assert!(number(&result, "mean_dice") > 0.9, "{result}");
    // 14 x 10 and 4 x 26 of 32 x 32 pixels, where they do not overlap.
    assert!(
        log.contains("train: ground 7") && log.contains("thing 1") && log.contains("bar 10.2 %"),
        "{log}"
    );
    assert!(log.contains("(all 8 masks; class numbers 0 to 2)"), "{log}");
    let wanted = saved(&folder.path().join("run-numbers"), "model");
    for (mask, classes) in [
        ("palette", THREE.to_owned()),
        ("packed", THREE.to_owned()),
        ("gif", THREE.to_owned()),
        ("deep", THREE.to_owned()),
        ("greyrgb", THREE.to_owned()),
        ("levels", THREE.to_owned()),
        ("rounded", THREE.to_owned()),
        ("jpeg", THREE.to_owned()),
        ("high", format!("{THREE}, levels: [3, 900, 65535]")),
        ("rgb", format!("{THREE}, {colours}")),
        ("alpha", format!("{THREE}, {colours}")),
    ] {
        let (_, log) = train(folder.path(), mask, &classes);
        assert!(saved(&folder.path().join(format!("run-{mask}")), "model") == wanted, "{mask}\n{log}");
    }
}

#[test]
fn voc_cityscapes_and_camvid_are_read_as_they_are_and_ignored_pixels_count_nowhere() {
    let folder = place(
        "
masks('voc', lambda c, b: palette(np.where(b, 255, c).astype(np.uint8)))
# labelIds 7, 24 and 11 of the 34; 3, 'out of roi', where it is hard to tell.
ids = np.array([7, 24, 11], np.uint8)
masks('ids', lambda c, b: np.where(b, 3, ids[c]).astype(np.uint8), '{}_gtFine_labelIds.png')
camvid = np.array([[128, 64, 128], [64, 0, 128], [192, 128, 128]], np.uint8)
masks('camvid', lambda c, b: np.where(b[..., None], 0, camvid[c]).astype(np.uint8), '{}_L.png')
masks('wrong', lambda c, b: np.where(b, 1 - c, c).astype(np.uint8))
counted = np.array([(~b).sum() for c, b in scenes])
print(*[sum(((c == k) & ~b).sum() for c, b in scenes) / counted.sum() for k in range(3)])",
    );
    let here = folder.path();
    let (voc, log) = train(here, "voc", &format!("{THREE}, ignore: 255"));
    assert!(log.contains("ignored 1.0 %"), "{log}");
    let wanted = saved(&here.join("run-voc"), "model");
    let weights = |name: &str| saved(&here.join(format!("run-{name}")), "model");
    for (mask, more) in [
        ("ids", "suffix: _gtFine_labelIds, levels: [7, 24, 11], ignore: [0, 1, 2, 3]"),
        ("camvid", "suffix: _L, levels: [[128, 64, 128], [64, 0, 128], [192, 128, 128]], ignore: '#000000'"),
    ] {
        let (scores, _) = train(here, mask, &format!("{THREE}, {more}"));
        assert_eq!(number(&scores, "mean_dice"), number(&voc, "mean_dice"), "{mask}");
        assert!(weights(mask) == wanted, "{mask}");
    }
    // The same weights against masks that are wrong at the border alone: without it they would score the
    // same.
    let (code, _, stderr) = run(&[
        "eval",
        &config(here, "wrong", THREE),
        "--weights",
        here.join("run-voc").to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(code, 0, "{stderr}");
    train(here, "wrong", THREE);
    assert!(weights("wrong") != wanted, "the border counts where nothing says that it does not");
}

#[test]
fn what_no_class_claims_is_refused_with_value_share_file_and_remedy() {
    let folder = place(
        "
masks('border', lambda c, b: np.where(b, 255, c).astype(np.uint8))
masks('rgb', lambda c, b: voc[c])
masks('soft', lambda c, b: np.asarray(Image.fromarray((c > 0).astype(np.uint8) * 255).resize((64, 64), 2).resize((32, 32), 2)))
masks('one', lambda c, b: c * 0)
masks('photo', lambda c, b: rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), '{}.jpg')
masks('ramp', lambda c, b: np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)), '{}.jpg')",
    );
    let here = folder.path();
    let says = |stderr: &str, words: &[&str]| {
        words.iter().for_each(|word| assert!(stderr.contains(word), "no `{word}` in {stderr}"));
    };
    says(&refused(here, "border", THREE), &["border/0.png", "255 (1.0 %)", "`mask: {ignore: 255}`"]);
    says(
        &refused(here, "border", &format!("{THREE}, levels: [0, 1, 4]")),
        &["2 (10.2 %)", "`tolerance: 251`"]
            .map(|word| if word.contains("251") { "255 (1.0 %)" } else { word }),
    );
    says(
        &refused(here, "rgb", THREE),
        &["the masks are colours", "\"#800000\"", "mask: {levels: [\"#000000\""],
    );
    says(&refused(here, "soft", "[ground, thing]"), &["soft/0.png", "pixels of no class", "mask.levels"]);
    says(&refused(here, "one", THREE), &["ground 100.0 %", "there is nothing to tell apart"]);
    refused(here, "photo", THREE);
    // JPEG blurs edges; half of the pixels half-way between two levels is no edge.
    says(&refused(here, "ramp", "[ground, thing], levels: [0, 255]"), &["ramp/0.jpg", "pixels of no class"]);
    train(here, "soft", "[ground, thing], levels: [0, 255], tolerance: 128");
}

#[test]
fn a_mask_of_another_size_or_two_of_one_name_are_errors_that_name_both() {
    let folder = place(
        "
masks('mk', lambda c, b: c)
masks('x_mask', lambda c, b: c, '{}_mask.gif')
masks('two', lambda c, b: c)
Image.fromarray(scenes[3][0]).save('two/3.bmp')
masks('small', lambda c, b: c)
Image.fromarray(scenes[5][0][:31]).save('small/5.png')",
    );
    let here = folder.path();
    let message = refused(here, "small", THREE);
    assert!(message.contains("im/5.png is 32x32") && message.contains("small/5.png is 32x31"), "{message}");
    let message = refused(here, "two", THREE);
    assert!(message.contains("two/3.bmp and ") && message.contains("two/3.png both go with"), "{message}");
    let message = refused(here, "x_mask", THREE);
    assert!(
        message.contains("8 of 8 images") && message.contains("0_mask.gif") && message.contains("suffix")
    );
    train(here, "x_mask", &format!("{THREE}, suffix: _mask"));

    // The sides of one picture are swapped by its EXIF orientation, and its mask was drawn without.
    python(&format!(
        "
from PIL import Image
import os; os.chdir({here:?})
im = Image.open('im/2.png').resize((40, 32)); exif = Image.Exif(); exif[0x0112] = 6
im.save('im/2.jpg', exif=exif); os.remove('im/2.png')
Image.open('mk/2.png').resize((40, 32), 0).save('mk/2.png')
"
    ));
    let message = refused(here, "mk", THREE);
    assert!(message.contains("EXIF orientation 6") && message.contains("is 32x40"), "{message}");
    assert!(message.contains("say `exif: false`"), "{message}");
    // As stored they fit each other, in training and in what the run writes for the same picture.
    let text = fs::read_to_string(config(here, "mk", THREE))
        .unwrap()
        .replace("mode: grey", "mode: grey, exif: false");
    fs::write(here.join("stored.yaml"), text).unwrap();
    let [stored, run, out] = ["stored.yaml", "stored", "out"].map(|name| here.join(name));
    let [stored, run, out] = [&stored, &run, &out].map(|path| path.to_str().unwrap());
    succeeds(&["train", stored, "--output", run, "--quiet"]);
    succeeds(&["predict", run, here.join("im").to_str().unwrap(), "-o", out]);
    let size = python(&format!("from PIL import Image\nprint(Image.open('{out}/2.png').size)"));
    assert_eq!(size.trim(), "(40, 32)");
}

#[test]
fn scores_of_single_classes_are_called_by_their_names_wherever_they_are_shown() {
    let folder = place("masks('mk', lambda c, b: c)");
    let here = folder.path();
    let (result, log) = train(here, "mk", "[ground, \"thing/s\", bar]");
    for name in ["dice_ground", "iou_thing/s", "dice_bar"] {
        assert!(result["last"]["test"][name].as_f64().is_some(), "{name}: {result}");
        assert!(log.contains(&format!("{name} 0.")), "{name}: {log}");
    }
    assert!(!log.contains("dice_1") && !result.to_string().contains("iou_0"), "{log}");
    let run = here.join("run-mk");
    let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(records.contains("\"dice_thing/s\":"), "{records}");
    assert!(run.join("plots/test-dice_thing_s.png").is_file(), "a name is no path");
    let run = run.to_str().unwrap();
    assert!(succeeds(&["eval", run]).contains("dice_thing/s"));
    let page = here.join("page.html");
    succeeds(&["report", run, "-o", page.to_str().unwrap()]);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("dice thing/s") && !page.contains("dice 1"));
    // What decides is declared by the class's number, and shown by its name.
    let config = config(here, "mk", "[ground, \"thing/s\", bar]");
    let by_class = here.join("by-class");
    let sets = ["--set", "train.monitor=dice_1", "--set", "data.validation.fraction=0.25"];
    let args =
        [&["train", &config, "--output", by_class.to_str().unwrap(), "--quiet"], sets.as_slice()].concat();
    succeeds(&args);
    let best = read_json(by_class.join("result.json"));
    assert!(best["best"]["validation"]["dice_thing/s"].as_f64().is_some(), "{best}");
    let listed = succeeds(&["runs", by_class.to_str().unwrap(), "--json"]);
    assert!(listed.contains("\"dice_thing/s\""), "{listed}");
    let swept = here.join("swept");
    let over = ["--over", "penalty.decoupled=0,0.1", "--jobs", "1", "--output", swept.to_str().unwrap()];
    let stdout = succeeds(
        &[&["sweep", &config], sets.as_slice(), over.as_slice(), &["--set", "train.epochs=1"]].concat(),
    );
    assert!(stdout.contains("dice_thing/s"), "{stdout}");
}

#[test]
fn a_class_that_a_set_lacks_is_told_where_scores_are_made() {
    let folder = place("masks('mk', lambda c, b: np.where(c == 1, 0, c).astype(np.uint8))");
    let (_, log) = train(folder.path(), "mk", THREE);
    assert!(log.contains("train: class `thing` never occurs in the masks: nothing is learnt of it"), "{log}");
    assert!(
        log.contains("test: class `thing` never occurs in the masks: mean_dice and mean_iou leave"),
        "{log}"
    );
}

/// Trains a small run, and gives its folder.
fn trained(here: &Path, more: &str) -> String {
    train(here, "mk", &format!("{THREE}{more}"));
    here.join("run-mk").to_str().unwrap().to_owned()
}

#[test]
fn predict_writes_the_masks_that_eval_judges_at_any_size_in_any_form_and_tile() {
    let folder = place(
        "
masks('mk', lambda c, b: voc[c])
os.makedirs('new')
for i in range(3): Image.open(f'im/{i}.png').save(f'new/{i}.png')
Image.open('im/0.png').resize((133, 77)).convert('RGB').save('new/wide.jpg')",
    );
    let here = folder.path();
    let run_folder = trained(here, ", levels: ['#000000', '#800000', '#008000']");
    let new = here.join("new");
    for (form, tile) in [("numbers", "4000"), ("palette", "16"), ("levels", "48"), ("overlay", "64")] {
        let out = here.join(form);
        let printed = succeeds(&[
            "predict",
            &run_folder,
            new.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
            "--masks",
            form,
            "--tile",
            tile,
        ]);
        assert!(printed.contains("(133x77): ground ") && printed.contains("bar "), "{printed}");
    }
    let scores: Value = serde_json::from_str(&succeeds(&["eval", &run_folder, "--json"])).unwrap();
    let printed = python(&format!(
        "
import numpy as np, os
from PIL import Image
os.chdir({here:?})
voc = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
for name in ['0', '1', '2', 'wide']:
    a, p, c, o = (Image.open(f'{{d}}/{{name}}.png') for d in ['numbers', 'palette', 'levels', 'overlay'])
    assert (a.mode, p.mode, c.mode, o.mode) == ('L', 'P', 'RGB', 'RGB'), (a.mode, p.mode, c.mode, o.mode)
    a, q = np.array(a), np.array(p)
    assert a.max() < 3 and (a == q).all() and (voc[a] == np.array(c)).all() and (np.array(p.convert('RGB')) == voc[a]).all()
    path = f'new/{{name}}.' + ('jpg' if name == 'wide' else 'png')
    rgb = np.array(Image.open(path).convert('RGB'))
    assert a.shape == rgb.shape[:2] and (np.array(o)[a == 0] == rgb[a == 0]).all() if name != 'wide' else True
    assert name == 'wide' or (np.array(o)[a == 2] == (rgb[a == 2].astype(int) + [0, 128, 0]) // 2).all()
truth = lambda i: np.array(Image.open(f'mk/{{i}}.png'))
print(*[(voc[np.array(Image.open(f'numbers/{{i}}.png'))] == truth(i)).all(-1).mean() for i in range(3)])
"
    ));
    let right: Vec<f64> = printed.split_whitespace().map(|word| word.parse().unwrap()).collect();
    // Of all eight together; three of them alone are near.
    let accuracy = number(&scores, "pixel_accuracy");
    right.iter().for_each(|share| assert!((share - accuracy).abs() < 0.1, "{share} {accuracy}"));

    let one = new.join("0.png");
    for (args, words) in [
        (vec!["predict", &run_folder, one.to_str().unwrap()], "say where they go, -o DIR"),
        (vec!["restore", &run_folder, one.to_str().unwrap(), "-o", "x.png"], "tikhonov predict"),
    ] {
        let (code, _, stderr) = run(&args);
        assert!(code == 2 && stderr.contains(words), "{stderr}");
    }
}

/// A network without batch norm, whose statistics are the small batch's by definition.
const SMALL: &str = "{input: [1, 32, 32], layers: {a: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}, _t: tanh, \
                     b: {conv2d: {out_channels: 3, kernel_size: 3, padding: 1}}}}";

#[test]
fn accumulated_gradients_and_evaluation_are_those_of_the_large_batch_for_every_loss_of_masks() {
    // So that the pixels that count, and those of each class, are not as many in every mask.
    let folder = place(
        "
left = lambda c: np.argmax((c == 1).any(0))
masks('mk', lambda c, b: np.where(np.arange(32)[None] < left(c), 255, c).astype(np.uint8))",
    );
    let here = folder.path();
    for (name, task) in [
        ("both", "segmentation"),
        ("weighted", "{segmentation: {dice: 0, class_weights: [0.2, 3, 1]}}"),
        ("dice", "{segmentation: {cross_entropy: 0}}"),
        ("all", "{segmentation: {cross_entropy: 0.5, dice: 2, class_weights: [0.2, 3, 1]}}"),
        ("plain", "{segmentation: {dice: 0}}"),
        ("auxiliary", "segmentation"),
    ] {
        let model = match name {
            "auxiliary" => SMALL.replace(
                "_t: tanh",
                "h: {aux: {weight: 0.5, layers: [conv2d: {out_channels: 3, kernel_size: 1}]}}",
            ),
            _ => SMALL.to_owned(),
        };
        let images = |patch: &str| {
            format!(
                "{{images: {{root: {0}/im, mode: grey{patch}, mask: {{root: {0}/mk, classes: {THREE}, ignore: 255}}}}}}",
                here.display()
            )
        };
        let text = format!(
            "device: cpu\ndtype: float64\nthreads: 1\nmodel: {model}\ntask: {task}\ndata:\n  train: {}\n  test: {}\n  \
             batch_size: 7\noptimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}\ntrain: {{epochs: 2}}\n",
            images(", patch: 32, per_image: 3"),
            images(", patch: 32"),
        );
        let config = here.join(format!("{name}.yaml"));
        fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let folders = ["large", "small"].map(|size| here.join(format!("{name}-{size}")));
        let [large, small] = folders.each_ref().map(|folder| folder.to_str().unwrap());
        succeeds(&["train", config, "--output", large, "--quiet"]);
        let sets = ["--set", "data.batch_size=2", "--set", "train.accumulate=4"];
        // 24 patches in batches of 2, four at a time, and of 8: the same steps.
        succeeds(&[
            "train",
            config,
            "--output",
            &format!("{large}8"),
            "--quiet",
            "--set",
            "data.batch_size=8",
        ]);
        succeeds(&[&["train", config, "--output", small, "--quiet"][..], &sets[..]].concat());
        let apart = python(&format!(
            "
from safetensors.numpy import load_file
import numpy as np
a, b = (load_file(f'{{run}}/checkpoints/last/model.safetensors') for run in ('{large}8', '{small}'))
print(max(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k]) for k in a))"
        ));
        let apart: f64 = apart.trim().parse().unwrap();
        assert!(apart < 1e-12, "{name}: {apart}");
        let losses = ["1", "2", "3", "8"].map(|size| {
            let set = format!("data.batch_size={size}");
            let line = succeeds(&["eval", large, "--json", "--set", &set]);
            number(&serde_json::from_str(&line).unwrap(), "loss")
        });
        losses.iter().for_each(|loss| assert!((loss - losses[3]).abs() < 1e-12, "{name}: {losses:?}"));
        let logged = |run: &str| number(&crate::common::records(Path::new(run), "epoch")[0], "loss");
        assert!((logged(&format!("{large}8")) - logged(small)).abs() < 1e-12, "{name}: the log");
    }
}

#[test]
fn padding_of_a_crop_counts_nowhere_in_a_mask() {
    let folder = place("masks('mk', lambda c, b: c)");
    let here = folder.path();
    let images = |patch: &str| {
        format!(
            "{{images: {{root: {0}/im, mode: grey{patch}, mask: {{root: {0}/mk, classes: {THREE}}}}}}}",
            here.display()
        )
    };
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {SMALL}\ntask: {{segmentation: {{dice: 0}}}}\ndata:\n  train: {}\n  batch_size: 8\n  \
         normalize: none\n  augment: [{{crop: {{padding: 12, fill: FILL}}}}]\noptimizer: {{sgd: {{lr: 0.0001}}}}\n\
         train: {{epochs: 1}}\n",
        images(", patch: 32"),
    );
    // Only pixels whose surroundings show the fill may differ: were the padding a class, the losses would be
    // far apart.
    let losses = ["0", "255"].map(|fill| {
        let config = here.join(format!("fill{fill}.yaml"));
        fs::write(&config, text.replace("FILL", fill)).unwrap();
        let output = here.join(format!("run{fill}"));
        succeeds(&["train", config.to_str().unwrap(), "--output", output.to_str().unwrap(), "--quiet"]);
        number(&crate::common::records(&output, "epoch")[0], "loss")
    });
    assert!((losses[0] - losses[1]).abs() < 0.05, "{losses:?}");
    // A network for which all classes but the first are as likely, everywhere: only the first would change the loss.
    let folder = place(
        "
masks('mk', lambda c, b: (1 + (c > 0)).astype(np.uint8))
import torch
from safetensors.torch import save_file
save_file({'a.weight': torch.zeros(3, 1, 1, 1), 'a.bias': torch.tensor([0., 1., 1.])}, 'w.safetensors')",
    );
    let here = folder.path().display();
    let config = folder.path().join("even.yaml");
    let text = format!(
        "device: cpu\nmodel: {{input: [1, 32, 32], layers: {{a: {{conv2d: {{out_channels: 3, kernel_size: 1}}}}}}, \
         init_from: {{file: {here}/w.safetensors}}}}\ntask: {{segmentation: {{dice: 0}}}}\ndata:\n  train: {{images: {{root: {here}/im, \
         mode: grey, patch: 32, mask: {{root: {here}/mk, classes: {THREE}}}}}}}\n  batch_size: 8\n  \
         augment: [{{crop: {{padding: 12}}}}]\noptimizer: {{sgd: {{lr: 0}}}}\ntrain: {{epochs: 2}}\n"
    );
    fs::write(&config, text).unwrap();
    succeeds(&["train", config.to_str().unwrap(), "--output", &format!("{here}/even"), "--quiet"]);
    let wanted = (1.0 + 2.0 * 1f64.exp()).ln() - 1.0;
    for epoch in crate::common::records(&folder.path().join("even"), "epoch") {
        assert!((number(&epoch, "loss") - wanted).abs() < 1e-5, "{epoch}, not {wanted}");
    }
}

#[test]
fn panels_show_the_picture_and_classes_in_colours_and_an_export_answers_probabilities() {
    let folder = place("masks('mk', lambda c, b: c)");
    let here = folder.path();
    let config = config(here, "mk", THREE);
    let output = here.join("run");
    let output = output.to_str().unwrap();
    succeeds(&["train", &config, "--output", output, "--quiet", "--set", "train.pictures=1"]);
    let script = here.join("net.pt");
    succeeds(&["export", output, "--to", "torchscript", "--softmax", "-o", script.to_str().unwrap()]);
    python(&format!(
        "
import numpy as np, os, torch
from PIL import Image
os.chdir({here:?})
strip = np.array(Image.open('run/pictures/epoch-0004-1.png').convert('RGB')).astype(int)
# Below one line of captions, a panel of 192 pixels: each pixel six times.
panel = lambda at: strip[14:206, 2 + 194 * at:194 + 194 * at][3::6, 3::6]
given, mask = np.array(Image.open('im/0.png')).astype(int), np.array(Image.open('mk/0.png'))
assert np.abs(panel(0) - given[..., None]).max() <= 1, np.abs(panel(0) - given[..., None]).max()
colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]])
tinted = np.where((mask == 0)[..., None], given[..., None], (given[..., None] + colours[mask]) / 2)
assert np.abs(panel(2) - tinted).max() <= 1, np.abs(panel(2) - tinted).max()
y = torch.jit.load('net.pt')(torch.rand(2, 1, 32, 32))
assert y.shape == (2, 3, 32, 32) and (y.sum(1) - 1).abs().max() < 1e-5"
    ));
}

#[test]
fn micro_batches_of_which_no_pixel_counts_add_nothing_and_statistics_see_each_of_them_once() {
    let folder = place(
        "
left = iter(range(8))
masks('mk', lambda c, b: np.full_like(c, 255) if next(left) % 4 == 1 else c)",
    );
    let here = folder.path().display();
    let normed = "{input: [1, 32, 32], layers: {a: {conv2d: {out_channels: 3, kernel_size: 3, padding: 1}}, bn: batch_norm2d}}";
    let trained = |name: &str, model: &str, task: &str, sets: &[&str]| {
        let text = format!(
            "device: cpu\ndtype: float64\nthreads: 1\nmodel: {model}\ntask: {task}\ndata:\n  train: {{images: {{root: {here}/im, \
             mode: grey, patch: 32, per_image: 1, mask: {{root: {here}/mk, classes: {THREE}, ignore: 255}}}}}}\n  batch_size: 4\n\
             optimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 2}}\n"
        );
        let config = folder.path().join(format!("{name}.yaml"));
        fs::write(&config, text).unwrap();
        let output = format!("{here}/{name}");
        succeeds(&[&["train", config.to_str().unwrap(), "--output", &output, "--quiet"][..], sets].concat());
        format!("load_file('{output}/checkpoints/last/model.safetensors')")
    };
    let apart = ["--set", "data.batch_size=1", "--set", "train.accumulate=4"];
    let plain = "{segmentation: {dice: 0}}";
    let (large, small) = (trained("large", SMALL, plain, &[]), trained("small", SMALL, plain, &apart));
    let joint = trained("joint", normed, "segmentation", &apart);
    let told = python(&format!(
        "
from safetensors.numpy import load_file
import numpy as np
a, b = {large}, {small}
print(max(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k]) for k in a), {joint}['bn.num_batches_tracked'])"
    ));
    let told: Vec<f64> = told.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(told[0] < 1e-12, "{told:?}");
    // Eight pictures, twice; the pass that adds their sums up leaves no trace.
    assert_eq!(told[1], 16.0);
}
