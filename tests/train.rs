//! Whole runs, driven as a user drives them.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::{outcome, python, read_json, records, run, saved, succeeds, tikhonov, write_config};

/// Dropout, augmentation, accumulation, EMA, momentum, a λ schedule and a validation split: all that a resume
/// could get wrong.
const EVERYTHING: &str = "
seed: 3
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 28, classes: 10, width: 4, dropout: 0.2}}
task: {classification: {label_smoothing: 0.1}}
data:
  train: {shapes: {count: 1500, size: 28}}
  validation: {fraction: 0.2}
  batch_size: 25
  augment: [{flip: {horizontal: true}}, {crop: {padding: 2}}]
penalty: {l2: {start: 1.0e-4, end: 1.0e-2, epochs: 3, curve: linear}, l1: 1.0e-5}
optimizer: {sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}
schedule: cosine
train:
  epochs: 3
  accumulate: 2
  clip: {norm: 1.0}
  ema: {decay: 0.9}
  log_every: 7
  checkpoint: {every_steps: 5, keep: 2}
";

fn weights(run: &Path) -> [Vec<u8>; 3] {
    ["model", "optimizer", "ema"].map(|part| saved(run, part))
}

#[test]
fn a_run_killed_at_twenty_random_moments_ends_with_the_same_weights_bit_for_bit() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let undisturbed = home.path().join("undisturbed");
    let began = Instant::now();
    succeeds(&["train", &config, "--output", undisturbed.to_str().unwrap()]);
    let whole = began.elapsed();

    let killed = home.path().join("killed");
    let mut moments = CounterRng::new(1, 0, 0, RngStream::Order);
    let mut kills = 0;
    // Early kills hit start-up and the first steps; a run that ends before its kill starts anew elsewhere.
    while kills < 20 {
        let mut child = tikhonov()
            .args(["train", &config, "--resume", "--output", killed.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(moments.between(0.1, 1.1)));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        } else if kills < 20 {
            assert_eq!(weights(&killed), weights(&undisturbed), "after {kills} kills");
            fs::remove_dir_all(&killed).unwrap();
        }
        child.wait().unwrap();
    }
    succeeds(&["train", &config, "--resume", "--output", killed.to_str().unwrap()]);
    assert_eq!(weights(&killed), weights(&undisturbed));
    let numbers = |run: &Path| -> Vec<_> {
        let steps = records(run, "step").into_iter();
        steps.map(|r| [r["step"].clone(), r["loss"].clone(), r["penalty"].clone(), r["lr"].clone()]).collect()
    };
    assert_eq!(
        numbers(&killed),
        numbers(&undisturbed),
        "the log of a resumed run is that of an undisturbed one"
    );
}

#[test]
fn ctrl_c_saves_exits_with_75_and_the_resumed_run_is_the_same_run() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let [whole, interrupted] = ["whole", "interrupted"].map(|name| home.path().join(name));
    succeeds(&["train", &config, "--output", whole.to_str().unwrap()]);
    // A background job of a shell without job control ignores SIGINT, and so would all that it starts.
    let child = std::process::Command::new("env")
        .arg("--default-signal=INT")
        .arg(tikhonov().get_program())
        .args(["train", &config, "--set", "train.checkpoint.every_steps=null"])
        .args(["--output", interrupted.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    // Wait for the first logged step, so that the signal falls into training.
    let metrics = interrupted.join("metrics.jsonl");
    while fs::read_to_string(&metrics).unwrap_or_default().is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its first logged step");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
    assert_eq!(code, 75, "{stderr}");
    assert!(stderr.contains("--resume"), "{stderr}");
    succeeds(&["train", &config, "--resume", "--output", interrupted.to_str().unwrap()]);
    assert_eq!(weights(&interrupted), weights(&whole));
}

#[test]
fn nobody_to_tell_is_no_reason_to_end_the_work() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let whole = home.path().join("whole");
    succeeds(&["train", &config, "--output", whole.to_str().unwrap()]);
    for listener in ["nobody", "a full disk"] {
        let output = home.path().join(listener);
        let mut command = tikhonov();
        command.args(["train", &config, "--output", output.to_str().unwrap()]).stdout(Stdio::null());
        let mut child = match listener {
            "nobody" => command.stderr(Stdio::piped()).spawn().unwrap(),
            _ => {
                command.stderr(fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).spawn().unwrap()
            }
        };
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{listener}");
        assert_eq!(weights(&output), weights(&whole), "{listener}");
        let log = fs::read_to_string(output.join("log.txt")).unwrap();
        assert!(log.contains("epoch 3/3"), "{log}");
    }
}

#[test]
fn a_terminal_that_is_closed_has_the_run_saved_and_nohup_has_it_go_on() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    // Who runs the tests may have it ignored, too.
    for (prefix, expected) in [("exec env --default-signal=HUP", 75), ("exec nohup", 0)] {
        let output = home.path().join(prefix);
        let line = format!("{prefix} \"$0\" train \"$1\" --output \"$2\" > \"$2.out\" 2>&1");
        let mut child = std::process::Command::new("sh")
            .args(["-c", &line])
            .arg(tikhonov().get_program())
            .args([&config, output.to_str().unwrap()])
            .spawn()
            .unwrap();
        while fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default().is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "the run ended before its first logged step");
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
        let told = fs::read_to_string(format!("{}.out", output.display())).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{prefix}: {told}");
    }
}

#[test]
fn a_folder_that_holds_a_run_is_refused_without_resume() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    let args = ["train", &config, "--set", "train.epochs=1", "--output", output.to_str().unwrap()];
    succeeds(&args);
    let before = weights(&output);
    let (code, _, stderr) = run(&args);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("holds a run already") && stderr.contains("--resume"), "{stderr}");
    assert_eq!(weights(&output), before);
}

#[test]
fn a_resume_that_is_refused_leaves_the_run_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    let output = output.to_str().unwrap();
    succeeds(&["train", &config, "--set", "train.epochs=1", "--output", output]);
    let kept = ["config.yaml", "metrics.jsonl"].map(|name| fs::read(Path::new(output).join(name)).unwrap());
    let (code, _, stderr) =
        run(&["train", &config, "--set", "model.args.width=6", "--output", output, "--resume"]);
    assert_eq!(code, 2, "{stderr}");
    let (code, _, stderr) = run(&["train", &config, "--seed", "9", "--output", output, "--resume"]);
    assert_eq!(code, 3, "another split of the data: {stderr}");
    assert!(stderr.contains("another seed"), "{stderr}");
    let now = ["config.yaml", "metrics.jsonl"].map(|name| fs::read(Path::new(output).join(name)).unwrap());
    assert_eq!(now, kept);
}

#[test]
fn a_resume_of_a_run_that_is_over_leaves_its_config_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let output = home.path().join("run");
    let train = |options: &[&str]| {
        let fixed = ["train", "articles/3-ridge", "--output", output.to_str().unwrap()];
        succeeds(&[&fixed, options].concat());
        fs::read_to_string(output.join("config.yaml")).unwrap()
    };
    let before = train(&["--set", "train.epochs=3"]);
    assert_eq!(train(&["--resume", "--set", "train.epochs=3", "--set", "penalty.l2=0.5"]), before);
    let after = train(&["--resume", "--set", "train.epochs=4", "--set", "penalty.l2=0.5"]);
    assert!(after.contains("l2: 0.5"), "a run that goes on keeps what it goes on with: {after}");
}

#[test]
fn the_table_of_the_metrics_grows_by_rows_and_is_that_of_the_whole_log() {
    let home = tempfile::tempdir().unwrap();
    let train = |name: &str, options: &[&str]| {
        let output = home.path().join(name);
        // The test scores are columns that appear at the fourth epoch.
        let fixed = [
            "train",
            "articles/3-ridge",
            "--set",
            "train.eval_every=4",
            "--output",
            output.to_str().unwrap(),
        ];
        succeeds(&[&fixed, options].concat());
        let table = csv::Reader::from_path(output.join("metrics.csv")).unwrap().into_records();
        let table: Vec<_> = table.map(|row| row.unwrap()).collect();
        let epochs = records(&output, "epoch");
        assert_eq!(table.len(), epochs.len());
        let head = fs::read_to_string(output.join("metrics.csv")).unwrap().lines().next().unwrap().to_owned();
        let column = |name: &str| head.split(',').position(|column| column == name).unwrap();
        for (row, epoch) in table.iter().zip(&epochs) {
            assert_eq!(row[column("loss")], epoch["loss"].to_string());
            let test = &epoch["test"]["mse"];
            assert_eq!(
                row[column("test.mse")],
                if test.is_null() { String::new() } else { test.to_string() }
            );
        }
        head
    };
    let head = train("whole", &["--set", "train.epochs=10"]);
    train("resumed", &["--set", "train.epochs=6"]);
    // Rows that no checkpoint has come to are forgotten, in both files.
    let run = home.path().join("resumed");
    for (file, line) in
        [("metrics.jsonl", r#"{"kind":"epoch","epoch":7,"step":7,"loss":1}"#), ("metrics.csv", "7,7,1")]
    {
        let text = fs::read_to_string(run.join(file)).unwrap();
        fs::write(run.join(file), format!("{text}{line}\n")).unwrap();
    }
    train("resumed", &["--resume", "--set", "train.epochs=6"]);
    assert_eq!(train("resumed", &["--resume", "--set", "train.epochs=10"]), head);
}

#[test]
fn what_an_epoch_reads_and_writes_does_not_grow_with_the_epochs_before_it() {
    let home = tempfile::tempdir().unwrap();
    let Ok(_) = fs::read("/proc/self/io") else {
        eprintln!("SKIPPED what_an_epoch_reads_and_writes: this kernel does not count");
        return;
    };
    // A shell's count holds those of the processes that it has waited for.
    let bytes = |epochs: usize| {
        let output = home.path().join(epochs.to_string());
        let told = std::process::Command::new("sh")
            .args(["-c", "\"$@\" > \"$0\" && cat /proc/$$/io"])
            .arg(home.path().join("told"))
            .arg(tikhonov().get_program())
            .args([
                "train",
                "articles/3-ridge",
                "--quiet",
                "--set",
                &format!("train.epochs={epochs}"),
                "--output",
            ])
            .arg(output)
            .output()
            .unwrap();
        let (code, stdout, stderr) = outcome(told);
        assert_eq!(code, 0, "{stderr}");
        let count =
            |key: &str| stdout.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<f64>().ok());
        count("rchar:").unwrap() + count("wchar:").unwrap()
    };
    let [start, few, many] = [10, 500, 2000].map(bytes);
    assert!(many - start < 6.0 * (few - start), "{start}, {few}, {many} bytes for 10, 500, 2,000 epochs");
}

#[test]
fn training_that_would_make_no_step_is_refused_with_the_key() {
    let home = tempfile::tempdir().unwrap();
    let output = home.path().join("run");
    let train = |batch: &str| {
        let drop = ["--set", "data.drop_last=true", "--set", "train.epochs=1"];
        run(&[
            &["train", "articles/3-ridge", "--output", output.to_str().unwrap(), "--set", batch],
            &drop[..],
        ]
        .concat())
    };
    let (code, _, stderr) = train("data.batch_size=101");
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("data.drop_last") && stderr.contains("at most 100"), "{stderr}");
    let (code, stdout, stderr) = train("data.batch_size=100");
    assert!(code == 0 && stdout.contains("1 epoch, 1 step,"), "{stdout}{stderr}");
}

#[test]
fn a_loss_that_explodes_before_the_first_checkpoint_promises_none() {
    let home = tempfile::tempdir().unwrap();
    let output = home.path().join("run");
    let (code, _, stderr) = run(&[
        "train",
        "articles/3-ridge",
        "--set",
        "optimizer.sgd.lr=1e200",
        "--output",
        output.to_str().unwrap(),
    ]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("there is no checkpoint") && !stderr.contains("is from before;"), "{stderr}");
}

#[test]
fn plateau_and_early_stopping_follow_the_validation_set_and_a_resume_stops_again() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    let args = [
        "train",
        &config,
        "--output",
        output.to_str().unwrap(),
        "--set",
        "train.epochs=30",
        "--set",
        "train.early_stopping={patience: 2}",
        "--set",
        "optimizer={sgd: {lr: 1.0e-9}}",
        "--set",
        "schedule={plateau: {patience: 0, factor: 0.5, mode: max}}",
        "--set",
        "train.ema=null",
    ];
    let stdout = succeeds(&args);
    assert!(stdout.contains("stopped early"), "a network that does not learn cannot gain: {stdout}");
    let epochs = records(&output, "epoch");
    let accuracy = |i: usize| epochs[i]["validation"]["accuracy"].as_f64().unwrap();
    for i in 1..epochs.len() - 1 {
        let rate = |i: usize| epochs[i]["lr"].as_f64().unwrap();
        let best = (0..i).map(accuracy).fold(f64::MIN, f64::max);
        let halved = (rate(i + 1) / rate(i) - 0.5).abs() < 1e-9;
        assert_eq!(halved, accuracy(i) <= best * 1.0001, "after epoch {}", i + 1);
    }
    let before = saved(&output, "model");
    succeeds(&[&args[..], &["--resume"]].concat());
    assert_eq!(records(&output, "epoch").len(), epochs.len());
    assert_eq!(saved(&output, "model"), before);
}

#[test]
fn early_stopping_comes_patience_epochs_after_the_last_gain_of_min_delta() {
    let home = tempfile::tempdir().unwrap();
    let line = "line: {slope: 3, intercept: 1, noise: 0.1, low: -1, high: 1";
    let config = format!(
        "device: cpu
model: {{name: linear, args: {{features: 1, outputs: 1}}}}
task: regression
data: {{train: {{{line}, count: 40}}}}, validation: {{{line}, count: 20, seed: 2}}}}, batch_size: 16}}
optimizer: {{sgd: {{lr: 0.004}}}}
train: {{epochs: 40, early_stopping: {{patience: 3, min_delta: 0.5}}, checkpoint: {{every_epochs: 100}}}}
"
    );
    let config = write_config(home.path(), &config);
    let losses = |name: &str, lr: &str| -> Vec<f64> {
        let output = home.path().join(name);
        succeeds(&["train", &config, "--set", lr, "--output", output.to_str().unwrap()]);
        let epochs = records(&output, "epoch");
        let last = fs::read_link(output.join("checkpoints/last")).unwrap();
        assert_eq!(last.to_str().unwrap(), format!("epoch-{:04}", epochs.len()), "the end is saved");
        let of = |epoch: &Value, name: &str| epoch["validation"][name].as_f64().unwrap();
        // The last batch of the set has 4 of its 20 samples and counts no more than that.
        assert!(epochs.iter().all(|epoch| (of(epoch, "loss") / of(epoch, "mse") - 1.0).abs() < 1e-5));
        epochs.iter().map(|epoch| of(epoch, "mse")).collect()
    };
    assert_eq!(losses("resting", "optimizer.sgd.lr=0").len(), 4);
    let slow = losses("slow", "optimizer.sgd.lr=0.004");
    let (mut gain, mut stop) = ((f64::INFINITY, 0), None);
    for (at, loss) in slow.iter().enumerate() {
        if *loss < gain.0 - 0.5 {
            gain = (*loss, at);
        }
        stop = stop.or((at - gain.1 == 3).then_some(at + 1));
    }
    assert!(slow.is_sorted_by(|a, b| a > b), "each epoch is better than the one before: {slow:?}");
    assert_eq!(stop, Some(slow.len()), "{slow:?}");
    assert!(slow.len() > 4 && slow.len() < 40, "{slow:?}");
}

#[test]
fn a_resume_within_an_epoch_tells_the_loss_of_the_whole_epoch() {
    let home = tempfile::tempdir().unwrap();
    let config = "device: cpu
threads: 1
model: {name: linear, args: {features: 1, outputs: 1}}
task: regression
data: {train: {line: {slope: 3, intercept: 1, noise: 0.1, low: -1, high: 1, count: 40}}, batch_size: 6}
optimizer: {sgd: {lr: 0.01}}
train: {epochs: 2, checkpoint: {every_steps: 3, keep: 100}}
";
    let config = write_config(home.path(), config);
    let output = home.path().join("run");
    let args = ["train", &config, "--output", output.to_str().unwrap()];
    succeeds(&args);
    let losses = || -> Vec<f64> {
        records(&output, "epoch").iter().map(|epoch| epoch["loss"].as_f64().unwrap()).collect()
    };
    let whole = losses();
    let checkpoints = output.join("checkpoints");
    let mut names: Vec<_> =
        fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let steps = ["step-00000003", "step-00000006", "step-00000009", "step-00000012"];
    assert_eq!(names, [&["epoch-0001", "epoch-0002", "last"][..], &steps].concat());
    // As a process leaves it that dies after the third of the seven steps of an epoch.
    for entry in fs::read_dir(&checkpoints).unwrap().map(Result::unwrap) {
        match entry.file_name().to_str().unwrap() {
            "step-00000003" => {}
            "last" => fs::remove_file(entry.path()).unwrap(),
            _ => fs::remove_dir_all(entry.path()).unwrap(),
        }
    }
    std::os::unix::fs::symlink("step-00000003", checkpoints.join("last")).unwrap();
    succeeds(&[&args[..], &["--resume"]].concat());
    assert_eq!(losses(), whole);
}

#[test]
fn parts_of_epochs_are_rounded_to_the_nearest_step_in_ramps_and_warm_ups() {
    let home = tempfile::tempdir().unwrap();
    // Five steps an epoch: 0.3 epochs are 1.5 steps, and so two.
    let config = "device: cpu
model: {name: linear, args: {features: 1, outputs: 1}}
task: regression
data: {train: {line: {slope: 3, intercept: 1, noise: 0.1, low: -1, high: 1, count: 40}}, batch_size: 8}
penalty: {l2: {start: 0, end: 1, epochs: 0.3}}
optimizer: {sgd: {lr: 0.1}}
schedule: {warmup: {epochs: 0.3, start_factor: 0.5}}
train: {epochs: 1, log_every: 1}
";
    let config = write_config(home.path(), config);
    let output = home.path().join("run");
    succeeds(&["train", &config, "--output", output.to_str().unwrap()]);
    let steps = records(&output, "step");
    // A λ of 0 is left out.
    let numbers = |pointer: &str| -> Vec<f64> {
        steps.iter().map(|step| step.pointer(pointer).map_or(0.0, |n| n.as_f64().unwrap())).collect()
    };
    assert_eq!(numbers("/lambda/weights/l2"), [0.0, 0.5, 1.0, 1.0, 1.0]);
    let rates = [0.05, 0.075, 0.1, 0.1, 0.1];
    let lr = numbers("/lr");
    assert!(lr.iter().zip(rates).all(|(lr, wanted)| (lr - wanted).abs() < 1e-12), "{lr:?}");
}

#[test]
fn a_last_group_of_fewer_batches_is_a_step_and_evaluation_keeps_to_its_epochs() {
    let home = tempfile::tempdir().unwrap();
    // Five batches in groups of two: three steps an epoch, twelve in all.
    let line = "line: {slope: 3, intercept: 1, noise: 0.1, low: -1, high: 1";
    let config = format!(
        "device: cpu
model: {{name: linear, args: {{features: 1, outputs: 1}}}}
task: regression
data: {{train: {{{line}, count: 40}}}}, validation: {{{line}, count: 10, seed: 2}}}}, batch_size: 8}}
optimizer: {{sgd: {{lr: 0.1}}}}
schedule: cosine
train: {{epochs: 4, accumulate: 2, log_every: 1, eval_every: 3}}
"
    );
    let config = write_config(home.path(), &config);
    let output = home.path().join("run");
    succeeds(&["train", &config, "--output", output.to_str().unwrap()]);
    let rate = |step: f64| 0.05 * (1.0 + (std::f64::consts::PI * step / 12.0).cos());
    let steps = records(&output, "step");
    assert_eq!(steps.len(), 12);
    for (at, step) in steps.iter().enumerate() {
        assert!((step["lr"].as_f64().unwrap() - rate(at as f64)).abs() < 1e-12, "step {at}: {step}");
    }
    let epochs = records(&output, "epoch");
    let judged: Vec<bool> = epochs.iter().map(|epoch| epoch["validation"].is_object()).collect();
    assert_eq!(judged, [false, false, true, true]);
    // An epoch is of its last step, not of the one to come.
    for (at, epoch) in epochs.iter().enumerate() {
        assert!((epoch["lr"].as_f64().unwrap() - rate(3.0 * at as f64 + 2.0)).abs() < 1e-12, "{epoch}");
    }
}

#[test]
fn accumulated_gradients_equal_the_large_batch_for_every_loss() {
    let home = tempfile::tempdir().unwrap();
    // No batch norm: its statistics are the small batch's by definition. The losses of masks are judged in
    // `masks`.
    let dense = "{input: [1, 16, 16], layers: [flatten, {linear: {out_features: 16}}, tanh, {linear: {out_features: 10}}]}";
    let conv = "{input: [1, 16, 16], layers: {a: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}, _t: tanh, \
                b: {conv2d: {out_channels: 1, kernel_size: 3, padding: 1}}}}";
    let parts = "{input: [1, 16, 16], layers: {encoder: {sequential: {a: {conv2d: {out_channels: 3, kernel_size: 2, stride: 2}}}}, \
                 decoder: {sequential: {a: {conv_transpose2d: {out_channels: 1, kernel_size: 2, stride: 2}}}}}}";
    let reconstruct = |loss: &str| {
        format!("{{reconstruction: {{degrade: {{super_resolution: {{scale: 1}}}}, loss: {loss}}}}}")
    };
    let mut tasks = vec![
        (dense, "classification".to_owned()),
        (dense, "{classification: {label_smoothing: 0.1}}".to_owned()),
        (parts, "{compression: {rate: 0}}".to_owned()),
    ];
    for loss in ["mse", "half_mse", "mae", "{huber: {delta: 0.1}}", "{charbonnier: {}}", "{ssim: {}}"] {
        tasks.push((conv, reconstruct(loss)));
    }
    for (index, (model, task)) in tasks.iter().enumerate() {
        let text = format!(
            "device: cpu\ndtype: float64\nthreads: 1\nmodel: {model}\ntask: {task}\n\
             data: {{train: {{shapes: {{count: 165, size: 16}}}}, batch_size: 64, normalize: none}}\n\
             penalty: {{l2: 1.0e-3}}\noptimizer: {{adam: {{lr: 0.01}}}}\ntrain: {{epochs: 2}}\n"
        );
        let text = text.replace("degrade: {super_resolution: {scale: 1}}", "degrade: none");
        let config = write_config(home.path(), &text);
        let [large, small] = ["large", "small"].map(|name| home.path().join(format!("{name}{index}")));
        succeeds(&["train", &config, "--output", large.to_str().unwrap()]);
        let sets = ["--set", "data.batch_size=16", "--set", "train.accumulate=4"];
        succeeds(&[&["train", &config, "--output", small.to_str().unwrap()][..], &sets[..]].concat());
        let difference = python(&format!(
            "
from safetensors.numpy import load_file
import numpy as np
a, b = (load_file(f'{{run}}/checkpoints/last/model.safetensors') for run in ({large:?}, {small:?}))
print(max(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k]) for k in a))
"
        ));
        let difference: f64 = difference.trim().parse().unwrap();
        assert!(difference < 1e-10, "{task}: {difference}");
    }
}

#[test]
fn every_step_draws_a_dropout_of_its_own_that_the_seed_decides() {
    let home = tempfile::tempdir().unwrap();
    let rows = ["1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,0"; 6].join("\n");
    let names: String = (0..16).map(|column| format!("x{column},")).collect();
    fs::write(home.path().join("table.csv"), format!("{names}y\n{rows}\n")).unwrap();
    // All samples are alike and no weight moves: only what is dropped makes the loss of a step.
    let config = format!(
        "
device: cpu
threads: 1
model: {{input: [16], layers: [{{dropout: {{p: 0.5}}}}, {{linear: {{out_features: 1}}}}]}}
task: regression
data: {{train: {{csv: {{file: {}/table.csv, target: y}}}}, batch_size: 1, normalize: none}}
optimizer: {{sgd: {{lr: 0}}}}
train: {{epochs: 2, log_every: 1}}
",
        home.path().display()
    );
    let config = write_config(home.path(), &config);
    let losses = |name: &str, seed: &str| -> Vec<f64> {
        let output = home.path().join(name);
        succeeds(&["train", &config, "--set", seed, "--output", output.to_str().unwrap()]);
        records(&output, "step").iter().map(|step| step["loss"].as_f64().unwrap()).collect()
    };
    let once = losses("once", "seed=1");
    let mut distinct = once.clone();
    distinct.sort_by(f64::total_cmp);
    distinct.dedup();
    assert_eq!((once.len(), distinct.len()), (12, 12), "{once:?}");
    assert_eq!(losses("again", "seed=1"), once);
}

#[test]
fn ridge_and_lasso_on_a_table_reach_their_solutions_and_predict_from_them() {
    let home = tempfile::tempdir().unwrap();
    let table = home.path().join("table.csv");
    let printed = python(&format!(
        "
import numpy as np, json
from sklearn.linear_model import Lasso
rng = np.random.default_rng(0)
x = rng.normal(size=(200, 4)); y = x @ [2, 0, -1, 0] + 3 + rng.normal(size=200)
np.savetxt({table:?}, np.c_[x, y], delimiter=',', header='a,b,c,d,y', comments='', fmt='%.17g')
xc, yc = x - x.mean(0), y - y.mean()
ridge = np.linalg.solve(xc.T @ xc / 200 + 0.3 * np.eye(4), xc.T @ yc / 200)
lasso = Lasso(alpha=0.3, tol=1e-14, max_iter=100000).fit(x, y)
print(json.dumps([[*ridge, y.mean() - x.mean(0) @ ridge], [*lasso.coef_, lasso.intercept_]]))
"
    ));
    let solutions: [Vec<f64>; 2] = serde_json::from_str(&printed).unwrap();
    let text = format!(
        "
device: cpu
dtype: float64
model: {{name: linear, args: {{features: 4}}}}
task: {{regression: {{loss: half_mse}}}}
data: {{train: {{csv: {{file: {table:?}, target: y}}}}, batch_size: 200, normalize: none}}
optimizer: {{sgd: {{lr: 0.5}}}}
train: {{epochs: 400, eval_every: 400, log_every: 400, checkpoint: {{every_epochs: 400}}}}
"
    );
    let config = write_config(home.path(), &text);
    for (penalty, solution) in ["{l2: 0.3}", "{l1: 0.3}"].into_iter().zip(solutions) {
        let output = home.path().join(&penalty[1..3]);
        let set = format!("penalty={penalty}");
        succeeds(&["train", &config, "--set", &set, "--output", output.to_str().unwrap()]);
        let file = output.join("checkpoints/last/model.safetensors");
        let found = python(&format!(
            "
from safetensors.numpy import load_file
w = load_file({file:?}); print([*w['linear.weight'].ravel().tolist(), *w['linear.bias'].tolist()])"
        ));
        let found: Vec<f64> = serde_json::from_str(&found).unwrap();
        for (found, solution) in found.iter().zip(&solution) {
            assert!((found - solution).abs() < 1e-6, "{penalty}: {found} against {solution}");
            assert_eq!(*found == 0.0, *solution == 0.0, "{penalty}: the same exact zeros");
        }
        // The table's first row, by hand.
        let text = fs::read_to_string(&table).unwrap();
        let row: Vec<f64> =
            text.lines().nth(1).unwrap().split(',').map(|cell| cell.parse().unwrap()).collect();
        let by_hand = row[..4].iter().zip(&found).map(|(x, w)| x * w).sum::<f64>() + found[4];
        let stdout =
            succeeds(&["predict", output.to_str().unwrap(), table.to_str().unwrap(), "--format", "json"]);
        let first: Value = serde_json::from_str(stdout.lines().next().unwrap()).unwrap();
        assert!((first["y0"].as_f64().unwrap() - by_hand).abs() < 1e-12, "{first} against {by_hand}");
        assert_eq!(stdout.lines().count(), 200);
    }
}

#[test]
fn every_log_line_tells_loss_penalty_and_weights_apart() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    succeeds(&[
        "train",
        &config,
        "--output",
        output.to_str().unwrap(),
        "--set",
        "train.log_every=1",
        "--set",
        "penalty={l1: 0.3, l2: 0.02}",
    ]);
    for record in records(&output, "step") {
        let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key} in {record}"));
        assert!((number("loss") + number("penalty") - number("total")).abs() < 1e-12);
        assert!(number("grad_norm") > 0.0 && number("images_per_s") > 0.0 && number("lr") > 0.0);
        assert_eq!(record["lambda"], json!({"weights": {"l2": 0.02, "l1": 0.3}}));
    }
    let last = records(&output, "epoch").pop().unwrap();
    let computed = python(&format!(
        "
from safetensors.numpy import load_file
import numpy as np, json
ws = load_file(r'{}/checkpoints/last/model.safetensors')
ws = [w.astype('float64') for name, w in ws.items() if name.endswith('weight') and w.ndim > 1]
l1, squares = sum(abs(w).sum() for w in ws), sum((w ** 2).sum() for w in ws)
zeros = sum((w == 0).sum() for w in ws) / sum(w.size for w in ws)
each = {{f'layers.{{name}}.{{key}}': float(value)
        for name, w in load_file(r'{}/checkpoints/last/model.safetensors').items() if name.endswith('weight') and w.ndim > 1
        for key, value in [('norm', np.linalg.norm(w.astype('float64'))), ('zeros', np.mean(w == 0))]}}
print(json.dumps({{'penalty': 0.3 * l1 + 0.01 * squares, 'weight_norm': squares ** 0.5, 'zeros': zeros, **each}}))
",
        output.display(),
        output.display()
    ));
    let computed: serde_json::Map<String, Value> = serde_json::from_str(&computed).unwrap();
    assert_eq!(
        last["layers"].as_object().unwrap().len() * 2 + 3,
        computed.len(),
        "{last} against {computed:?}"
    );
    for (key, expected) in computed {
        let logged = match key.strip_prefix("layers.").and_then(|key| key.rsplit_once('.')) {
            Some((layer, key)) => &last["layers"][layer][key],
            None => &last[&key],
        };
        let (logged, expected) = (logged.as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((logged - expected).abs() <= 1e-5 * expected.abs(), "{key}: {logged} against {expected}");
    }
    assert!(last["zeros"].as_f64().unwrap() > 0.0, "a proximal L1 penalty makes exact zeros");
    let table = fs::read_to_string(output.join("metrics.csv")).unwrap();
    assert_eq!(table.lines().count(), 4, "a header and three epochs:\n{table}");
    let head = table.lines().next().unwrap();
    assert!(head.contains(",lambda.weights.l2,lambda.weights.l1,") && !head.contains("layers"), "{head}");

    let read = |name: &str| -> Value { read_json(output.join(name)) };
    let (result, confusion) = (read("result.json"), read("confusion.json"));
    let counts: Vec<Vec<f64>> =
        serde_json::from_value(confusion["last"]["validation"]["confusion"].clone()).unwrap();
    let hits: f64 = (0..10).map(|class| counts[class][class]).sum();
    assert_eq!(counts.concat().iter().sum::<f64>(), 300.0);
    assert_eq!(Some(hits / 300.0), result["last"]["validation"]["accuracy"].as_f64());
    assert_eq!(confusion["classes"].as_array().unwrap().len(), 10);
}

#[test]
fn a_run_whose_records_are_those_of_an_earlier_version_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    let folder = output.to_str().unwrap();
    succeeds(&["train", &config, "--output", folder, "--set", "train.epochs=1"]);
    let mut old: Vec<Value> = [records(&output, "step"), records(&output, "epoch")].concat();
    for record in &mut old {
        let record = record.as_object_mut().unwrap();
        record.remove("lambda").unwrap();
        record.remove("layers");
    }
    fs::write(output.join("metrics.jsonl"), old.iter().map(|one| format!("{one}\n")).collect::<String>())
        .unwrap();
    succeeds(&["train", &config, "--output", folder, "--resume"]);
    assert_eq!(records(&output, "epoch").len(), 3);
    assert_eq!(fs::read_to_string(output.join("metrics.csv")).unwrap().lines().count(), 4);
}

#[test]
fn eval_gives_the_scores_that_training_ended_with() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    let test = "data.test={shapes: {count: 300, size: 28}}";
    succeeds(&["train", &config, "--output", output.to_str().unwrap(), "--set", test]);
    let result: Value = read_json(output.join("result.json"));
    for name in ["last", "best"] {
        let stdout =
            succeeds(&["eval", output.to_str().unwrap(), "--json", "--device", "cpu", "--checkpoint", name]);
        let scores: Value = serde_json::from_str(&stdout).unwrap();
        // It reports others beside them.
        for (score, value) in result[name]["test"].as_object().unwrap() {
            assert_eq!(&scores["scores"][score], value, "{name}: {score}");
        }
        let confusion = scores["report"]["confusion"].as_array().unwrap();
        let counted: i64 =
            confusion.iter().flat_map(|row| row.as_array().unwrap()).map(|n| n.as_i64().unwrap()).sum();
        assert_eq!(counted, 300);
    }
}

#[test]
fn a_loss_that_explodes_is_exit_5_and_the_last_checkpoint_is_from_before() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let output = home.path().join("run");
    let (code, _, stderr) = run(&[
        "train",
        &config,
        "--output",
        output.to_str().unwrap(),
        "--set",
        "optimizer={sgd: {lr: 1.0e30}}",
        "--set",
        "train.clip=null",
    ]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("NaN or infinite"), "{stderr}");
    if let Ok(found) = fs::read_dir(output.join("checkpoints")) {
        for entry in found {
            let model = entry.unwrap().path().join("model.safetensors");
            let finite = python(&format!(
                "
from safetensors.numpy import load_file
import numpy as np
print(all(np.isfinite(w).all() for w in load_file({model:?}).values()))"
            ));
            assert_eq!(finite.trim(), "True");
        }
    }
}
