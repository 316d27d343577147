//! What a GPU is asked for, on the pretend one of tests/pretend_cuda/: nothing that makes the host wait in a step, each
//! number that stays the same once, networks of Python's too, and no silent run on the CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::common::{outcome, records, run, succeeds, tikhonov, write_config};
use crate::pretend_cuda::{Outcome, difference, library, pretend};

const CLASSES: &str = "
seed: 1
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 4, width: 2}}
task: classification
data:
  train: {shapes: {count: 80, size: 16, classes: 4}}
  test: {shapes: {count: 20, size: 16, classes: 4}}
  batch_size: 10
penalty: {l2: 1.0e-3}
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 1, log_every: 1000, pictures: 0}
";

const IMAGES: &str = "
seed: 1
threads: 1
model:
  input: [1, 16, 16]
  layers:
    - conv2d: {out_channels: 4, kernel_size: 3, padding: 1}
    - relu
    - conv2d: {out_channels: 1, kernel_size: 3, padding: 1}
task: {reconstruction: {degrade: none}}
data:
  train: {shapes: {count: 80, size: 16}}
  test: {shapes: {count: 20, size: 16}}
  batch_size: 10
  normalize: none
optimizer: {adam: {lr: 0.01}}
train: {epochs: 1, log_every: 1000, pictures: 0}
";

/// Masks of the values 0, 1 and 2 beside pictures, 16 by 16.
fn masks(folder: &Path, count: u32) -> String {
    for kind in ["image", "mask"] {
        fs::create_dir_all(folder.join(kind)).unwrap();
    }
    for at in 0..count {
        let shade = |x: u32, y: u32| (x * 7 + y * 13 + at * 31) % 251;
        let name = format!("{at:03}.png");
        let picture = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([shade(x, y) as u8]));
        picture.save(folder.join("image").join(&name)).unwrap();
        let mask = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([(shade(x, y) % 3) as u8]));
        mask.save(folder.join("mask").join(&name)).unwrap();
    }
    let root = |kind: &str| folder.join(kind).display().to_string();
    format!(
        "{{images: {{root: {:?}, mode: grey, patch: 16, mask: {{root: {:?}, classes: [a, b, c]}}}}}}",
        root("image"),
        root("mask")
    )
}

/// `tikhonov train` of this text on the pretend device.
fn train(library: &Path, home: &Path, text: &str, sets: &[&str]) -> (PathBuf, Outcome) {
    train_with(library, home, text, sets, &[])
}

/// The same with these variables of pretend.cpp.
fn train_with(
    library: &Path,
    home: &Path,
    text: &str,
    sets: &[&str],
    variables: &[(&str, &str)],
) -> (PathBuf, Outcome) {
    let folder = tempfile::tempdir_in(home).unwrap().keep();
    let (config, output) = (write_config(&folder, text), folder.join("run"));
    let mut args = vec!["train", &config, "--output", output.to_str().unwrap()];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    if !sets.iter().any(|set| set.starts_with("device=")) {
        args.extend(["--device", "cuda"]);
    }
    // Dropout and noise as on the CPU.
    let variables = [&[("PRETEND_CUDA_GENERATOR", "cpu")], variables].concat();
    let outcome = pretend(library, &args, &variables);
    assert_eq!(outcome.code, 0, "{args:?}: {}{}", outcome.stdout, outcome.stderr);
    outcome.counts.check(&outcome.stderr);
    assert!(!outcome.stderr.contains("Warning"), "{args:?}: {}", outcome.stderr);
    assert!(
        outcome.counts.operators > 0 || sets.contains(&"device=cpu"),
        "{args:?}: a silent run on the CPU"
    );
    (output, outcome)
}

/// How much more often the host waits for the device with `sets` than with `fewer`, both beside `common`.
fn more_waits(library: &Path, home: &Path, text: &str, common: &[&str], fewer: &str, sets: &str) -> i64 {
    let waits = |own: &str| train(library, home, text, &[common, &[own]].concat()).1.counts.syncs;
    waits(sets) - waits(fewer)
}

#[test]
fn what_stays_the_same_is_copied_to_the_device_once_and_not_in_every_step() {
    let Some(library) = library("what_stays_the_same_is_copied_to_the_device_once") else { return };
    let home = tempfile::tempdir().unwrap();
    let (few, many) = ("data.train.shapes.count=80", "data.train.shapes.count=160");
    let more = |text: &str, sets: &[&str]| more_waits(library, home.path(), text, sets, few, many);
    // Mean and deviation, partners and λ, noise.
    let augment = "data.augment=[{flip: {horizontal: true}}, {crop: {padding: 2}}, {noise: {sigma: 0.1}}, {mixup: {alpha: 0.2}}, cutmix]";
    assert_eq!(more(CLASSES, &[augment]), 0, "{augment}");
    // A running mean of all batches alike.
    let momentum = "model={input: [1, 16, 16], layers: [{conv2d: {out_channels: 4, kernel_size: 3}}, {batch_norm2d: {momentum: null}}, \
                    flatten, {linear: {out_features: 4}}]}";
    assert_eq!(more(CLASSES, &[momentum]), 0, "{momentum}");
    for degrade in ["{blur: {gaussian: {sigma: 1}}}", "{super_resolution: {scale: 2}}", "[gaussian, poisson]"]
    {
        let sets = [&format!("task.reconstruction.degrade={degrade}"), "task.reconstruction.loss={ssim: {}}"];
        assert_eq!(more(IMAGES, &sets), 0, "{degrade}");
    }
}

#[test]
fn an_evaluation_waits_for_the_device_at_its_end_only() {
    let Some(library) = library("an_evaluation_waits_for_the_device_at_its_end_only") else { return };
    let home = tempfile::tempdir().unwrap();
    let (few, many) = ("data.test.shapes.count=20", "data.test.shapes.count=60");
    let more = |text: &str, sets: &[&str]| more_waits(library, home.path(), text, sets, few, many);
    assert_eq!(more(CLASSES, &["model.args.classes=8"]), 0);
    assert_eq!(more(IMAGES, &["task.reconstruction.degrade={super_resolution: {scale: 2}}"]), 0);
}

#[test]
fn losses_with_numbers_of_their_own_are_recorded_and_equal_those_of_the_cpu() {
    let Some(library) = library("losses_with_numbers_of_their_own_are_recorded") else { return };
    let home = tempfile::tempdir().unwrap();
    let data = format!("data.train={}", masks(&home.path().join("data"), 80));
    let segmentation = [
        "task={segmentation: {class_weights: [1, 2, 3]}}",
        "model={input: [1, 16, 16], layers: [{conv2d: {out_channels: 3, kernel_size: 3, padding: 1}}]}",
        "data.test=null",
        &data,
    ];
    for (text, sets) in [(IMAGES, &["task.reconstruction.loss={ssim: {}}"][..]), (CLASSES, &segmentation)] {
        let with = |more: &[&str]| train(library, home.path(), text, &[sets, more].concat());
        let (cpu, _) = with(&["device=cpu", "train.kernels=libtorch"]);
        let (eager, _) = with(&[]);
        let (graph, told) = with(&["train.cuda_graph=true"]);
        assert!(told.counts.replays > 0, "{}", told.stderr);
        // A recorded Adam reads its rate in float32.
        assert!(difference(&graph, &eager) < 1e-6, "{sets:?}: {}", difference(&graph, &eager));
        assert!(difference(&eager, &cpu) < 1e-6, "{sets:?}: {}", difference(&eager, &cpu));
    }
}

/// An autoencoder with a normal code of two numbers.
const CODES: &str = "
seed: 1
threads: 1
model: {name: vae, args: {size: 16, channels: 1, hidden: 8, code: 2}}
task: {generation: {kl_warmup_steps: 12}}
data:
  train: {shapes: {count: 160, size: 16}}
  batch_size: 10
  normalize: none
optimizer: {sgd: {lr: 1.0e-4}}
train: {epochs: 1, log_every: 1, pictures: 0}
";

#[test]
fn steps_of_several_batches_under_a_loss_scale_or_a_warm_up_of_kl_are_recorded() {
    let Some(library) = library("steps_of_several_batches_under_a_loss_scale_are_recorded") else { return };
    let home = tempfile::tempdir().unwrap();
    let data = format!("data.train={}", masks(&home.path().join("data"), 180));
    let counted = [
        "task={segmentation: {dice: 0, class_weights: [1, 2, 3]}}",
        "model={input: [1, 16, 16], layers: [{conv2d: {out_channels: 3, kernel_size: 3, padding: 1}}]}",
        "data.test=null",
        "train.accumulate=2",
        &data,
    ];
    let many = "data.train.shapes.count=240";
    let average = ["train.ema={decay: 0.9}", "train.clip={norm: 0.1}", "penalty={l2: 0.001, l1: 0.001}"];
    let scaled = [&[many, "train.amp=fp16"][..], &average].concat();
    let unskipped =
        [&[many, "train.amp=fp16", "train.accumulate=3", "optimizer={adam: {lr: 0.01}}"][..], &average]
            .concat();
    let runs = [
        (CLASSES, &[many, "train.accumulate=3"][..]),
        (CLASSES, &counted),
        (CLASSES, &scaled),
        (CLASSES, &unskipped),
        (CODES, &[]),
    ];
    for (text, sets) in runs {
        let with = |more: &str| train(library, home.path(), text, &[sets, &[more]].concat());
        let ((eager, _), (graph, told)) = (with("train.cuda_graph=false"), with("train.cuda_graph=true"));
        assert!(told.counts.replays >= 3, "{sets:?}: {:?} {}", told.counts, told.stderr);
        let apart = difference(&graph, &eager);
        assert!(apart < 1e-5, "{sets:?}: {apart}");
        let seen = |run: &Path| -> Vec<_> {
            let steps = records(run, "epoch").into_iter().chain(records(run, "step"));
            steps.map(|step| (step["skipped_steps"].clone(), step["loss_scale"].clone())).collect()
        };
        assert_eq!(seen(&graph), seen(&eager), "{sets:?}");
        let losses = |run: &Path| -> Vec<f64> {
            records(run, "step").iter().map(|step| step["loss"].as_f64().unwrap()).collect()
        };
        for (ours, theirs) in losses(&graph).iter().zip(losses(&eager)) {
            assert!((ours - theirs).abs() <= 1e-5 * theirs.abs(), "{sets:?}: {ours} {theirs}");
        }
    }
}

#[test]
fn images_and_weights_in_channels_last_give_the_same_steps_eager_and_recorded() {
    let Some(library) = library("images_and_weights_in_channels_last_give_the_same_steps") else { return };
    let home = tempfile::tempdir().unwrap();
    let models = [
        (
            "model={name: resnet20, args: {channels: 1, size: 16, classes: 4}}",
            "optimizer={adam: {lr: 1.0e-3}}",
        ),
        (
            "model={name: shufflenet_v2_x0_5, args: {channels: 1, size: 32, classes: 4}}",
            "optimizer={sgd: {lr: 0.01}}",
        ),
    ];
    for (model, optimizer) in models {
        let size = if model.contains("size: 32") { "data.train.shapes.size=32" } else { "seed=1" };
        let sets =
            [model, optimizer, size, "data.test=null", "train.ema={decay: 0.9}", "penalty={l1: 1.0e-4}"];
        // Steps of Adam make much of the last bits.
        let exact = [&sets[..], &["dtype=float64"]].concat();
        let with = |more: &[&str]| train(library, home.path(), CLASSES, &[&exact, more].concat()).0;
        let plain = with(&["train.channels_last=false"]);
        // A recorded step reads its rate in float32.
        for (graph, bound) in [("train.cuda_graph=false", 1e-9), ("train.cuda_graph=true", 1e-5)] {
            let apart = difference(&with(&["train.channels_last=true", graph]), &plain);
            assert!(apart < bound, "{model} {graph}: {apart}");
        }
        // With amp it is the default; files and resuming do not depend on it.
        let half = train(library, home.path(), CLASSES, &[&sets[..], &["train.amp=bf16"]].concat()).0;
        let resumed =
            [&sets[..], &["train.amp=bf16", "train.channels_last=false", "train.epochs=2"]].concat();
        let mut args = vec!["train", "--resume", "--device", "cuda", "--output", half.to_str().unwrap()];
        let config = half.parent().unwrap().join("config-under-test.yaml");
        args.push(config.to_str().unwrap());
        resumed.iter().for_each(|set| args.extend(["--set", set]));
        pretend(library, &args, &[]).checked();
    }
}

#[test]
fn deterministic_runs_are_the_same_and_leave_the_cpu_alone() {
    let Some(library) = library("deterministic_runs_are_the_same_and_leave_the_cpu_alone") else { return };
    let home = tempfile::tempdir().unwrap();
    for device in ["device=cuda", "device=cpu"] {
        let with = |more: &str| train(library, home.path(), CLASSES, &[device, more]).0;
        let (plain, deterministic) = (with("train.epochs=1"), with("train.deterministic=true"));
        assert_eq!(difference(&plain, &deterministic), 0.0, "{device}");
    }
}

#[test]
fn a_second_gpu_records_its_steps_too() {
    let Some(library) = library("a_second_gpu_records_its_steps_too") else { return };
    let home = tempfile::tempdir().unwrap();
    let with = |sets: &[&str]| train(library, home.path(), CLASSES, sets);
    let (first, _) = with(&["device=cuda:0", "train.cuda_graph=true"]);
    let (second, told) = with(&["device=cuda:1", "train.cuda_graph=true"]);
    assert!(told.counts.replays > 0, "{}", told.stderr);
    assert_eq!(difference(&second, &first), 0.0);
}

#[test]
fn a_recording_that_fails_leaves_nothing_behind_and_the_run_goes_on() {
    let Some(library) = library("a_recording_that_fails_leaves_nothing_behind") else { return };
    let home = tempfile::tempdir().unwrap();
    masks(&home.path().join("data"), 120);
    let files = format!(
        "data.train={{images: {{root: {:?}, mode: grey, patch: 16}}}}",
        home.path().join("data/image")
    );
    // From files, whose batches come by a stream of their own.
    let sets = [
        &files,
        "data.test=null",
        "data.memory_gib=0",
        "data.workers=2",
        "task.reconstruction.degrade=gaussian",
    ];
    let with = |graph: &str, variables: &[(&str, &str)]| {
        let sets = [&sets[..], &[graph]].concat();
        train_with(library, home.path(), IMAGES, &sets, variables)
    };
    let (eager, _) = with("train.cuda_graph=false", &[]);
    for failure in ["cudnn@record:3", "memory@record:2"] {
        let (run, told) = with("train.cuda_graph=auto", &[("PRETEND_CUDA_FAIL", failure)]);
        let counts = &told.counts;
        assert_eq!((counts.recordings, counts.replays, counts.failures), (1, 0, 1), "{failure}");
        assert_eq!(
            (counts.open_pools, counts.kept_pools, counts.delayed),
            (0, 0, 0),
            "{failure}: {counts:?}"
        );
        assert!(told.stderr.contains("no CUDA graph: the step cannot be recorded: "), "{}", told.stderr);
        assert!(!told.stderr.contains("Result::unwrap"), "{}", told.stderr);
        assert_eq!(difference(&run, &eager), 0.0, "{failure}");
    }
    // One that goes well has given the memory of its warm-up back first, and its own in the end.
    let (_, told) = with("train.cuda_graph=true", &[]);
    let counts = &told.counts;
    assert!(counts.replays > 0 && counts.empty_caches >= 1, "{counts:?}");
}

#[test]
fn batches_from_files_are_those_of_the_cpu_with_any_workers() {
    let Some(library) = library("batches_from_files_are_those_of_the_cpu") else { return };
    let home = tempfile::tempdir().unwrap();
    masks(&home.path().join("data"), 40);
    let files = format!(
        "data.train={{images: {{root: {:?}, mode: grey, patch: 12}}}}",
        home.path().join("data/image")
    );
    let augment = "data.augment=[dihedral, {crop: {padding: 2}}, {noise: {sigma: 0.1}}]";
    let model = "model.input=[1, 12, 12]";
    let sets = [
        &files,
        augment,
        model,
        "data.test=null",
        "data.memory_gib=0",
        "task.reconstruction.degrade=gaussian",
    ];
    let with = |more: &[&str]| train(library, home.path(), IMAGES, &[&sets, more].concat());
    let (cpu, _) = with(&["device=cpu", "train.kernels=libtorch", "data.workers=0"]);
    for workers in ["data.workers=0", "data.workers=3"] {
        let (there, told) = with(&[workers]);
        assert!(difference(&there, &cpu) < 1e-6, "{workers}: {}", difference(&there, &cpu));
        assert!(told.counts.pinned_allocations > 0, "{:?}", told.counts);
    }
}

/// A network as Python writes it, by way of ours: TorchScript, and an archive of torch.export.
fn programs(home: &Path) -> [(&'static str, String); 2] {
    let at = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let config = write_config(home, CLASSES);
    succeeds(&["train", &config, "--device", "cpu", "--quiet", "--output", &at("start")]);
    succeeds(&["export", &at("start"), "--to", "torchscript", "--output", &at("net.pt")]);
    succeeds(&["export", &at("start"), "--to", "pt2", "--output", &at("net.pt2")]);
    let config = |name: &str, model: serde_json::Value| {
        let path = home.join(name);
        let text = CLASSES.lines().filter(|line| !line.starts_with("model:")).collect::<Vec<_>>().join("\n");
        fs::write(&path, format!("model: {model}\n{text}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    [
        ("torchscript", config("script.yaml", json!({"torchscript": at("net.pt"), "input": [1, 16, 16]}))),
        ("exported", config("exported.yaml", json!({"exported": at("net.pt2")}))),
    ]
}

#[test]
fn networks_of_pythons_run_on_the_device_in_every_command() {
    let Some(library) = library("networks_of_pythons_run_on_the_device_in_every_command") else { return };
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    image::GrayImage::new(16, 16).save(at("picture.png")).unwrap();
    for (language, config) in programs(home.path()) {
        let on_device = |args: &[&str]| {
            let told = pretend(library, args, &[]).checked();
            assert!(!told.stderr.contains("Warning"), "{language} {args:?}: {}", told.stderr);
            told
        };
        let (output, sweep) = (at(&format!("{language}-run")), at(&format!("{language}-sweep")));
        let with = |args: &[&'static str]| [args, &["--device", "cuda"]].concat();
        on_device(
            &[&["train", &config, "--output", &output, "--set", "train.epochs=1"][..], &with(&[])].concat(),
        );
        on_device(
            &[
                &["train", &config, "--output", &output, "--resume", "--set", "train.epochs=2"][..],
                &with(&[]),
            ]
            .concat(),
        );
        on_device(&[&["eval", &output][..], &with(&[])].concat());
        let picture = at("picture.png");
        on_device(&[&["predict", &output, &picture][..], &with(&[])].concat());
        on_device(&[&["bench", &config, "--steps", "2", "--warmup", "1"][..], &with(&[])].concat());
        let over = ["sweep", &config, "--over", "penalty.l2=0,0.001", "--output", &sweep];
        let validation = ["--set", "data.validation={fraction: 0.2}", "--jobs", "1"];
        on_device(&[&over[..], &validation, &with(&[])].concat());
        // With what the config says, and with `auto`, which a driver lets take the device.
        let auto = at(&format!("{language}-auto"));
        let told = on_device(&["train", &config, "--output", &auto, "--device", "auto"]);
        assert!(!told.stderr.contains("takes the CPU"), "{}", told.stderr);
    }
}

#[test]
fn auto_says_why_it_takes_the_cpu_where_a_driver_is_installed() {
    let Some(library) = library("auto_says_why_it_takes_the_cpu") else { return };
    let home = tempfile::tempdir().unwrap();
    let (config, output) = (write_config(home.path(), CLASSES), home.path().join("run"));
    // A driver in which there is nothing.
    fs::create_dir(home.path().join("driver")).unwrap();
    fs::copy(library.join("libcuda.so.1"), home.path().join("driver/libcuda.so.1")).unwrap();
    let mut command = tikhonov();
    command.args(["train", &config, "--device", "auto", "--output", output.to_str().unwrap()]);
    command.env("LD_LIBRARY_PATH", home.path().join("driver"));
    let (code, _, stderr) = outcome(command.output().unwrap());
    assert_eq!(code, 0, "{stderr}");
    let lines = stderr.lines().filter(|line| line.contains("`device: auto` takes the CPU")).count();
    assert!(lines == 1 && stderr.contains("no GPU can be used: "), "{stderr}");
    assert_eq!(records(&output, "epoch").len(), 1);
    // Without a driver there is nothing to tell.
    let (code, _, stderr) = run(&["eval", output.to_str().unwrap(), "--device", "auto"]);
    assert!(code == 0 && !stderr.contains("takes the CPU"), "{stderr}");
}

#[test]
fn the_plugin_for_gpus_loads_where_no_code_runs_from_memory() {
    let Some(library) = library("the_plugin_for_gpus_loads_where_no_code_runs_from_memory") else { return };
    let home = tempfile::tempdir().unwrap();
    // As vm.memfd_noexec=2 has it.
    let source = home.path().join("refuse.cpp");
    fs::write(&source, "#include <cerrno>\nextern \"C\" int memfd_create(const char*, unsigned) { errno = EACCES; return -1; }\n")
        .unwrap();
    let refuse = home.path().join("refuse.so");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(compiler);
    assert!(command.args(["-shared", "-fPIC", "-o"]).arg(&refuse).arg(&source).status().unwrap().success());
    let (config, output) = (write_config(home.path(), CLASSES), home.path().join("run"));
    let args = [
        "train",
        &config,
        "--device",
        "cuda",
        "--set",
        "train.cuda_graph=true",
        "--output",
        output.to_str().unwrap(),
    ];
    let temporary = home.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let variables = [("LD_PRELOAD", refuse.to_str().unwrap()), ("TMPDIR", temporary.to_str().unwrap())];
    let told = pretend(library, &args, &variables);
    assert!(told.code == 0 && told.counts.replays > 0, "{}", told.stderr);
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "nothing is left behind");
}
