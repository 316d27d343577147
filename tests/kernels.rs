//! The switch between our own CPU kernels and libtorch's operations.

// Half of it needs them.
#![cfg_attr(not(feature = "kernels"), allow(dead_code, unused_imports))]

use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::functional::loss::cross_entropy;
use tikhonov::libtorch::kernels::{self, Kernel, KernelSpec};
use tikhonov::optim::{Clip, OptimizerSpec};
use tikhonov::penalty::{LambdaValues, PenaltyParam, PenaltySpec};
use tikhonov::schedule::ScheduleStep;

use crate::common::{alone, noise, python, run, saved, succeeds, write_config};
use crate::model::inline;

/// 20 steps that every kernel has a part in.
const CONFIG: &str = "
device: cpu
threads: 2
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 24}}
task: classification
data: {train: {shapes: {count: 320, size: 16}}, batch_size: 32}
penalty: {l2: 0.001}
optimizer: {sgd: {lr: 0.02, momentum: 0.9}}
train: {epochs: 2, clip: {norm: 1.0}}
";

/// Trains; the bytes of the weights, the tensors and the log.
fn train(folder: &Path, name: &str, options: &[&str]) -> (Vec<u8>, Vec<Tensor>, String) {
    let config = write_config(folder, CONFIG);
    let out = folder.join(name);
    let mut arguments = vec!["train", &config, "--quiet", "--output", out.to_str().unwrap()];
    arguments.extend(options);
    succeeds(&arguments);
    let mut tensors = Tensor::read_safetensors(out.join("checkpoints/last/model.safetensors")).unwrap();
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    let log = std::fs::read_to_string(out.join("log.txt")).unwrap_or_default();
    (saved(&out, "model"), tensors.into_iter().map(|(_, tensor)| tensor).collect(), log)
}

#[test]
#[cfg(feature = "kernels")]
fn the_switch_changes_rounding_alone_and_the_log_says_where_it_is() {
    let home = tempfile::tempdir().unwrap();
    let train = |name: &str, options: &[&str]| train(home.path(), name, options);
    let own = train("own", &[]);
    assert!(!own.2.contains("CPU kernels"), "{}", own.2);
    assert_eq!(own.0, train("own again", &["--kernels", "own"]).0, "`own` is the default");
    let libtorch = train("libtorch", &["--kernels", "libtorch"]);
    assert!(libtorch.2.contains("CPU kernels: libtorch's\n"), "{}", libtorch.2);
    assert_ne!(own.0, libtorch.0);
    for (own, libtorch) in own.1.iter().zip(&libtorch.1).filter(|(own, _)| own.dim() > 1) {
        let (own, libtorch) = (own.to_kind(Kind::Double), libtorch.to_kind(Kind::Double));
        let apart = ((&own - &libtorch).norm() / libtorch.norm()).double_value(&[]);
        // Rounding alone is 1e-7. A value at a ReLU's kink may fall on its other side, which is 3e-3 in this run:
        // float64 is as far from float32 by either kernels.
        assert!(apart < 1e-2, "{:?}: {apart:e}", own.size());
    }
    // The config says the same as the option, one kernel at a time too.
    let all =
        Kernel::ALL.iter().map(|kernel| format!("{}: false", kernel.name())).collect::<Vec<_>>().join(", ");
    let each = train("each", &["--set", &format!("train.kernels={{{all}}}")]);
    assert_eq!(libtorch.0, each.0);
    let one = train("one", &["--set", "train.kernels={winograd: false}"]);
    assert!(one.2.contains("CPU kernels: libtorch's for winograd\n"), "{}", one.2);
    assert_eq!(one.0, train("older name", &["--set", "train.winograd=false"]).0);
    assert!(one.0 != own.0 && one.0 != libtorch.0);
}

#[test]
fn a_kernel_that_is_not_there_is_refused_with_the_nearest_one() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), CONFIG);
    let refused = |options: &[&str]| {
        let (code, _, stderr) = run(&[&["train", &config, "--dry-run"], options].concat());
        assert_eq!(code, 2, "{stderr}");
        stderr
    };
    assert!(refused(&["--kernels", "libtroch"]).contains("did you mean `libtorch`?"));
    let wrong = refused(&["--set", "train.kernels.winogard=false"]);
    assert!(wrong.contains("train.kernels.winogard") && wrong.contains("`winograd`"), "{wrong}");
    assert!(refused(&["--set", "train.kernels=libtroch"]).contains("`libtorch`"));
    assert!(refused(&["--set", "train.kernels={winograd: 2}"]).contains("train.kernels.winograd"));
    if kernels::COMPILED {
        let both = refused(&["--kernels", "own", "--set", "train.winograd=false"]);
        assert!(both.contains("contradicts `kernels: own`"), "{both}");
    } else {
        assert!(refused(&["--kernels", "own"]).contains("the cargo feature `kernels`"));
        assert!(refused(&["--set", "train.kernels={linear: true}"]).contains("train.kernels.linear"));
    }
}

const PYTHON: &str = r#"
import numpy as np, torch, torch.nn.functional as F
torch.set_num_threads(1)
load = lambda name: torch.from_numpy(np.load(f"{folder}/{name}.npy"))
ws = [load(f"w{i}").requires_grad_() for i in range(6)]
xs, ys = load("xs"), load("ys")
optimizer = torch.optim.SGD([{"params": ws[0::2], "weight_decay": 0.01}, {"params": ws[1::2]}], lr=0.05, momentum=0.9, fused=True)
for step in range(20):
    i = 16 * (step % 4)
    h = xs[i:i + 16]
    for layer in range(3):
        h = F.linear(h, ws[2 * layer], ws[2 * layer + 1])
        if layer < 2: h = F.relu(h)
    optimizer.zero_grad()
    F.cross_entropy(h, ys[i:i + 16], label_smoothing=0.1).backward()
    torch.nn.utils.clip_grad_norm_(ws, 0.5)
    optimizer.step()
for i, w in enumerate(ws): np.save(f"{folder}/trained{i}.npy", w.detach().numpy())
"#;

#[test]
fn with_libtorchs_kernels_twenty_steps_are_pytorchs_to_the_bit() {
    if !alone("kernels::with_libtorchs_kernels_twenty_steps_are_pytorchs_to_the_bit") {
        return;
    }
    KernelSpec::Libtorch.apply();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(format!("{name}.npy"));
    let layers =
        "[linear: {out_features: 100}, relu, linear: {out_features: 50}, relu, linear: {out_features: 7}]";
    let network = inline(&[80], layers).build(Device::Cpu, Kind::Float).unwrap();
    let params: Vec<(String, Tensor)> =
        network.parameters().iter().map(|param| (param.name.clone(), param.tensor.shallow_clone())).collect();
    for (i, (_, w)) in params.iter().enumerate() {
        w.detach().write_npy(file(&format!("w{i}"))).unwrap();
    }
    let xs = noise(&[64, 80], 0.1).to_kind(Kind::Float);
    let ys = Tensor::arange(64, (Kind::Int64, Device::Cpu)).remainder(7);
    xs.write_npy(file("xs")).unwrap();
    ys.write_npy(file("ys")).unwrap();
    python(&format!("folder = {:?}\n{PYTHON}", folder.path().to_str().unwrap()));

    let penalty: PenaltySpec = serde_json::from_value(json!({"l2": 0.01})).unwrap();
    let targets: Vec<_> =
        params.iter().map(|(name, _)| PenaltyParam { name, is_weight: name.ends_with("weight") }).collect();
    let groups = penalty.assign(&targets).unwrap();
    let optimizer: OptimizerSpec =
        serde_json::from_value(json!({"sgd": {"lr": 0.05, "momentum": 0.9}})).unwrap();
    let shared = params.iter().map(|(name, w)| (name.clone(), w.shallow_clone())).collect();
    let mut optimizer = optimizer.build(shared, &groups).unwrap();
    let clock = ScheduleStep { step: 0, steps_per_epoch: 4, total_steps: 20 };
    let rates: Vec<LambdaValues> = groups.iter().map(|group| group.lambdas(clock)).collect();
    let clip = Clip { value: None, norm: Some(0.5) };
    for step in 0..20 {
        let start = 16 * (step % 4);
        let logits = network.forward(&xs.narrow(0, start, 16), true);
        cross_entropy(&logits, &ys.narrow(0, start, 16), 0.1, None).backward();
        optimizer.step(0.05, &rates, Some(&clip)).unwrap();
    }
    for (i, (name, w)) in params.iter().enumerate() {
        let python = Tensor::read_npy(file(&format!("trained{i}"))).unwrap();
        assert!(w.detach().equal(&python), "{name}");
    }
}

#[test]
#[cfg(feature = "kernels")]
fn doctor_compares_each_kernel_with_libtorchs() {
    let report: Value = serde_json::from_str(&succeeds(&["doctor", "--kernels", "--json"])).unwrap();
    let rows = report["kernels"].as_array().unwrap();
    for kernel in Kernel::ALL.iter().filter(|kernel| **kernel != Kernel::Mkl) {
        assert!(rows.iter().any(|row| row["kernel"] == kernel.name()), "{}", kernel.name());
    }
    for row in rows {
        assert_eq!(row["within_bound"], true, "{row}");
        let [own, libtorch] = ["own", "libtorch"].map(|side| row[side]["error"].as_f64().unwrap());
        assert!(own < 1e-5 && libtorch < 1e-5, "{row}");
        assert!(row["speed"].as_f64().unwrap() > 0.0);
    }
    let table = succeeds(&["doctor", "--kernels"]);
    assert!(table.contains("winograd") && table.contains("errors against float64"), "{table}");
}
