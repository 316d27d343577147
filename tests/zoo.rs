//! The shipped families beside their PyTorch packages: names, order, initial bits, outputs, gradients, training steps,
//! TorchScript, time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use tikhonov::libtorch::kernels::{self, Kernel};
use tikhonov::nn::model::Network;

use crate::common::{alone, has_modules, python_path, succeeds};
use crate::model::{TWINS, arrays, difference, model};

/// The Python process that holds one network at a time.
struct Reference {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reference {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(python_path())
            .args(["-W", "ignore", "-c", include_str!("model/zoo.py")])
            .arg(folder)
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let commands = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, commands, answers }
    }

    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.commands, "{command}").expect("Python listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("Python answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"))
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one network was found to be.
#[derive(Debug, Default)]
struct Found {
    parameters: i64,
    /// None where it is too large to be held here.
    held: Option<Held>,
    /// The tensors whose bits at a seed are not PyTorch's.
    redrawn: Vec<String>,
    /// Those that differ by a rounding: `trunc_normal` on CPUs that are not Intel's, where MKL's inverse of erf uses
    /// other instructions here (TIKHONOV_STARTUP=plain gives the same bits).
    rounded: bool,
}

#[derive(Debug)]
struct Held {
    output: f64,
    gradient: f64,
    losses: f64,
    script: f64,
    /// Seconds of a training step, ours and PyTorch's.
    seconds: Option<(f64, f64)>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn loss(network: &Network, xs: &Tensor) -> Tensor {
    network.forward(xs, true).square().mean(xs.kind())
}

fn step(network: &Network, xs: &Tensor, rate: f64) -> f64 {
    for parameter in network.parameters() {
        parameter.tensor.shallow_clone().zero_grad();
    }
    let loss = loss(network, xs);
    loss.backward();
    no_grad(|| {
        for parameter in network.parameters() {
            let gradient = parameter.tensor.grad();
            if gradient.defined() {
                let _ = parameter.tensor.shallow_clone().g_sub_(&(gradient * rate));
            }
        }
    });
    loss.double_value(&[])
}

/// Compares one network; None where Python lacks the package.
fn compare(
    reference: &mut Reference,
    folder: &Path,
    name: &str,
    steps: usize,
    rounds: usize,
) -> Option<Found> {
    let answer = reference.ask(&format!("open {name} {steps}"));
    if let Some(missing) = answer["missing"].as_str() {
        eprintln!("SKIPPED {name}: {missing}");
        return None;
    }
    let shipped = name.trim_end_matches("+aux");
    let model = model(json!({"name": shipped, "args": answer["args"]}));
    let ours: Vec<Value> = model.params().iter().map(|param| json!([param.name, param.shape])).collect();
    let theirs = answer["keys"].as_array().expect("a list");
    if let Some((ours, theirs)) = ours.iter().zip(theirs).find(|(ours, theirs)| ours != theirs) {
        panic!("{name}: {ours} is {theirs} in Python");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}: tensors");
    let mut found = Found { parameters: answer["count"].as_i64().expect("a number"), ..Found::default() };
    if answer["large"] == true {
        return Some(found);
    }
    tch::manual_seed(7);
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let initial = arrays(folder, "initial.npz");
    for (name, tensor) in network.state() {
        if !tensor.equal(&initial[&name]) {
            found.rounded |= difference(&tensor, &initial[&name]) < 3e-7;
            found.redrawn.extend((difference(&tensor, &initial[&name]) >= 3e-7).then_some(name));
        }
    }

    let state: BTreeMap<String, Tensor> = arrays(folder, "state.npz");
    network.load_state(&state).expect("the state fits");
    let io = arrays(folder, "io.npz");
    let output = no_grad(|| difference(&network.forward(&io["x"], false), &io["eval"]));

    let exact = model.build(Device::Cpu, Kind::Double).expect("it builds");
    exact.load_state(&state).expect("the state fits");
    let xs = io["x"].to_kind(Kind::Double);
    let mut losses = vec![loss(&exact, &xs)];
    losses[0].backward();
    let theirs = arrays(folder, "grads.npz");
    let largest = theirs.values().map(|grad| grad.abs().max().double_value(&[])).fold(0.0, f64::max);
    let mut gradient: f64 = 0.0;
    for parameter in exact.parameters() {
        let Some(theirs) = theirs.get(&parameter.name) else { continue };
        gradient = gradient
            .max((parameter.tensor.grad() - theirs).abs().max().double_value(&[]) / largest.max(1e-30));
    }
    losses.extend((0..steps).map(|_| Tensor::from(step(&exact, &xs, 1e-4))));
    let theirs = answer["losses"].as_array().expect("a list");
    let first = theirs[0].as_f64().expect("a number");
    let apart = losses.iter().zip(theirs).map(|(ours, theirs)| {
        (ours.double_value(&[]) - theirs.as_f64().expect("a number")).abs() / first.max(1e-30)
    });
    let apart = apart.fold(0.0, f64::max);

    let file = |name: &str| folder.join(name).to_str().expect("text").to_owned();
    let config = json!({"name": shipped, "args": answer["args"]});
    std::fs::write(file("net.yaml"), yaml(&config)).expect("it is written");
    let weights: Vec<(String, Tensor)> = state.into_iter().collect();
    Tensor::write_safetensors(&weights, file("state.safetensors")).expect("it is written");
    succeeds(&[
        "export",
        &file("state.safetensors"),
        "--model",
        &file("net.yaml"),
        "--to",
        "torchscript",
        "-o",
        &file("net.pt"),
    ]);
    let script = reference.ask(&format!("script {}", file("net.pt")));
    assert!(script["equal"] == true, "{name}: TorchScript holds other tensors: {script}");
    // And in again, but for auxiliary heads, which are not in it.
    if !name.ends_with("+aux") {
        succeeds(&[
            "export",
            &file("net.pt"),
            "--model",
            &file("net.yaml"),
            "--to",
            "safetensors",
            "-o",
            &file("again.safetensors"),
        ]);
        let again: BTreeMap<String, Tensor> =
            Tensor::read_safetensors(file("again.safetensors")).expect("it is read").into_iter().collect();
        assert!(
            weights.iter().all(|(name, tensor)| again[name].equal(tensor)),
            "{name}: TorchScript comes in otherwise"
        );
    }
    for name in ["net.pt", "again.safetensors", "state.safetensors"] {
        // What is not there needs no removal.
        let _ = std::fs::remove_file(file(name));
    }

    let seconds = (rounds > 0).then(|| {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let start = Instant::now();
            step(&network, &io["x"], 0.0);
            ours.push(start.elapsed().as_secs_f64());
            theirs.push(reference.ask("step")["seconds"].as_f64().expect("a number"));
        }
        (median(ours), median(theirs))
    });
    found.held = Some(Held {
        output,
        gradient,
        losses: apart,
        script: script["apart"].as_f64().expect("a number"),
        seconds,
    });
    Some(found)
}

/// The shipped network with these arguments as a model file of its own.
fn yaml(spec: &Value) -> String {
    let spec: tikhonov::nn::model::ModelSpec = serde_json::from_value(spec.clone()).expect("a spec");
    let inlined = serde_json::to_value(spec.inlined().expect("it is resolved")).expect("JSON");
    serde_yaml::to_string(&inlined).expect("YAML")
}

/// Those that torchvision or another package draws in an order that a description does not say.
const DRAWN_OTHERWISE: [&str; 7] = ["fcn", "deeplabv3", "lraspp", "edsr", "rcan", "nafnet", "dncnn"];

fn check(name: &str, found: &Found) {
    let otherwise = DRAWN_OTHERWISE.iter().any(|family| name.starts_with(family));
    let truncated = ["googlenet", "inception", "convnext"].iter().any(|family| name.starts_with(family));
    assert!(!found.rounded || truncated || otherwise, "{name}: initial weights differ by a rounding");
    assert!(found.redrawn.is_empty() || otherwise, "{name}: drawn otherwise: {:?}", found.redrawn);
    let Some(held) = &found.held else { return };
    assert!(held.output < 1e-5 && held.script < 1e-5, "{name}: outputs differ: {held:?}");
    assert!(held.gradient < 1e-8, "{name}: gradients differ: {held:?}");
    assert!(held.losses < 1e-8, "{name}: training steps differ: {held:?}");
}

/// A small variant of each family; those of AlexNet, VGG, Inception, FCN and DRUNet are large, and held below.
const SMALL: [&str; 22] = [
    "googlenet+aux",
    "resnet18-imagenet",
    "squeezenet1_1",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "efficientnet-lite0",
    "regnet_y_400mf",
    "convnext_tiny",
    "deeplabv3_mobilenet_v3_large+aux",
    "lraspp_mobilenet_v3_large",
    "ircnn",
    "srmd",
    "msrresnet",
    "rrdbnet",
    "edsr-baseline",
    "rcan",
    "nafnet",
    "dncnn-kair",
];

#[test]
fn a_small_variant_of_each_family_equals_its_reference() {
    const NAME: &str = "zoo::a_small_variant_of_each_family_equals_its_reference";
    if !has_modules(NAME, &["torchvision"]) || !alone(NAME) {
        return;
    }
    kernels::enable(Kernel::Winograd, false);
    let folder = tempfile::tempdir().expect("a folder");
    let mut reference = Reference::start(folder.path());
    for name in SMALL {
        if let Some(found) = compare(&mut reference, folder.path(), name, 3, 0) {
            eprintln!("{name}: {} drawn otherwise, {:?}", found.redrawn.len(), found.held);
            check(name, &found);
        }
    }
}

/// Writes the table of docs/models.md where TIKHONOV_WRITE is set. TIKHONOV_ONLY names those to be held.
#[test]
#[ignore = "an hour of one core: CONTRIBUTING.md has the command"]
fn every_variant_equals_its_reference() {
    const NAME: &str = "zoo::every_variant_equals_its_reference";
    if !has_modules(NAME, &["torchvision", "spandrel", "efficientnet_lite_pytorch"]) {
        return;
    }
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().expect("a folder");
    let mut reference = Reference::start(folder.path());
    let names: Vec<(&str, String)> = match std::env::var("TIKHONOV_ONLY") {
        Ok(only) => only.split(',').map(|name| ("", name.to_owned())).collect(),
        Err(_) => tikhonov::nn::model::family::names(),
    };
    let mut table = String::from(
        "| network | parameters | initial bits | output | gradient | 20 steps | TorchScript | step, s | PyTorch, s |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (_, name) in names {
        if TWINS.contains(&name.as_str()) && name != "resnet18-imagenet" {
            continue;
        }
        let Some(found) = compare(&mut reference, folder.path(), &name, 20, 5) else { continue };
        let initial = match (found.redrawn.is_empty(), found.rounded) {
            (true, false) => "equal",
            (true, true) => "to a rounding",
            _ => "drawn in another order",
        };
        let millions = found.parameters as f64 / 1e6;
        let row = match &found.held {
            None => format!("| {name} | {millions:.1} M | names alone: too large here | | | | | | |"),
            Some(Held { output, gradient, losses, script, seconds }) => {
                let (ours, theirs) = seconds.unwrap_or_default();
                format!(
                    "| {name} | {millions:.1} M | {initial} | {output:.0e} | {gradient:.0e} | {losses:.0e} | \
                     {script:.0e} | {ours:.3} | {theirs:.3} |"
                )
            }
        };
        eprintln!("{row}");
        writeln!(table, "{row}").expect("text");
        check(&name, &found);
    }
    if std::env::var_os("TIKHONOV_WRITE").is_some() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md");
        let text = std::fs::read_to_string(&page).expect("the page");
        let (before, rest) = text.split_once("<!-- zoo -->\n").expect("a mark");
        let (_, after) = rest.split_once("<!-- /zoo -->").expect("a mark");
        std::fs::write(page, format!("{before}<!-- zoo -->\n{table}<!-- /zoo -->{after}"))
            .expect("it is written");
    }
}

#[test]
fn the_list_of_networks_has_every_variant_with_its_size() {
    let rows: Value = serde_json::from_str(&succeeds(&["models", "--json"])).expect("JSON");
    let row =
        |name: &str| rows.as_array().expect("a list").iter().find(|row| row["name"] == name).expect(name);
    // As torchvision gives them.
    for (name, parameters, file) in [
        ("resnet50", 25_557_032, "resnet50-*.pth"),
        ("resnet18-imagenet", 11_689_512, "resnet18"),
        ("efficientnet_b3", 12_233_232, "efficientnet_b3"),
        ("regnet_y_128gf", 644_812_894, "regnet_y_128gf"),
        ("convnext_large", 197_767_336, "convnext_large"),
    ] {
        assert_eq!(row(name)["parameters"], parameters, "{name}");
        assert!(row(name)["published"].as_str().expect("text").contains(file), "{name}");
    }
    assert_eq!(row("resnet50")["multiply_adds"], 4_089_184_256_i64);
    assert_eq!(row("resnet50")["input"], json!([3, 224, 224]));
    let text = succeeds(&["models", "vgg"]);
    assert!(text.contains("vgg19_bn") && !text.contains("resnet"), "{text}");
    let summary = succeeds(&["summary", "--model", "resnext50_32x4d", "--arg", "classes=5"]);
    assert!(summary.contains("layer4.2.conv3.weight") && summary.contains("fc.bias"), "{summary}");
}
