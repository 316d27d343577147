//! Disks that fill, processes that are killed, files that rot: nothing is lost, and nothing changes in
//! silence.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tikhonov::checkpoint::load;

use crate::common::{outcome, python_path, read_json, records, run, saved, succeeds, tikhonov, write_config};

/// Some checkpoints with all that one may hold, in a second.
const SMALL: &str = "
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 4, width: 2}}
task: classification
data:
  train: {shapes: {count: 120, size: 16, classes: 4}}
  validation: {shapes: {count: 40, size: 16, classes: 4}}
  batch_size: 20
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 3, ema: {decay: 0.9}, checkpoint: {every_steps: 4, keep: 3}}
";

/// `preload.c`, built into `home`.
fn preload(home: &Path) -> PathBuf {
    let library = home.join("preload.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload.c");
    let mut build = Command::new("cc");
    build.args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl");
    assert!(build.status().unwrap().success());
    library
}

fn wait<T>(child: &mut Child, what: &str, done: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended before {what}");
        assert!(began.elapsed() < Duration::from_secs(120), "{what} never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// A run that is stopped by `signal` in its second epoch; (exit code, stderr).
fn stopped(config: &str, folder: &Path, name: &str) -> (i32, String) {
    let mut child = tikhonov()
        .args(["train", config, "--set", "train.epochs=200", "--output", folder.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = folder.join("metrics.jsonl");
    let is_on = || fs::read_to_string(&metrics).unwrap_or_default().contains("\"epoch\"").then_some(());
    wait(&mut child, "the first epoch", is_on);
    signal(&child, name);
    let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
    (code, stderr)
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{}: no {from}", file.display());
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Names of the checkpoints, oldest first, without the links.
fn kept(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_fault_at_any_call_that_changes_a_file_loses_nothing_and_the_resumed_run_has_the_same_bits() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/faults.py");
    let output = Command::new(python_path())
        .arg(script)
        .args(["--every", "70", "--flips", "2", "--jobs", "2"])
        .env("TIKHONOV_BINARY", env!("CARGO_BIN_EXE_tikhonov"))
        .output()
        .unwrap();
    let (code, stdout, stderr) = outcome(output);
    assert_eq!(code, 0, "{stdout}\n{stderr}");
    assert!(stdout.contains("| errno: EIO for ever |"), "{stdout}");
}

#[test]
fn of_five_hundred_flipped_bits_in_each_file_of_a_checkpoint_each_is_found() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let folder = home.path().join("run");
    succeeds(&["train", &config, "--output", folder.to_str().unwrap()]);
    let last = folder.join("checkpoints/last");
    load(&last).unwrap();
    let mut files = 0;
    for entry in fs::read_dir(&last).unwrap() {
        let file = entry.unwrap().path();
        let whole = fs::read(&file).unwrap();
        for number in 0..500 {
            // Evenly spaced, each at another place of its byte.
            let bit = number * 8 * whole.len() / 500 + number % 8;
            let mut flipped = whole.clone();
            flipped[(bit / 8).min(whole.len() - 1)] ^= 1 << (bit % 8);
            fs::write(&file, flipped).unwrap();
            assert!(load(&last).is_err(), "bit {bit} of {}", file.display());
        }
        fs::write(&file, whole).unwrap();
        files += 1;
    }
    assert_eq!(files, 4);
    load(&last).unwrap();
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_told_with_quiet_too_and_a_newer_layout_is_never_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let whole = home.path().join("whole");
    succeeds(&["train", &config, "--output", whole.to_str().unwrap()]);
    let half = home.path().join("half");
    // SIGTERM in the middle of the calls that change files.
    let (library, log) = (preload(home.path()), home.path().join("calls"));
    let mut train = tikhonov();
    train.args(["train", &config, "--output", half.to_str().unwrap()]).env("LD_PRELOAD", library);
    train.env("FAULT_FOLDER", &half).env("FAULT_LOG", log).env("FAULT_TERM", "90");
    let (code, _, stderr) = outcome(train.output().unwrap());
    assert_eq!(code, 75, "{stderr}");
    let last = fs::read_link(half.join("checkpoints/last")).unwrap();
    let resumed = |name: &str, harm: &dyn Fn(&Path)| {
        let folder = home.path().join(name);
        copy(&half, &folder);
        harm(&folder.join("checkpoints").join(&last));
        let more = ["--resume", "--quiet"];
        let (code, _, stderr) =
            run(&[&["train", &config, "--output", folder.to_str().unwrap()], &more[..]].concat());
        (code, stderr, folder)
    };
    let step = |state: &str, to: &str| -> String {
        let text = fs::read_to_string(state).unwrap();
        let at = text.find("\"step\": ").unwrap();
        let end = text[at..].find(',').unwrap() + at;
        [&text[..at], to, &text[end..]].concat()
    };
    type Edit<'a> = (&'a str, &'a dyn Fn(&Path));
    let edits: [Edit; 4] = [
        ("edited", &|last| {
            let state = last.join("state.json");
            fs::write(&state, step(state.to_str().unwrap(), "\"step\": 32")).unwrap();
        }),
        ("without a state", &|last| fs::remove_file(last.join("state.json")).unwrap()),
        ("gone", &|last| fs::remove_dir_all(last).unwrap()),
        ("a pipe", &|last| {
            let state = last.join("state.json");
            fs::remove_file(&state).unwrap();
            assert!(Command::new("mkfifo").arg(state).status().unwrap().success());
        }),
    ];
    for (name, harm) in edits {
        let (code, stderr, folder) = resumed(name, harm);
        assert!(code == 0 && stderr.contains(&last.display().to_string()), "{name}: {code} {stderr}");
        assert!(stderr.contains("going back to"), "{name}: {stderr}");
        assert_eq!(saved(&folder, "model"), saved(&whole, "model"), "{name}");
    }
    let (code, stderr, folder) =
        resumed("newer", &|last| edit(&last.join("state.json"), "\"format\": 2", "\"format\": 3"));
    assert!(code == 4 && stderr.contains("layout 3") && stderr.contains("knows up to 2"), "{stderr}");
    assert!(kept(&folder).contains(&last.display().to_string()));
}

/// What is done to a state.
type Harm = fn(&mut Map<String, Value>);

#[test]
fn a_checkpoint_of_layout_1_goes_on_and_its_numbers_are_looked_at() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let whole = home.path().join("whole");
    succeeds(&["train", &config, "--output", whole.to_str().unwrap()]);
    let older = |name: &str, harm: Harm| {
        let folder = home.path().join(name);
        fs::create_dir_all(folder.join("checkpoints")).unwrap();
        copy(&whole.join("checkpoints/step-00000016"), &folder.join("checkpoints"));
        symlink("step-00000016", folder.join("checkpoints/last")).unwrap();
        let file = folder.join("checkpoints/last/state.json");
        let Value::Object(mut state) = read_json(&file) else { panic!("an object") };
        ["sha256", "fingerprints", "threads", "best", "gain"].iter().for_each(|key| drop(state.remove(*key)));
        state.insert("format".into(), 1.into());
        harm(&mut state);
        fs::write(&file, serde_json::to_string_pretty(&state).unwrap()).unwrap();
        let (code, _, stderr) =
            run(&["train", &config, "--resume", "--quiet", "--output", folder.to_str().unwrap()]);
        (code, stderr, folder)
    };
    let (code, stderr, folder) = older("older", |_| {});
    assert!(code == 0 && stderr.contains("an earlier version saved this checkpoint"), "{code} {stderr}");
    assert_eq!(saved(&folder, "model"), saved(&whole, "model"));
    let impossible: [(&str, Harm); 5] = [
        ("step", |state| drop(state.insert("step".into(), 32.into()))),
        ("batch", |state| drop(state.insert("batch".into(), 1_000_000_000.into()))),
        ("epoch", |state| drop(state.insert("epoch".into(), 1_000_000_000_000_000u64.into()))),
        ("skipped", |state| drop(state.insert("skipped".into(), 1_000_000.into()))),
        ("plateau", |state| drop(state.insert("plateau".into(), 7.into()))),
    ];
    for (name, harm) in impossible {
        let (code, stderr, _) = older(name, harm);
        assert_eq!(code, 4, "{name}: {stderr}");
    }
}

#[test]
fn other_data_is_refused_where_files_are_read_at_need_and_of_every_set() {
    let home = tempfile::tempdir().unwrap();
    let picture = |set: &str, class: &str, number: u8, shade: u8| {
        let folder = home.path().join(set).join(class);
        fs::create_dir_all(&folder).unwrap();
        let pixels: Vec<u8> =
            (0..256u32).map(|at| shade.wrapping_add((at * u32::from(number + 3)) as u8)).collect();
        let header = b"P5 16 16 255\n".to_vec();
        fs::write(folder.join(format!("{number}.pgm")), [header, pixels].concat()).unwrap();
    };
    let fill = |set: &str, shade: u8| {
        for number in 0..10 {
            picture(set, "a", number, shade);
            picture(set, "b", number, shade + 100);
        }
    };
    for set in ["train", "val", "test"] {
        fill(set, 10);
    }
    let root = home.path().display();
    let source = |set: &str| format!("{{folder: {{root: {root}/{set}, size: 16, mode: grey}}}}");
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {{name: small-cnn, args: {{channels: 1, size: 16, classes: 2, width: 2}}}}\n\
         task: classification\ndata: {{train: {}, validation: {}, test: {}, batch_size: 5, normalize: none}}\n\
         optimizer: {{sgd: {{lr: 0.01}}}}\ntrain: {{epochs: 2}}\n",
        source("train"),
        source("val"),
        source("test")
    );
    let config = write_config(home.path(), &text);
    for memory in ["0", "2"] {
        let folder = home.path().join(format!("run-{memory}"));
        let with = format!("data.memory_gib={memory}");
        let train = |more: &[&str]| {
            run(&[&["train", &config, "--set", &with, "--output", folder.to_str().unwrap()], more].concat())
        };
        let (code, _, stderr) = train(&[]);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(stderr.contains("read at need"), memory == "0", "{stderr}");
        for (set, name) in [("train", "training"), ("val", "validation"), ("test", "test")] {
            fill(set, 60);
            let (code, _, stderr) = train(&["--resume", "--set", "train.epochs=3"]);
            assert!(
                code == 3 && stderr.contains(&format!("the {name} data is not")),
                "{memory} {set}: {code} {stderr}"
            );
            fill(set, 10);
        }
        let (code, _, stderr) = train(&["--resume", "--set", "train.epochs=3"]);
        assert_eq!(code, 0, "{stderr}");
    }
}

#[test]
fn a_resume_says_that_jpeg_files_had_other_pixels() {
    let home = tempfile::tempdir().unwrap();
    for (class, number) in [("a", 0), ("a", 1), ("b", 0), ("b", 1)] {
        let folder = home.path().join("set").join(class);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{number}.jpg")), include_bytes!("data/420.jpg")).unwrap();
    }
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {{name: small-cnn, args: {{channels: 3, size: 16, classes: 2, width: 2}}}}\n\
         task: classification\ndata: {{train: {{folder: {{root: {}/set, size: 16}}}}, batch_size: 2}}\n\
         optimizer: {{sgd: {{lr: 0.01}}}}\ntrain: {{epochs: 2}}\n",
        home.path().display()
    );
    let config = write_config(home.path(), &text);
    for (memory, expected) in [("0", 0), ("2", 3)] {
        let folder = home.path().join(format!("run-{memory}"));
        let with = format!("data.memory_gib={memory}");
        let train = |more: &[&str]| {
            run(&[&["train", &config, "--set", &with, "--output", folder.to_str().unwrap()], more].concat())
        };
        assert_eq!(train(&[]).0, 0);
        let file = folder.join("checkpoints/last/state.json");
        let Value::Object(mut state) = read_json(&file) else { panic!("an object") };
        ["sha256", "jpeg_pixels"].iter().for_each(|key| drop(state.remove(*key)));
        state.insert("format".into(), 1.into());
        if memory == "2" {
            state["fingerprints"]["train"] = "0".into();
        }
        fs::write(&file, serde_json::to_string_pretty(&state).unwrap()).unwrap();
        let resume = || train(&["--resume", "--set", "train.epochs=3"]);
        let (code, _, stderr) = resume();
        assert!(code == expected && stderr.contains("decoded JPEG files to pixels"), "{code} {stderr}");
        if memory == "0" {
            let (code, _, stderr) = resume();
            assert!(code == 0 && !stderr.contains("decoded JPEG files"), "{code} {stderr}");
        }
    }
}

#[test]
fn what_a_resume_or_an_evaluation_does_otherwise_is_told() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let folder = home.path().join("run");
    let output = folder.to_str().unwrap();
    succeeds(&["train", &config, "--output", output]);
    let resume = |more: &[&str]| run(&[&["train", &config, "--resume", "--output", output], more].concat());

    let (code, _, stderr) = resume(&["--threads", "2", "--set", "train.epochs=4"]);
    assert!(code == 0 && stderr.contains("2 CPU threads instead of 1"), "{stderr}");

    // The model of another run is the config's fault, not the checkpoint's.
    let (code, _, stderr) = resume(&["--set", "model.args.width=3", "--set", "train.epochs=5"]);
    assert!(code == 2 && stderr.contains("`model` or `optimizer`"), "{code} {stderr}");
    let (code, _, stderr) = resume(&["--set", "optimizer={adamw: {lr: 0.01}}", "--set", "train.epochs=5"]);
    assert!(code == 2 && stderr.contains("`model` or `optimizer`"), "{code} {stderr}");

    let (_, _, stderr) = run(&["eval", output, "--split", "validation"]);
    assert!(!stderr.contains("was changed"), "{stderr}");
    edit(&folder.join("config.yaml"), "count: 40", "count: 30");
    let (code, _, stderr) = run(&["eval", output, "--split", "validation"]);
    assert!(code == 0 && stderr.contains("config.yaml was changed since"), "{stderr}");
    assert!(stderr.contains("data.validation.shapes.count was 40, is 30"), "{stderr}");

    // One byte that is no text, in the middle.
    let metrics = folder.join("metrics.jsonl");
    let mut bytes = fs::read(&metrics).unwrap();
    bytes[40] = 0xff;
    fs::write(&metrics, bytes).unwrap();
    let (code, _, stderr) = resume(&["--quiet", "--set", "train.epochs=5"]);
    assert!(code == 0 && stderr.contains("1 damaged line of metrics.jsonl"), "{code} {stderr}");
    assert!(records(&folder, "epoch").len() >= 4);
}

#[test]
fn signals_of_batch_systems_save_and_a_limit_of_file_size_is_exit_7() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    for name in ["USR1", "USR2", "XCPU"] {
        let folder = home.path().join(name);
        let (code, stderr) = stopped(&config, &folder, name);
        assert!(code == 75 && stderr.contains("--resume"), "{name}: {code} {stderr}");
        assert!(folder.join("checkpoints/last/state.json").exists());
    }
    let folder = home.path().join("limited");
    let limited = format!("ulimit -f 1; exec \"$0\" train {config} --output {}", folder.display());
    let output =
        Command::new("bash").args(["-c", &limited, env!("CARGO_BIN_EXE_tikhonov")]).output().unwrap();
    let (code, _, stderr) = outcome(output);
    assert!(code == 7 && stderr.contains("File too large"), "{code} {stderr}");
    succeeds(&["train", &config, "--resume", "--output", folder.to_str().unwrap()]);
}

#[test]
fn a_sweep_that_is_signalled_saves_and_its_folder_takes_no_second_sweep() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let folder = home.path().join("sweep");
    let long = "train.epochs=40";
    let fixed = [
        "sweep",
        &config,
        "--set",
        long,
        "--over",
        "penalty.l2=0,1e-3,1e-2",
        "--jobs",
        "1",
        "--threads",
        "1",
        "--output",
    ];
    let arguments = [&fixed[..], &[folder.to_str().unwrap()]].concat();
    let mut child = tikhonov().args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait(&mut child, "a trial", || folder.join("trials/0000/metrics.jsonl").exists().then_some(()));
    let resumed = [&arguments[..], &["--resume"]].concat();
    let (code, _, stderr) = run(&resumed);
    assert!(code == 2 && stderr.contains("another process is sweeping"), "{code} {stderr}");
    signal(&child, "USR1");
    assert_eq!(child.wait().unwrap().code(), Some(75));
    succeeds(&resumed);
    let result = read_json(folder.join("result.json"));

    // A trial that stands there twice counts once, by its first line; a damaged byte costs its own line
    // alone.
    let trials = folder.join("trials.jsonl");
    let text = fs::read_to_string(&trials).unwrap();
    let first = text.lines().next().unwrap();
    let score = first.find("\"score\":").unwrap();
    let twin =
        format!("{}\"score\":1e-9{}\n", &first[..score], &first[first[score..].find(',').unwrap() + score..]);
    fs::write(&trials, [text.as_bytes(), twin.as_bytes(), b"\xff\n"].concat()).unwrap();
    succeeds(&resumed);
    assert_eq!(read_json(folder.join("result.json")), result);
    assert_eq!(fs::read_to_string(&trials).unwrap().lines().count(), 3);
}

#[test]
fn a_save_that_meets_a_full_disk_makes_room_and_is_tried_once_more() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let library = preload(home.path());
    // ENOSPC at this call, once or from there on; the numbered calls that change a file of the run.
    let faulty = |name: &str, fault: &[(&str, &str)]| {
        let (folder, log) = (home.path().join(name), home.path().join(format!("{name}.log")));
        let mut train = tikhonov();
        train.args(["train", &config, "--quiet", "--output", folder.to_str().unwrap()]);
        train.env("LD_PRELOAD", &library).env("FAULT_FOLDER", &folder).env("FAULT_LOG", &log);
        train.envs(fault.iter().copied());
        let (code, _, stderr) = outcome(train.output().unwrap());
        (folder, code, stderr, fs::read_to_string(log).unwrap())
    };
    let (whole, code, _, calls) = faulty("whole", &[]);
    assert_eq!(code, 0);
    let open = "open ";
    // Files are written beside each other, so that the same number may be that of another file.
    let of_last_save = calls.lines().rfind(|call| call.contains(open) && call.ends_with("model.safetensors"));
    let at = of_last_save.unwrap().split(' ').next().unwrap();
    let errno = ("FAULT_DO", "28");
    let (once, code, stderr, _) = faulty("once", &[("FAULT_AT", at), errno]);
    assert!(
        code == 0 && stderr.contains("the disk was full when a checkpoint was to be saved"),
        "{code} {stderr}"
    );
    assert!(stderr.contains("removed step-") && stderr.contains("the second attempt went well"), "{stderr}");
    assert_eq!(saved(&once, "model"), saved(&whole, "model"));
    assert_eq!(kept(&once), kept(&whole), "nothing went that would have stayed");
    // A disk that stays full is exit 7, and the checkpoint before stays.
    let (full, code, stderr, _) = faulty("full", &[("FAULT_AT", at), ("FAULT_ALWAYS", "1"), errno]);
    assert!(code == 7 && stderr.contains("is kept"), "{code} {stderr}");
    load(&full.join("checkpoints/last")).unwrap();
}

#[test]
fn without_threads_the_work_is_done_by_one_with_the_same_bits() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let library = preload(home.path());
    let [with, without] = ["with", "without"].map(|name| home.path().join(name));
    succeeds(&["train", &config, "--output", with.to_str().unwrap()]);
    let alone = |arguments: &[&str]| {
        let mut command = tikhonov();
        command.args(arguments).env("LD_PRELOAD", &library).env("FAULT_NO_THREADS", "1");
        outcome(command.output().unwrap())
    };
    let (code, _, stderr) =
        alone(&["train", &config, "--threads", "2", "--output", without.to_str().unwrap()]);
    assert!(code == 0 && stderr.contains("makes no more threads"), "{code} {stderr}");
    assert_eq!(saved(&without, "model"), saved(&with, "model"));
    let run = without.to_str().unwrap();
    for arguments in [&["eval", run, "--split", "validation"][..], &["inspect", run]] {
        let (code, _, stderr) = alone(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = alone(&[
        "sweep",
        &config,
        "--over",
        "penalty.l2=0,1",
        "--output",
        home.path().join("s").to_str().unwrap(),
    ]);
    assert!(code == 6 && stderr.contains("ulimit -u"), "{code} {stderr}");
}

#[test]
fn memory_that_is_refused_is_exit_6_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    // More than any machine has, so that no limit is needed.
    let (code, _, stderr) = run(&[
        "train",
        &config,
        "--set",
        "model.args.width=100000000",
        "--output",
        home.path().join("run").to_str().unwrap(),
    ]);
    assert!(code == 6 || code == 2, "{code} {stderr}");
    assert!(!stderr.contains("unwrap") && !stderr.contains("frame #"), "{stderr}");
}

#[test]
fn absurd_numbers_of_threads_are_refused_and_unwise_ones_are_told() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    for set in ["threads=100000000", "data.workers=100000000"] {
        let (code, _, stderr) = run(&["train", &config, "--dry-run", "--set", set]);
        assert!(code == 2 && stderr.contains("or fewer"), "{set}: {code} {stderr}");
    }
}

#[test]
fn a_run_folder_that_is_removed_meanwhile_is_named_and_not_made_anew() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let folder = home.path().join("run");
    let mut child = tikhonov()
        .args([
            "train",
            &config,
            "--quiet",
            "--set",
            "train.epochs=2000",
            "--output",
            folder.to_str().unwrap(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait(&mut child, "a checkpoint", || folder.join("checkpoints/last").exists().then_some(()));
    fs::rename(&folder, home.path().join("moved")).unwrap();
    let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
    assert!(code == 7 && stderr.contains("removed or renamed while the run went on"), "{code} {stderr}");
    assert!(stderr.contains(folder.to_str().unwrap()), "{stderr}");
    assert!(!folder.exists());
}

#[test]
fn what_killed_processes_left_while_they_wrote_goes_at_the_next_start() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), SMALL);
    let folder = home.path().join("run");
    let output = folder.to_str().unwrap();
    succeeds(&["train", &config, "--output", output]);
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let left = |path: PathBuf| {
        fs::write(&path, "half").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
        path
    };
    let in_run = left(folder.join(".config.yaml.elsewhere.77.partial"));
    let in_plots = left(folder.join("plots/.loss.png.77.partial"));
    let link = folder.join("checkpoints/.last.draft");
    symlink("nowhere", &link).unwrap();
    let others = folder.join(".keep.me");
    fs::write(&others, "").unwrap();
    succeeds(&["train", &config, "--resume", "--output", output]);
    assert!(!in_run.exists() && !in_plots.exists() && !link.is_symlink() && others.exists());

    let beside = left(home.path().join(".out.safetensors.elsewhere.77.partial"));
    let out = home.path().join("out.safetensors");
    succeeds(&["export", output, "--to", "safetensors", "-o", out.to_str().unwrap()]);
    assert!(!beside.exists() && out.exists());
}
