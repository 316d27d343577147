//! Autocast against torch.autocast in Python, and pictures that a run takes of its own work.

use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::common::{python, run};

/// The data loss of each step of a run that logs every one.
fn losses(run: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["kind"] == "step").map(|record| record["loss"].as_f64().unwrap()).collect()
}

#[test]
fn thirty_steps_under_bf16_lose_what_they_lose_under_torch_autocast() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().to_str().unwrap();
    // One batch is all the data: its order changes nothing but the last bits.
    let python = |amp: &str| -> Vec<f64> {
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
for _ in range(30):
    with {amp}:
        loss = nn.functional.cross_entropy(net(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    print(loss.item())"
        ));
        printed.lines().map(|line| line.parse().unwrap()).collect()
    };
    let theirs = python("torch.autocast('cpu', torch.bfloat16)");
    let full = python("contextlib.nullcontext()");

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
train: {{epochs: 30, log_every: 1, amp: bf16}}
"
    );
    std::fs::write(&config, text).unwrap();
    let ours = home.path().join("run");
    let (code, _, stderr) =
        run(&["train", config.to_str().unwrap(), "--device", "cpu", "--output", ours.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let ours = losses(&ours);
    assert_eq!(ours.len(), 30);
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let (near, shortened) = (apart(&ours, &theirs), apart(&theirs, &full));
    eprintln!("bf16, ours and theirs: {near:.2e} apart; bf16 and float32: {shortened:.2e}");
    // The first loss is of equal weights: what is shortened is the same.
    assert!((ours[0] - theirs[0]).abs() < 1e-6, "{} {}", ours[0], theirs[0]);
    assert!((ours[0] - full[0]).abs() > 1e-5, "nothing was shortened: {} {}", ours[0], full[0]);
    assert!(near < 0.02, "{near}");
    // The weights that are kept are float32.
    let (code, stdout, stderr) = run(&["inspect", &format!("{at}/run/checkpoints/last/model.safetensors")]);
    assert!(code == 0 && stdout.contains("float32") && !stdout.contains("bfloat16"), "{stdout}{stderr}");
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
    let (code, _, stderr) = run(&["train", config.to_str().unwrap(), "--device", "cpu", "--output", run_dir]);
    assert_eq!(code, 0, "{stderr}");
    let mut names: Vec<_> = std::fs::read_dir(out.join("pictures"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["epoch-0001-1.png", "epoch-0001-2.png", "epoch-0002-1.png", "epoch-0002-2.png"]);
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
    let (code, stdout, stderr) = run(&args);
    assert_eq!(code, 0, "{stderr}");
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
