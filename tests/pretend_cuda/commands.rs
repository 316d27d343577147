//! Every command that has `--device`, on the pretend device: on it, without a warning, with the answer of the CPU.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{library, pretend};
use crate::common::{succeeds, tikhonov};

const CLASSES: &str = "
seed: 1
threads: 1
model: {file: NETWORK}
task: classification
data:
  train: {folder: {root: ROOT, size: 16}}
  validation: {folder: {root: ROOT, size: 16}}
  batch_size: 4
penalty: {l2: 1.0e-3}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 1}
";

const NETWORK: &str = "
args: {classes: 2, size: 16}
input: [3, $size, $size]
layers:
  conv: {conv2d: {out_channels: 4, kernel_size: 3, stride: 2}}
  bn: batch_norm2d
  act: relu
  pool: {adaptive_avg_pool2d: {output_size: 1}}
  flat: flatten
  fc: {linear: {out_features: $classes}}
";

const IMAGES: &str = "
seed: 1
threads: 1
model: MODEL
task: TASK
data:
  train: {images: {root: ROOT/dark, mode: grey, patch: 16}}
  batch_size: 4
  normalize: none
optimizer: {adam: {lr: 0.01}}
train: {epochs: 1}
";

/// Pictures of two classes, and a config for each kind of run: (name, file).
fn configs(home: &Path) -> Vec<(&'static str, String)> {
    for (class, shade) in [("bright", 200), ("dark", 40)] {
        fs::create_dir_all(home.join("pictures").join(class)).unwrap();
        for at in 0..8 {
            // One that is misplaced: `calibrate` needs a network that is not always right.
            let shade = if (class, at) == ("dark", 7) { 200 } else { shade };
            let pixel = |x: u32, y: u32| image::Rgb([shade + (x * 3 + at) as u8, shade + y as u8, shade]);
            let file = home.join("pictures").join(class).join(format!("{at}.png"));
            image::RgbImage::from_fn(16, 16, pixel).save(file).unwrap();
        }
    }
    let root = home.join("pictures").display().to_string();
    let network = home.join("net.yaml").display().to_string();
    fs::write(&network, NETWORK).unwrap();
    let parts = "{input: [1, 16, 16], layers: {encoder: {conv2d: {out_channels: 2, kernel_size: 2, stride: 2}}, \
                 decoder: {conv_transpose2d: {out_channels: 1, kernel_size: 2, stride: 2}}}}";
    let denoiser = "{input: [1, 16, 16], layers: [{conv2d: {out_channels: 1, kernel_size: 3, padding: 1}}]}";
    let images = |model: &str, task: &str| IMAGES.replace("MODEL", model).replace("TASK", task);
    [
        ("classes", CLASSES.to_owned()),
        ("denoise", images(denoiser, "{reconstruction: {degrade: {gaussian: {sigma: 25}}}}")),
        ("vae", images("{name: vae, args: {size: 16, hidden: 8, code: 2}}", "generation")),
        ("codes", images(parts, "compression")),
    ]
    .into_iter()
    .map(|(name, text)| {
        let file = home.join(format!("{name}.yaml"));
        fs::write(&file, text.replace("ROOT", &root).replace("NETWORK", &network)).unwrap();
        (name, file.to_str().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn every_command_that_has_a_device_runs_on_it_silently_and_answers_as_on_the_cpu() {
    let Some(library) = library("every_command_that_has_a_device_runs_on_it") else { return };
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    for (name, config) in configs(home.path()) {
        succeeds(&["train", &config, "--quiet", "--device", "cpu", "--output", &at(name)]);
    }
    let picture = at("pictures/dark/0.png");
    succeeds(&["encode", &at("codes"), &picture, "--device", "cpu", "--output", &at("coded")]);
    let coded = fs::read_dir(at("coded")).unwrap().next().unwrap().unwrap().path();
    let coded = coded.to_str().unwrap().to_owned();
    let other = at("other");
    succeeds(&[
        "train",
        &at("classes.yaml"),
        "--quiet",
        "--device",
        "cpu",
        "--seed",
        "2",
        "--output",
        &other,
    ]);
    let listed = succeeds(&["--help"]);
    let listed = listed.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for name in names.filter(|name| *name != "help") {
        let help = succeeds(&[name, "--help"]);
        if !help.contains("--device") {
            continue;
        }
        count += 1;
        let known = COMMANDS.iter().find(|command| command.split(' ').next() == Some(name));
        let command = known.map_or_else(|| from_usage(name, &help), |command| (*command).to_owned());
        let run = |device: &str| {
            let folder = at(&format!("{name}-{device}"));
            fs::create_dir(&folder).unwrap();
            let word = |word: &str| match word {
                "PICTURE" => picture.clone(),
                "PICTURES" => at("pictures"),
                "CODED" => coded.clone(),
                "WEIGHTS" => at("classes/checkpoints/last/model.safetensors"),
                "RUN" => at("classes"),
                "CONFIG" => at("classes.yaml"),
                "OTHER" => other.clone(),
                "NETWORK" => at("net.yaml"),
                "DENOISE" | "VAE" | "CODES" => at(&word.to_lowercase()),
                _ => word.replace("OUT", &format!("{folder}/out")),
            };
            let args: Vec<_> =
                command.split(' ').map(word).chain(["--device".into(), device.into()]).collect();
            let outcome = super::finish(tikhonov().args(&args).current_dir(&folder), library, &[]);
            assert!(!outcome.stderr.contains("arning"), "{args:?}: {}", outcome.stderr);
            assert!(!outcome.stderr.contains("[pretend CUDA]"), "{args:?}: {}", outcome.stderr);
            // A command that only looks at weights has no work for a device.
            let outcome = if device == "cpu" || name == "shrink" { outcome } else { outcome.checked() };
            assert_eq!(outcome.code, 0, "{args:?}: {}", outcome.stderr);
            (outcome.stdout, folder)
        };
        let (cuda, there) = run("cuda");
        let (auto, again) = run("auto");
        match name {
            "eval" | "predict" => {
                assert_eq!(cuda, auto);
                let (cpu, _) = run("cpu");
                assert_eq!(numbers(&cuda), numbers(&cpu), "{command:?}");
            }
            "restore" | "sample" | "interpolate" | "decode" => assert_eq!(pictures(&there), pictures(&again)),
            // What others print has numbers of a clock.
            _ => {}
        }
    }
    assert!(count >= COMMANDS.len(), "{count}");
}

/// Of the commands that need more than their usage says, or are compared, their arguments; OUT is a new place.
const COMMANDS: [&str; 12] = [
    "train CONFIG --output OUT",
    "eval RUN",
    "predict RUN PICTURE --format csv",
    "restore DENOISE PICTURE --output OUT",
    "sample VAE --output OUT.png",
    "interpolate VAE PICTURE PICTURE --output OUT.png",
    "encode CODES PICTURE --output OUT",
    "decode CODES CODED --output OUT",
    "shrink RUN --output OUT",
    "bench CONFIG --steps 3 --warmup 1",
    "finetune WEIGHTS --model NETWORK --config OUT.yaml --data PICTURES --output OUT --set train.epochs=1",
    "sweep CONFIG --over penalty.l2=0,0.01 --jobs 1 --output OUT",
];

/// The arguments of another command, as its usage has them.
fn from_usage(name: &str, help: &str) -> String {
    let usage = help.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap();
    let words = usage.split_whitespace().skip(3).map(|word| match word.trim_end_matches("...") {
        "<RUN>" | "<RUN|CONFIG>" | "<A>" => "RUN",
        "<CONFIG>" => "CONFIG",
        "<B>" => "OTHER",
        "<IN>" | "<IMAGE>" => "PICTURE",
        "--output" => "--output",
        "<OUT>" | "<FILE>" => "OUT.png",
        _ => panic!("{name} needs a line in COMMANDS: {usage}"),
    });
    [name].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// The numbers of a text, to four digits.
fn numbers(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == 'e'));
    words.filter_map(|word| word.parse::<f64>().ok()).map(|number| format!("{number:.3}")).collect()
}

/// The files below a folder.
fn pictures(folder: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let content = |path: &std::path::PathBuf| match path.is_dir() {
        true => pictures(path.to_str().unwrap()),
        false => vec![fs::read(path).unwrap()],
    };
    let all: Vec<_> = files.iter().flat_map(content).collect();
    assert!(!all.is_empty(), "{folder} is empty");
    all
}

#[test]
fn another_gpu_than_the_first_trains_records_and_shares_a_sweep() {
    let Some(library) = library("another_gpu_than_the_first_trains_records_and_shares_a_sweep") else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let config = configs(home.path()).swap_remove(0).1;
    for graph in ["false", "true"] {
        let args = ["train", &config, "--device", "cuda:1", "--output", &at(graph), "--set"];
        let graph = format!("train.cuda_graph={graph}");
        let epochs = ["--set", "train.epochs=3"];
        let outcome = pretend(library, &[&args[..], &[&graph], &epochs].concat(), &[]).checked();
        assert_eq!(outcome.counts.replays > 0, graph.ends_with("true"), "{:?}", outcome.counts);
    }
    assert_eq!(super::difference(Path::new(&at("true")), Path::new(&at("false"))), 0.0);
    let args = [
        "sweep",
        &config,
        "--over",
        "penalty.l2=0,0.001,0.01",
        "--devices",
        "cuda:0,cuda:1",
        "--output",
        &at("sweep"),
        "--set",
        "train.cuda_graph=true",
        "--set",
        "train.epochs=3",
    ];
    let outcome = pretend(library, &args, &[]).checked();
    assert!(outcome.counts.recordings == 3 && outcome.counts.replays > 0, "{:?}", outcome.counts);
    let (code, told) = {
        let outcome =
            pretend(library, &["train", &config, "--device", "cuda:2", "--output", &at("none")], &[]);
        (outcome.code, outcome.stderr)
    };
    assert!(code == 2 && told.contains("this machine has 2 GPU"), "{told}");
    let report: Value = serde_json::from_str(&pretend(library, &["doctor", "--json"], &[]).stdout).unwrap();
    assert_eq!(report["cuda"]["devices"].as_array().map(Vec::len), Some(2), "{}", json!(report["cuda"]));
}
