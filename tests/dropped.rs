//! What a run leaves out of its data is named and counted wherever it happens; what is no file is refused
//! everywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use crate::common::{outcome, read_json, saved, tikhonov, write_config};

struct Place(tempfile::TempDir);

impl Place {
    /// Three classes of pictures in train/ and test/, four and three of each.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (split, count) in [("train", 4), ("test", 3)] {
            for (class, colour) in [("roses", 200), ("tulips", 120), ("weeds", 40)] {
                for index in 0..count {
                    place.picture(&format!("{split}/{class}/{index}.png"), colour + index);
                }
            }
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn picture(&self, name: &str, shade: u8) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let ramp = |x, y| Rgb([shade, (x * 7 % 256) as u8, (y * 5 % 256) as u8]);
        RgbImage::from_fn(32, 24, ramp).save(&path).unwrap();
    }

    /// The header is whole: only who decodes the file finds out.
    fn cut(&self, name: &str) {
        let bytes = fs::read(self.path(name)).unwrap();
        fs::write(self.path(name), &bytes[..bytes.len() - 40]).unwrap();
    }

    fn pipe(&self, name: &str) {
        assert!(Command::new("mkfifo").arg(self.path(name)).status().unwrap().success());
    }

    fn config(&self, data: &str) -> String {
        let text = format!(
            "device: cpu\nthreads: 1\nmodel: {{name: small-cnn, args: {{channels: 3, size: 16, classes: 3, width: 4}}}}\n\
             task: classification\ndata: {}\noptimizer: {{sgd: {{lr: 0.01}}}}\ntrain: {{epochs: 2}}\noutput: {}\n",
            data.replace("ROOT", self.0.path().to_str().unwrap()),
            self.path("run").display()
        );
        write_config(self.0.path(), &text)
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut child = tikhonov()
            .args(args)
            .current_dir(self.0.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
                panic!("{args:?} hangs");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        outcome(child.wait_with_output().unwrap())
    }
}

const FOLDERS: &str = "{train: {folder: {root: ROOT/train, size: 16}}, test: {folder: {root: ROOT/test, size: 16}}, \
                       batch_size: 4, max_skipped: 0.2, memory_gib: MEMORY}";

#[test]
fn what_cannot_be_decoded_is_named_by_train_and_eval_resident_or_read_at_need() {
    for memory in ["0", "1"] {
        let place = Place::new();
        place.cut("train/roses/1.png");
        place.cut("test/tulips/0.png");
        let config = place.config(&FOLDERS.replace("MEMORY", memory));
        let (code, stdout, stderr) = place.run(&["train", &config]);
        assert_eq!(code, 0, "{stderr}");
        let log = fs::read_to_string(place.path("run/log.txt")).unwrap();
        for line in ["train: skipped roses/1.png: ", "test: skipped tulips/0.png: "] {
            for (name, text) in [("stderr", &stderr), ("log.txt", &log)] {
                assert_eq!(text.matches(line).count(), 1, "memory {memory}: {line} once in {name}:\n{text}");
            }
        }
        assert!(stdout.contains("test: 1 file left out"), "{stdout}");
        let result = read_json(place.path("run/result.json"));
        assert_eq!(result["skipped"]["train"][0]["name"], "roses/1.png");
        assert_eq!(result["skipped"]["test"][0]["name"], "tulips/0.png");

        let (code, stdout, stderr) = place.run(&["eval", "run"]);
        assert!(code == 0 && stdout.contains("on test (8 samples)"), "{stdout}{stderr}");
        assert!(stderr.contains("test: skipped tulips/0.png: "), "{stderr}");
        let (_, stdout, _) = place.run(&["eval", "run", "--json"]);
        let line: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((&line["samples"], &line["skipped"][0]["name"]), (&8.into(), &"tulips/0.png".into()));
    }
}

#[test]
fn a_class_of_which_no_picture_can_be_decoded_is_mentioned_once() {
    let place = Place::new();
    (0..4).for_each(|index| place.cut(&format!("train/weeds/{index}.png")));
    let config = place.config(&FOLDERS.replace("MEMORY", "1").replace("0.2", "0.5"));
    let (code, _, stderr) = place.run(&["train", &config]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stderr.matches("class `weeds` has 0 samples: none of its files can be decoded").count(), 1);
    assert!(!stderr.contains("no sample is of class"), "{stderr}");
}

const DENOISE: &str = "
device: cpu
threads: 1
model: {name: dncnn, args: {channels: 3, size: 8, depth: 3, width: 4}}
task: {reconstruction: {degrade: gaussian}}
data:
  train: {images: {root: ROOT/train, patch: PATCH}}
  test: {images: {root: ROOT/test}}
  normalize: none
  batch_size: 4
  max_skipped: 0.2
optimizer: {sgd: {lr: 0.01}}
train: {epochs: 1}
output: ROOT/run
";

#[test]
fn images_of_any_size_keep_their_names_where_one_is_missing_and_those_smaller_than_a_patch_are_named() {
    let place = Place::new();
    place.cut("test/roses/1.png");
    RgbImage::new(10, 10).save(place.path("train/weeds/small.png")).unwrap();
    let text = DENOISE.replace("ROOT", place.0.path().to_str().unwrap()).replace("PATCH", "16");
    let config = write_config(place.0.path(), &text);
    let (code, _, stderr) = place.run(&["train", &config]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("train: skipped weeds/small.png: is 10x10, smaller than the patches"),
        "{stderr}"
    );
    let (code, stdout, stderr) = place.run(&["eval", "run", "--each", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let line: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let names: Vec<_> = line["each"].as_array().unwrap().iter().map(|row| row["image"].clone()).collect();
    let wanted =
        ["roses/0.png", "roses/2.png", "tulips/0.png", "tulips/1.png", "tulips/2.png", "weeds/0.png"];
    assert_eq!(names[..6], wanted);
    assert_eq!((names.len(), &line["samples"]), (8, &8.into()));
}

#[test]
fn a_picture_that_vanishes_while_a_run_reads_it_is_named() {
    let place = Place::new();
    let config = place.config(&FOLDERS.replace("MEMORY", "0"));
    let mut child = tikhonov()
        .args(["train", &config, "--set", "train.epochs=100000"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let log = || fs::read_to_string(place.path("run/log.txt")).unwrap_or_default();
    let wait = |what: &str| {
        let began = Instant::now();
        while !log().contains(what) {
            assert!(began.elapsed() < Duration::from_secs(60), "no `{what}` in\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait("epoch ");
    fs::remove_file(place.path("train/weeds/2.png")).unwrap();
    wait("train: skipped weeds/2.png: No such file");
    // A file that becomes a pipe holds nobody up.
    fs::remove_file(place.path("train/weeds/3.png")).unwrap();
    place.pipe("train/weeds/3.png");
    wait("train: skipped weeds/3.png: is a pipe");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn files_that_are_no_pictures_are_passed_over_and_pictures_of_other_formats_named() {
    let place = Place::new();
    for name in ["notes.txt", "table.csv", "labels.json", "README.md", "LICENSE"] {
        fs::write(place.path("train/roses").join(name), "no picture").unwrap();
    }
    fs::write(place.path("train/tulips/phone.heic"), b"\0\0\0\x18ftypheic\0\0\0\0").unwrap();
    // A picture without an extension, and one whose extension says nothing.
    fs::copy(place.path("train/roses/0.png"), place.path("train/weeds/noext")).unwrap();
    fs::copy(place.path("train/roses/0.png"), place.path("train/weeds/frame.0001")).unwrap();
    let config = place.config(&FOLDERS.replace("MEMORY", "1"));
    let (code, _, stderr) = place.run(&["train", &config, "--set", "data.max_skipped=0.1"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("train: class `roses`: passed over 5 files that are no pictures ("), "{stderr}");
    assert!(
        stderr.contains("train: skipped tulips/phone.heic: is HEIC, which is not read; convert"),
        "{stderr}"
    );
    assert!(
        stderr.contains("train: 14 samples of shape [3, 16, 16], 3 classes: roses 4, tulips 4, weeds 6"),
        "{stderr}"
    );
    // A class of nothing but other files is no class.
    fs::create_dir(place.path("train/__pycache__")).unwrap();
    fs::write(place.path("train/__pycache__/x.pyc"), "code").unwrap();
    let (code, _, stderr) = place.run(&["train", &config, "--output", "other"]);
    assert!(code == 3 && stderr.contains("__pycache__: the class folder holds no picture"), "{stderr}");
}

#[test]
fn a_class_of_which_nothing_decodes_is_said() {
    let place = Place::new();
    fs::create_dir(place.path("train/ruined")).unwrap();
    fs::write(place.path("train/ruined/a.png"), "no picture").unwrap();
    let config = place.config(&FOLDERS.replace("MEMORY", "1"));
    let (code, _, stderr) = place.run(&["train", &config, "--set", "model.args.classes=4"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("class `ruined` has 0 samples"), "{stderr}");
}

#[test]
fn predict_and_restore_answer_for_the_rest_and_end_with_exit_3() {
    let place = Place::new();
    let config = place.config(&FOLDERS.replace("MEMORY", "1"));
    assert_eq!(place.run(&["train", &config]).0, 0);
    place.cut("test/weeds/1.png");
    fs::write(place.path("test/weeds/notes.txt"), "no picture").unwrap();
    place.pipe("test/weeds/pipe.png");
    let (code, stdout, stderr) =
        place.run(&["predict", "run", "test/roses/0.png", "missing.jpg", "test/weeds", "--format", "csv"]);
    assert_eq!(code, 3, "{stderr}");
    assert_eq!(stdout.lines().count(), 1 + 3, "{stdout}");
    for told in [
        "skipped missing.jpg: No such file",
        "skipped test/weeds/1.png",
        "skipped test/weeds/pipe.png: is a pipe",
    ] {
        assert!(stderr.contains(told), "{told}: {stderr}");
    }
    assert!(stderr.contains("passed over ") && stderr.contains("notes.txt"), "{stderr}");
    assert!(stderr.contains("3 of 6 inputs could not be answered"), "{stderr}");
    assert_eq!(place.run(&["predict", "run", "test/roses"]).0, 0);

    place.picture("extra/9.png", 99);
    let text = DENOISE.replace("ROOT", place.0.path().to_str().unwrap()).replace("PATCH", "8");
    let config = write_config(place.0.path(), &text.replace("/run\n", "/denoise\n"));
    let (code, _, stderr) = place.run(&["train", &config]);
    assert_eq!(code, 0, "{stderr}");
    let (code, stdout, stderr) =
        place.run(&["restore", "denoise", "extra/9.png", "missing.jpg", "test/weeds", "-o", "out"]);
    assert_eq!((code, stdout.lines().count()), (3, 3), "{stdout}{stderr}");
    for told in ["missing.jpg", "test/weeds/1.png", "pipe.png", "3 of 6 images could not be restored"] {
        assert!(stderr.contains(told), "{told}: {stderr}");
    }
}

#[test]
fn pipes_and_devices_are_refused_wherever_a_file_is_read() {
    let place = Place::new();
    let whole = "test: {folder: {root: ROOT/test, size: 16}}, batch_size: 4";
    fs::create_dir(place.path("pipes")).unwrap();
    place.pipe("pipes/a.pipe");
    let pipe = place.path("pipes/a.pipe");
    for (file, what) in [(pipe.to_str().unwrap(), "a pipe (FIFO)"), ("/dev/zero", "a device")] {
        for source in [
            "csv: {file: F, target: y}",
            "idx: {images: F, labels: F}",
            "npy: {xs: F, ys: F}",
            "cifar10: {files: F}",
        ] {
            let config = place.config(&format!(
                "{{train: {{{}}}, {whole}}}",
                source.replace('F', file).replace("IFO", "FIFO")
            ));
            let (code, _, stderr) = place.run(&["train", &config]);
            assert!(code == 2 && stderr.contains(what), "{source} of {file}: {code} {stderr}");
        }
        let config = place.config(&FOLDERS.replace("MEMORY", "1"));
        let (code, _, stderr) = place.run(&["train", &config, "--set", &format!("model={{file: {file}}}")]);
        assert!(code == 2 && stderr.contains(what), "model.file {file}: {code} {stderr}");
        let (code, _, stderr) = place.run(&["inspect", file]);
        assert!(code == 4 && stderr.contains("regular file"), "inspect {file}: {code} {stderr}");
    }
    // In a folder of pictures it counts as damaged, resident or not.
    place.pipe("train/roses/p.png");
    for memory in ["0", "1"] {
        let config = place.config(&FOLDERS.replace("MEMORY", memory));
        let (code, _, stderr) = place.run(&["train", &config, "--set", "data.max_skipped=0"]);
        assert!(code == 3 && stderr.contains("p.png: is a pipe"), "{code} {stderr}");
    }
    // A pipe in the place of a config is the shell's `<(…)`.
    let config = place.config(&FOLDERS.replace("MEMORY", "1"));
    let script = format!("{} train <(cat {config}) --dry-run", env!("CARGO_BIN_EXE_tikhonov"));
    let (code, stdout, stderr) = outcome(Command::new("bash").args(["-c", &script]).output().unwrap());
    assert!(code == 0 && stdout.contains("small-cnn"), "{stderr}");
    let (code, _, stderr) = place.run(&["train", "/dev/zero"]);
    assert!(code == 2 && stderr.contains("too large for a config"), "{stderr}");
}

#[test]
fn a_model_file_beyond_any_size_is_refused() {
    let place = Place::new();
    fs::write(place.path("large.yaml"), vec![b' '; 5 << 20]).unwrap();
    let config = place.config(&FOLDERS.replace("MEMORY", "1"));
    let model = format!("model={{file: {}}}", place.path("large.yaml").display());
    let (code, _, stderr) = place.run(&["train", &config, "--set", &model]);
    assert!(code == 2 && stderr.contains("bytes"), "{stderr}");
}

/// A grey TIFF of 2x1 pixels, uncompressed.
fn tiff(fill_order: u16) -> Vec<u8> {
    let entries: [(u16, u16, u32); 9] = [
        (256, 3, 2),
        (257, 3, 1),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (266, 3, fill_order.into()),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (278, 3, 1),
        (279, 4, 2),
    ];
    let mut file = b"II*\0\x08\0\0\0\x09\0".to_vec();
    for (tag, kind, value) in entries {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 10, 200]);
    file
}

#[test]
fn a_tiff_with_reversed_bits_is_refused() {
    let place = Place::new();
    let photo = |order: u16| {
        let path = place.path(&format!("{order}.tif"));
        fs::write(&path, tiff(order)).unwrap();
        tikhonov::data::image::photo::Photo::read(Path::new(&path))
    };
    assert_eq!(photo(1).map(|photo| (photo.width, photo.height)).unwrap(), (2, 1));
    let error = photo(2).unwrap_err();
    assert!(format!("{error:#}").contains("FillOrder 2"), "{error:#}");
}

#[test]
fn the_start_tells_classes_counts_outputs_without_a_class_and_that_nothing_judges() {
    let place = Place::new();
    let config = place.config("{train: {folder: {root: ROOT/train, size: 16}}, batch_size: 4}");
    let (code, _, stderr) = place.run(&["train", &config, "--set", "model.args.classes=10"]);
    assert_eq!(code, 0, "{stderr}");
    for line in [
        "train: 12 samples of shape [3, 16, 16], 3 classes: roses 4, tulips 4, weeds 4",
        "the network has 10 outputs and the data 3 classes",
        "nothing judges this run",
    ] {
        assert!(stderr.contains(line), "{line}: {stderr}");
    }
}

/// Starts a training, sends SIGTERM once `when` holds, and returns the exit code, how long the end took, and
/// stderr.
fn terminated(args: &[&str], when: impl Fn() -> bool) -> (i32, Duration, String) {
    let child = tikhonov().args(args).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !when() {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing to interrupt");
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
    (code, sent.elapsed(), stderr)
}

#[test]
fn sigterm_ends_the_reading_of_a_large_folder_within_seconds() {
    let place = Place::new();
    let ramp = |x: u32, y: u32| Rgb([(x % 256) as u8, (y % 256) as u8, (x * y % 256) as u8]);
    RgbImage::from_fn(2000, 2000, ramp).save(place.path("large.png")).unwrap();
    for index in 0..1500 {
        std::os::unix::fs::symlink(place.path("large.png"), place.path(&format!("train/roses/x{index}.png")))
            .unwrap();
    }
    let config = place.config(&FOLDERS.replace("MEMORY", "1"));
    let began = Instant::now();
    let (code, took, stderr) = terminated(&["train", &config], || began.elapsed() > Duration::from_secs(8));
    assert!(code == 75 && took < Duration::from_secs(5), "{code} after {took:?}: {stderr}");
    assert!(stderr.contains("reading files: ") && stderr.contains(" of 1512"), "{stderr}");
    assert!(stderr.contains("interrupted while the training set was being read"), "{stderr}");
}

#[test]
fn sigterm_ends_a_validation_and_a_resume_has_the_same_bits() {
    let place = Place::new();
    let ramp = |x: u32, y: u32| Rgb([(x % 256) as u8, (y % 256) as u8, (x * y % 256) as u8]);
    fs::create_dir(place.path("judged")).unwrap();
    RgbImage::from_fn(400, 400, ramp).save(place.path("large.png")).unwrap();
    for index in 0..60 {
        std::os::unix::fs::symlink(place.path("large.png"), place.path(&format!("judged/{index}.png")))
            .unwrap();
    }
    let text = DENOISE.replace("ROOT", place.0.path().to_str().unwrap()).replace("PATCH", "16");
    let text = text
        .replace("depth: 3, width: 4", "depth: 6, width: 24")
        .replace("test: {images: {root", "validation: {images: {root")
        .replace("/test}}", "/judged}}")
        .replace("{epochs: 1}", "{epochs: 2, log_every: 1}");
    let config = write_config(place.0.path(), &text);
    let metrics = place.path("run/metrics.jsonl");
    let learnt = || fs::read_to_string(&metrics).unwrap_or_default().matches("\"step\"").count() >= 3;
    let (code, took, stderr) = terminated(&["train", &config], || {
        let is_learnt = learnt();
        std::thread::sleep(Duration::from_millis(if is_learnt { 600 } else { 0 }));
        is_learnt
    });
    assert!(code == 75 && took < Duration::from_secs(5), "{code} after {took:?}: {stderr}");
    let state = read_json(place.path("run/checkpoints/last/state.json"));
    assert_eq!((&state["epoch"], &state["batch"]), (&0.into(), &3.into()), "{state}");
    let (code, _, stderr) = place.run(&["train", &config, "--resume"]);
    assert_eq!(code, 0, "{stderr}");
    let whole = place.path("whole");
    let (code, _, stderr) = place.run(&["train", &config, "--output", whole.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(saved(&place.path("run"), "model") == saved(&whole, "model"));
    let scores = |run: &str| read_json(place.path(run).join("result.json"))["last"]["validation"].clone();
    assert_eq!(scores("run"), scores("whole"));
}
