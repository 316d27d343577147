//! Autocast against torch.autocast in Python, and pictures that a run takes of its own work.

use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::common::{python, read_json, records, run, saved, succeeds};

/// The data loss of each step of a run that logs every one.
fn losses(run: &Path) -> Vec<f64> {
    records(run, "step").iter().map(|record| record["loss"].as_f64().unwrap()).collect()
}

/// How thirty steps of ours under `amp` and of Python's under `dtype` go.
fn thirty_steps(amp: &str, dtype: &str) {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().to_str().unwrap();
    // One batch is all the data: its order changes nothing but the last bits.
    let python = |amp: &str, scaled: bool| -> Vec<f64> {
        let scaled = if scaled { "True" } else { "False" };
        let printed = python(&format!(
            "import numpy as np, torch, contextlib
from torch import nn
torch.manual_seed(3)
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(8 * 144, 4))
rng = np.random.default_rng(0)
x = rng.standard_normal((24, 3, 12, 12)).astype('float32'); y = rng.integers(0, 4, 24)
np.save('{at}/xs.npy', x); np.save('{at}/ys.npy', y.astype('int64'))
x, y = torch.tensor(x), torch.tensor(y)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
scaler = torch.amp.GradScaler('cpu', enabled={scaled})
for _ in range(30):
    with {amp}:
        loss = nn.functional.cross_entropy(net(x), y)
    optimizer.zero_grad(); scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()
    print(loss.item())"
        ));
        printed.lines().map(|line| line.parse().unwrap()).collect()
    };
    let theirs = python(&format!("torch.autocast('cpu', torch.{dtype})"), amp == "fp16");
    let full = python("contextlib.nullcontext()", false);

    let config = home.path().join("c.yaml");
    let text = format!(
        "seed: 3\nthreads: 1
model:
  input: [3, 12, 12]
  layers:
    - conv2d: {{out_channels: 8, kernel_size: 3, padding: 1}}
    - batch_norm2d
    - relu
    - conv2d: {{out_channels: 8, kernel_size: 3, padding: 1}}
    - relu
    - flatten
    - linear: {{out_features: 4}}
task: classification
data: {{train: {{npy: {{xs: {at}/xs.npy, ys: {at}/ys.npy}}}}, batch_size: 24, normalize: none}}
optimizer: {{sgd: {{lr: 0.05, momentum: 0.9}}}}
train: {{epochs: 30, log_every: 1, amp: {amp}}}
"
    );
    std::fs::write(&config, text).unwrap();
    let ours = home.path().join("run");
    succeeds(&["train", config.to_str().unwrap(), "--device", "cpu", "--output", ours.to_str().unwrap()]);
    let ours = losses(&ours);
    assert_eq!(ours.len(), 30);
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let (near, shortened) = (apart(&ours, &theirs), apart(&theirs, &full));
    eprintln!("{amp}, ours and theirs: {near:.2e} apart; {amp} and float32: {shortened:.2e}");
    // The first loss is of equal weights: what is shortened is the same.
    assert!((ours[0] - theirs[0]).abs() < 1e-6, "{} {}", ours[0], theirs[0]);
    assert!((ours[0] - full[0]).abs() > 1e-6, "nothing was shortened: {} {}", ours[0], full[0]);
    assert!(near < 0.02, "{near}");
    // The weights that are kept are float32.
    let (code, stdout, stderr) = run(&["inspect", &format!("{at}/run/checkpoints/last/model.safetensors")]);
    assert!(code == 0 && stdout.contains("float32") && !stdout.contains(dtype), "{stdout}{stderr}");
}

#[test]
fn thirty_steps_under_bf16_lose_what_they_lose_under_torch_autocast() {
    thirty_steps("bf16", "bfloat16");
}

#[test]
fn thirty_steps_under_fp16_lose_what_they_lose_under_torch_autocast_with_gradscaler() {
    thirty_steps("fp16", "float16");
}

/// A regression whose first gradients, times 65536, are more than float16 holds.
fn steep(home: &Path, input: f64) -> String {
    let at = home.to_str().unwrap();
    let xs = (Tensor::arange(64 * 6, (Kind::Float, Device::Cpu)).sin() * input).view([64, 6]);
    let ys = Tensor::arange(64, (Kind::Float, Device::Cpu)).cos().view([64, 1]);
    xs.write_npy(home.join("xs.npy")).unwrap();
    ys.write_npy(home.join("ys.npy")).unwrap();
    format!(
        "seed: 1\nthreads: 1
model: {{input: [6], layers: [{{linear: {{out_features: 8}}}}, relu, {{dropout: {{p: 0.1}}}}, {{linear: {{out_features: 1}}}}]}}
task: regression
data: {{train: {{npy: {{xs: {at}/xs.npy, ys: {at}/ys.npy}}}}, batch_size: 16, normalize: none}}
penalty: {{l2: {{start: 1.0e-4, end: 1.0e-2, epochs: 3, curve: linear}}, l1: 1.0e-5}}
optimizer: {{sgd: {{lr: 1.0e-4, momentum: 0.9}}}}
schedule: {{exponential: {{gamma: 0.9}}}}
train: {{epochs: 6, log_every: 1, amp: fp16, clip: {{norm: 1.0}}, ema: {{decay: 0.9, warmup: true}}}}
"
    )
}

#[test]
fn steps_that_overflow_are_skipped_and_a_resume_goes_on_with_the_scale_bit_for_bit() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("c.yaml");
    std::fs::write(&config, steep(home.path(), 40.0)).unwrap();
    let train = |name: &str, epochs: u32, resume: bool| {
        let (out, epochs) = (home.path().join(name), format!("train.epochs={epochs}"));
        let mut args =
            vec!["train", config.to_str().unwrap(), "--device", "cpu", "--set", &epochs, "--output"];
        args.push(out.to_str().unwrap());
        args.extend(resume.then_some("--resume"));
        let (code, _, stderr) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        (out.clone(), stderr)
    };
    let (whole, stderr) = train("whole", 6, false);
    let logged = records(&whole, "step");
    assert_eq!(logged.len(), 24);
    let skipped: Vec<u64> = logged.iter().map(|step| step["skipped_steps"].as_u64().unwrap()).collect();
    let (first, last) = (skipped[0], skipped[23]);
    eprintln!("{last} of 24 steps were skipped, the scale fell to {}", logged[23]["loss_scale"]);
    assert!(first == 1 && (2..20).contains(&last), "{skipped:?}");
    assert!(stderr.contains(&format!("skipped {last}")), "{stderr}");
    assert_eq!(logged[23]["loss_scale"].as_f64().unwrap(), 65536.0 / (1u64 << last) as f64);
    // Neither schedule, nor λ, nor weights move in a step that is skipped.
    let mut made = 0u64;
    for (at, step) in logged.iter().enumerate() {
        let lr = 1e-4 * 0.9f64.powi((made / 4) as i32);
        assert!((step["lr"].as_f64().unwrap() - lr).abs() < 1e-12, "step {at}: {step}");
        let was_made = at == 0 && skipped[0] == 0 || at > 0 && skipped[at] == skipped[at - 1];
        if let (false, Some(next)) = (was_made, logged.get(at + 1)) {
            assert_eq!(
                (&next["weight_norm"], &next["lambda"]),
                (&step["weight_norm"], &step["lambda"]),
                "step {at}"
            );
        }
        made += u64::from(was_made);
    }
    let (halves, _) = train("halves", 3, false);
    let state = |run: &Path| read_json(run.join("checkpoints/last/state.json"));
    let between = state(&halves);
    assert_eq!(between["skipped"], skipped[11]);
    assert_eq!(between["scaling"]["scale"], logged[11]["loss_scale"]);
    assert!(between["scaling"]["growth_tracker"].as_i64().unwrap() > 0, "{between}");
    train("halves", 6, true);
    for part in ["model", "optimizer", "ema"] {
        assert_eq!(saved(&halves, part), saved(&whole, part), "{part}");
    }
    assert_eq!(state(&halves)["scaling"], state(&whole)["scaling"]);
}

#[test]
fn a_scale_that_falls_to_nothing_ends_the_run_with_5_and_a_remedy() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("c.yaml");
    std::fs::write(&config, steep(home.path(), 1e30)).unwrap();
    let out = home.path().join("run");
    let args = ["train", config.to_str().unwrap(), "--device", "cpu", "--set", "train.epochs=20", "--output"];
    let (code, _, stderr) = run(&[&args[..], &[out.to_str().unwrap()]].concat());
    assert!(
        code == 5 && stderr.contains("the loss scale fell to nothing") && stderr.contains("bf16"),
        "{code} {stderr}"
    );
    // 2¹⁶ to below 2⁻²⁴ in 41 halvings.
    assert_eq!(records(&out, "step").len(), 40);
}

#[test]
fn what_only_a_gpu_minds_changes_nothing_on_the_cpu() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("c.yaml");
    std::fs::write(&config, steep(home.path(), 1.0)).unwrap();
    let train = |name: &str, sets: &[&str]| {
        let out = home.path().join(name);
        let mut args = vec!["train", config.to_str().unwrap(), "--device", "cpu", "--output"];
        args.push(out.to_str().unwrap());
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        succeeds(&args);
        saved(&out, "model")
    };
    let plain = train("plain", &[]);
    assert_eq!(train("short", &["train.tf32=true", "train.cudnn_benchmark=false"]), plain);
    assert_eq!(train("long", &["train.tf32=false", "train.cudnn_benchmark=true"]), plain);
    assert_eq!(train("graph", &["train.cuda_graph=auto"]), plain);
    assert_eq!(train("told", &["train.cuda_graph=true"]), plain);
    let log = |name: &str| std::fs::read_to_string(home.path().join(name).join("log.txt")).unwrap();
    assert!(
        log("told").contains("no CUDA graph: the run is on the CPU") && !log("graph").contains("CUDA graph")
    );
    let args = ["train", config.to_str().unwrap(), "--set", "train.cuda_graph=maybe", "--dry-run"];
    let (code, _, stderr) = run(&args);
    assert!(
        code == 2 && stderr.contains("train.cuda_graph") && stderr.contains("auto, true or false"),
        "{stderr}"
    );
    let (code, _, stderr) =
        run(&["train", config.to_str().unwrap(), "--set", "train.tf32=maybe", "--dry-run"]);
    assert!(code == 2 && stderr.contains("train.tf32"), "{code} {stderr}");
}

#[test]
fn a_run_takes_pictures_of_its_work_and_eval_tells_the_score_of_each_image() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("photographs");
    std::fs::create_dir(&folder).unwrap();
    tch::manual_seed(1);
    for (name, side) in [("a", 200), ("b", 230), ("c", 210)] {
        let smooth = Tensor::rand([1, 1, 5, 5], (Kind::Float, Device::Cpu)).upsample_bilinear2d(
            [side, 200],
            true,
            None,
            None,
        );
        let bytes: Vec<u8> =
            Vec::<f32>::try_from((smooth * 255.0).view([-1])).unwrap().iter().map(|&v| v as u8).collect();
        image::GrayImage::from_raw(200, side as u32, bytes)
            .unwrap()
            .save(folder.join(format!("{name}.png")))
            .unwrap();
    }
    let config = home.path().join("c.yaml");
    let at = folder.to_str().unwrap();
    let text = format!(
        "threads: 1\nmodel: {{name: dncnn, args: {{size: 32, depth: 3, width: 4}}}}
task: {{reconstruction: {{degrade: {{gaussian: {{sigma: 25}}}}, residual: true}}}}
data:
  train: {{images: {{root: {at}, mode: grey, patch: 32, per_image: 8}}}}
  validation: {{images: {{root: {at}, mode: grey}}}}
  batch_size: 8
  normalize: none
optimizer: {{adam: {{lr: 1.0e-3}}}}
train: {{epochs: 2, pictures: 2}}
"
    );
    std::fs::write(&config, text).unwrap();
    let out = home.path().join("run");
    let run_dir = out.to_str().unwrap();
    succeeds(&["train", config.to_str().unwrap(), "--device", "cpu", "--output", run_dir]);
    let mut names: Vec<_> = std::fs::read_dir(out.join("pictures"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let of_epochs = ["epoch-0001-1.png", "epoch-0001-2.png", "epoch-0002-1.png", "epoch-0002-2.png"];
    assert_eq!(names, [&of_epochs[..], &["filters.png"]].concat());
    // Given, restored, target: the third panel is the photograph itself.
    let strip = image::open(out.join("pictures/epoch-0002-1.png")).unwrap().to_luma8();
    let photograph = image::open(folder.join("a.png")).unwrap().to_luma8();
    assert_eq!(strip.dimensions(), (3 * 200 + 4 * 2, 200 + 12 + 2 * 2));
    let third = image::imageops::crop_imm(&strip, 2 * 202 + 2, 14, 200, 200).to_image();
    assert_eq!(third, photograph);
    let first = image::imageops::crop_imm(&strip, 2, 14, 200, 200).to_image();
    assert_ne!(first, photograph);
    // Something is written above it.
    assert!(image::imageops::crop_imm(&strip, 2, 2, 200, 8).to_image().pixels().any(|pixel| pixel[0] == 255));

    let album = home.path().join("album");
    let args =
        ["eval", run_dir, "--split", "validation", "--each", "--json", "--pictures", album.to_str().unwrap()];
    let stdout = succeeds(&args);
    let told: Value = serde_json::from_str(&stdout).unwrap();
    let each = told["each"].as_array().unwrap();
    let names: Vec<_> = each.iter().map(|row| row["image"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.png", "b.png", "c.png"]);
    for metric in ["psnr", "ssim", "psnr_degraded"] {
        let mean = each.iter().map(|row| row[metric].as_f64().unwrap()).sum::<f64>() / 3.0;
        assert!((mean - told["scores"][metric].as_f64().unwrap()).abs() < 1e-12, "{metric}");
    }
    assert_eq!(std::fs::read_dir(album).unwrap().count(), 3);
}
