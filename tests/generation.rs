//! `tikhonov sample` and `tikhonov interpolate`, driven as a user drives them.

use std::fs;

use crate::common::{data_dir, python, run, succeeds};

/// A tiny run over drawn pictures.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// `model` and `task` are YAML.
    pub fn trained(model: &str, task: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.train("run", model, task);
        place
    }

    pub fn train(&self, name: &str, model: &str, task: &str) {
        let (config, output) = (self.config(name, model, task), self.path(name));
        succeeds(&["train", &config, "--output", &output]);
    }

    pub fn config(&self, name: &str, model: &str, task: &str) -> String {
        let set = "{shapes: {count: 100, size: 28, noise: 0}}";
        let text = format!(
            "device: cpu\nthreads: 1\nmodel: {model}\ntask: {task}\n\
             data: {{train: {set}, test: {set}, batch_size: 20, normalize: none}}\n\
             optimizer: {{adam: {{lr: 2.0e-3}}}}\ntrain: {{epochs: 1}}\n"
        );
        let path = self.path(&format!("{name}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a command on `run`; arguments that begin with `@` are paths in here.
    pub fn call(&self, command: &str, args: &[&str]) -> (i32, String, String) {
        let args: Vec<String> = args
            .iter()
            .map(|arg| arg.strip_prefix('@').map_or_else(|| arg.to_string(), |name| self.path(name)))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&[&[command], args.as_slice()].concat())
    }

    pub fn done(&self, command: &str, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.call(command, args);
        assert_eq!(code, 0, "{stderr}");
        stdout
    }

    pub fn python(&self, script: &str) -> String {
        python(&format!(
            "import os, numpy as np, torch\nfrom PIL import Image\nos.chdir({:?})\n\
             read = lambda name: np.asarray(Image.open(name)).astype(int)\n{script}",
            self.folder.path()
        ))
    }
}

const VAE: &str = "{name: vae, args: {hidden: 32, code: 3}}";

/// The decoder and the encoder's means of `models/vae.yaml` in PyTorch, and a grid as torchvision lays it
/// out.
const TWIN: &str = "
from safetensors.torch import load_file
import torch.nn.functional as F
def net(file):
    global s; s = load_file(file)
lin = lambda x, n: F.linear(x, s[n + '.weight'], s[n + '.bias'])
means = lambda x: lin(F.relu(lin(x.flatten(1), 'fc1')), 'fc21')
decode = lambda z: torch.sigmoid(lin(F.relu(lin(z, 'fc3')), 'fc4')).view(-1, 28, 28)
def grid(images, columns):
    rows = -(-len(images) // columns)
    out = np.zeros((rows * 30 + 2, columns * 30 + 2))
    for i, image in enumerate(images):
        y, x = i // columns * 30 + 2, i % columns * 30 + 2
        out[y:y + 28, x:x + 28] = image.numpy() * 255
    return out
def same(file, want):
    got = read(file)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert abs(got - want).max() < 0.502, abs(got - want).max()
";

#[test]
fn samples_are_what_pytorch_draws_and_decodes() {
    let place = Place::trained(VAE, "generation");
    let told = place.done("sample", &["@run", "--count", "10", "--seed", "5", "-o", "@grid.png"]);
    assert!(told.contains("grid.png (122x92): 10 images of codes [3], seed 5"), "{told}");
    place.done("sample", &["@run", "--count", "10", "--seed", "5", "--columns", "5", "-o", "@sub/wide.png"]);
    place.done("sample", &["@run", "--grid", "4", "-o", "@plane.png"]);
    place.python(&format!(
        "{TWIN}
net('run/checkpoints/last/model.safetensors')
torch.manual_seed(5)
images = decode(torch.randn(10, 3))
same('grid.png', grid(images, 4)); same('sub/wide.png', grid(images, 5))
q = torch.distributions.Normal(0., 1.).icdf((torch.arange(4) + 0.5) / 4)
same('plane.png', grid(decode(torch.tensor([[q[x], q[3 - y], 0] for y in range(4) for x in range(4)])), 4))"
    ));
}

#[test]
fn interpolation_begins_and_ends_with_the_reconstructions() {
    let place = Place::trained(VAE, "generation");
    place.python(
        "for i, name in enumerate('ab'):
    y, x = np.mgrid[:28, :28]
    Image.fromarray((((y - 8 - 9 * i) ** 2 + (x - 14) ** 2 < 60) * 255).astype(np.uint8)).save(name + '.png')",
    );
    let row = |route: &str| {
        place.done(
            "interpolate",
            &["@run", "@a.png", "@b.png", "--steps", "5", "--route", route, "-o", &format!("@{route}.png")],
        );
    };
    row("linear");
    row("spherical");
    place.python(&format!(
        "{TWIN}
net('run/checkpoints/last/model.safetensors')
a, b = (means(torch.tensor(read(n + '.png') / 255).float()[None])[0] for n in 'ab')
same('linear.png', grid(decode(torch.stack([torch.lerp(a, b, i / 4) for i in range(5)])), 5))
w = torch.arccos(torch.dot(a / a.norm(), b / b.norm()))
arc = [torch.sin((1 - i / 4) * w) / torch.sin(w) * a + torch.sin(i / 4 * w) / torch.sin(w) * b for i in range(5)]
same('spherical.png', grid(decode(torch.stack(arc)), 5))"
    ));
}

#[test]
fn a_generation_refuses_what_it_cannot_do() {
    let place = Place::trained(VAE, "generation");
    let refused = |command: &str, args: &[&str], code: i32, part: &str| {
        let (got, _, stderr) = place.call(command, args);
        assert!(got == code && stderr.contains(part), "{args:?}: {got}, {stderr}");
    };
    place.done("sample", &["@run", "--count", "1", "-o", "@one.png"]);
    refused("sample", &["@run", "-o", "@one.png"], 2, "--force replaces it");
    place.done("sample", &["@run", "-o", "@one.png", "--force"]);
    refused("sample", &["@run", "-o", "@grid"], 2, "such as a .png");
    refused(
        "interpolate",
        &["@run", "@one.png", "@one.png", "-o", "@one.png", "--force"],
        2,
        "never overwritten",
    );
    refused("interpolate", &["@run", "@one.png", "@none.png", "-o", "@row.png"], 3, "none.png");
    refused("interpolate", &["@run", "@one.png", "@run.yaml", "-o", "@row.png"], 3, "run.yaml");
    place.config("classes", "{name: lenet, args: {channels: 1, size: 28}}", "classification");
    refused("sample", &["@classes.yaml", "-o", "@no.png"], 2, "give --weights FILE");
    place.config("plain", "autoencoder", "compression");
    refused("sample", &["@plain.yaml", "--weights", "@run", "-o", "@no.png"], 4, "does not fit");
}

#[test]
fn published_weights_draw() {
    let Some(data) = data_dir("published_weights_draw") else { return };
    let place = Place { folder: tempfile::tempdir().unwrap() };
    place.config("vae", "vae", "generation");
    let weights = data.join("checkpoints/vae-mnist.legacy.pth");
    let weights = weights.to_str().unwrap();
    place.done(
        "sample",
        &["@vae.yaml", "--weights", weights, "--count", "6", "--seed", "1", "-o", "@grid.png"],
    );
    place.done("convert", &[weights, "@w.safetensors"]);
    place.python(&format!(
        "{TWIN}\nnet('w.safetensors')\ntorch.manual_seed(1)\nsame('grid.png', grid(decode(torch.randn(6, 20)), 3))"
    ));
}

#[test]
fn a_model_without_parts_is_told_before_the_first_batch() {
    let place = Place { folder: tempfile::tempdir().unwrap() };
    let head = "{name: srcnn, args: {channels: 1, size: 28}}";
    let skewed = "{input: [1, 28, 28], layers: {_encoder: [flatten, {linear: {out_features: 4}}], \
                  _half: {linear: {out_features: 3}}, \
                  _decoder: [{linear: {out_features: 784}}, {unflatten: {unflattened_size: [1, 28, 28]}}]}}";
    for (task, model, part) in [
        ("generation", head, "its model has no `encoder`; name two of its top-level layers so"),
        ("compression", head, "its model has no `encoder`; name two of its top-level layers so"),
        ("generation", skewed, "gives [4] and the other takes [3]; make the two fit"),
        ("compression", skewed, "gives [4] and the other takes [3]; make the two fit"),
    ] {
        let config = place.config("odd", model, task);
        let (code, _, stderr) = run(&["train", &config, "--output", &place.path("odd")]);
        assert!(code == 2 && stderr.contains(part), "{task}: {code}, {stderr}");
        assert!(!stderr.contains("epoch") && !std::path::Path::new(&place.path("odd/config.yaml")).exists());
    }
}
