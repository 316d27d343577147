//! Segmentation, generation and compression beside PyTorch and scikit-learn, and the networks that go with
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tch::{Device, Kind, Tensor, no_grad};
use tikhonov::metrics::{MetricCollection, Scores, Thresholds, Wanted};
use tikhonov::nn::model::{Model, Network};
use tikhonov::schedule::ScheduleStep;
use tikhonov::tasks::{ModelOutput, Task};

use crate::common::{data_dir, python, succeeds};
use crate::restoration::decode;

fn task(yaml: &str) -> Box<dyn Task> {
    decode::<tikhonov::tasks::TaskSpec>(yaml).build()
}

fn model(yaml: &str) -> Model {
    Model::from_spec(&decode(yaml)).unwrap()
}

fn network(yaml: &str) -> Network {
    model(yaml).build(Device::Cpu, Kind::Float).unwrap()
}

fn save(folder: &Path, tensors: &[(&str, &Tensor)]) {
    for (name, tensor) in tensors {
        tensor.detach().contiguous().write_npy(folder.join(format!("{name}.npy"))).unwrap();
    }
}

/// The numbers that a script prints; it finds torch, numpy as `np` and `load(name)`.
fn numbers(folder: &Path, body: &str) -> Vec<f64> {
    let printed = python(&format!(
        "import torch, numpy as np\nimport torch.nn as nn, torch.nn.functional as F\ntorch.set_num_threads(1)\n\
         load = lambda name: torch.tensor(np.load(f'{}/{{name}}.npy'))\n{body}",
        folder.display()
    ));
    printed.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn clock(step: u64) -> Option<ScheduleStep> {
    Some(ScheduleStep { step, steps_per_epoch: 10, total_steps: 100 })
}

fn scores(task: &dyn Task, output: &[i64], answer: &ModelOutput, ys: &Tensor) -> Scores {
    let mut meter = MetricCollection::new(task.name(), &task.metric_args(output), Wanted::Names(&[]));
    // Batch after batch: the sums must not depend on how the set is cut.
    let part = |tensor: &Tensor, from: i64, to: i64| tensor.narrow(0, from, to - from);
    for (from, to) in [(0, 1), (1, ys.size()[0])] {
        let some = ModelOutput {
            outputs: part(&answer.outputs, from, to),
            latent: answer.latent.as_ref().map(|latent| part(latent, from, to)),
        };
        let ys = part(ys, from, to);
        meter.update(&ys, &some, &ys);
    }
    meter.compute(Thresholds::Given(&[]))
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{got} is not {want}");
}

#[test]
fn segmentation_learns_and_scores_as_pytorch_and_scikit_learn_define_it() {
    let folder = tempfile::tempdir().unwrap();
    let logits = Tensor::randn([3, 4, 6, 7], (Kind::Double, Device::Cpu));
    // Class 3 never occurs in the truth, and a tenth of the pixels does not count.
    let ys = Tensor::randint(3, [3, 6, 7], (Kind::Int64, Device::Cpu));
    let ys = ys.masked_fill(&Tensor::rand([3, 6, 7], (Kind::Double, Device::Cpu)).less(0.1), -1);
    save(folder.path(), &[("logits", &logits), ("ys", &ys)]);
    let task = task("{segmentation: {cross_entropy: 0.5, dice: 2, class_weights: [1, 2, 3, 4]}}");
    let answer = ModelOutput::from(logits);
    let want = numbers(
        folder.path(),
        "from sklearn.metrics import jaccard_score, f1_score, accuracy_score
logits, ys = load('logits'), load('ys')
ce = F.cross_entropy(logits, ys, weight=torch.tensor([1., 2, 3, 4]).double(), ignore_index=-1)
p, dice = logits.softmax(1), []
for k in range(4):
    a, b = p[:, k][ys >= 0], (ys == k)[ys >= 0].double()
    dice.append((2 * (a * b).sum() + 1e-6) / (a.sum() + b.sum() + 1e-6))
print(float(0.5 * ce + 2 * (1 - sum(dice) / 4)))
t, q = ys[ys >= 0], logits.argmax(1)[ys >= 0]
print(f1_score(t, q, average='macro'), jaccard_score(t, q, average='macro'), accuracy_score(t, q))
print(*jaccard_score(t, q, average=None))",
    );
    close(task.loss(&answer, &ys, clock(0)).double_value(&[]), want[0], 1e-10);
    let scores = scores(&*task, &[4, 6, 7], &answer, &ys);
    let names = ["mean_dice", "mean_iou", "pixel_accuracy", "iou_0", "iou_1", "iou_2", "iou_3"];
    for (name, want) in names.iter().zip(&want[1..]) {
        close(scores.get(name).unwrap(), *want, 1e-12);
    }
}

#[test]
fn one_channel_is_the_logit_of_the_second_class() {
    let network = network("{input: [1, 4, 4], layers: {a: {conv2d: {out_channels: 1, kernel_size: 1}}}}");
    let task = task("{segmentation: {dice: 0}}");
    let xs = Tensor::randn([2, 1, 4, 4], (Kind::Float, Device::Cpu));
    let ys = Tensor::randint(2, [2, 4, 4], (Kind::Int64, Device::Cpu));
    let answer = task.forward(&network, &xs, false).unwrap();
    let logits = network.forward(&xs, false).squeeze_dim(1);
    let truth = ys.to_kind(Kind::Float);
    let want = logits.binary_cross_entropy_with_logits::<Tensor>(&truth, None, None, tch::Reduction::Mean);
    close(task.loss(&answer, &ys, None).double_value(&[]), want.double_value(&[]), 1e-6);
    let right = logits.gt(0.0).eq_tensor(&ys.gt(0)).to_kind(Kind::Double).mean(Kind::Double);
    let scores = scores(&*task, &[1, 4, 4], &answer, &ys);
    close(scores.get("pixel_accuracy").unwrap(), right.double_value(&[]), 1e-12);
}

#[test]
fn the_evidence_lower_bound_is_that_of_torch_distributions() {
    let folder = tempfile::tempdir().unwrap();
    let options = (Kind::Double, Device::Cpu);
    let (outputs, ys) = (Tensor::rand([5, 1, 3, 4], options), Tensor::rand([5, 1, 3, 4], options));
    let latent = Tensor::randn([5, 6], options);
    save(folder.path(), &[("outputs", &outputs), ("ys", &ys), ("latent", &latent)]);
    let want = numbers(
        folder.path(),
        "from torch.distributions import Normal, kl_divergence
o, y, m = load('outputs').flatten(1), load('ys').flatten(1), load('latent')
kl = kl_divergence(Normal(m[:, :3], (m[:, 3:] / 2).exp()), Normal(0., 1.)).sum(1).mean()
bernoulli = F.binary_cross_entropy(o, y, reduction='sum') / 5
gaussian = -Normal(o, 0.2).log_prob(y).sum(1).mean()
print(float(kl), float(bernoulli), float(gaussian))",
    );
    let answer = ModelOutput { outputs, latent: Some(latent) };
    for (likelihood, nats) in [("bernoulli", want[1]), ("{gaussian: {sigma: 0.2}}", want[2])] {
        let task =
            task(&format!("{{generation: {{likelihood: {likelihood}, beta: 2, kl_warmup_steps: 8}}}}"));
        for (clock, weight) in
            [(clock(0), 0.0), (clock(2), 0.5), (clock(8), 2.0), (clock(50), 2.0), (None, 2.0)]
        {
            close(task.loss(&answer, &ys, clock).double_value(&[]), nats + weight * want[0], 1e-10);
        }
        let scores = scores(&*task, &[1, 3, 4], &answer, &ys);
        close(scores.get("elbo").unwrap(), -nats - want[0], 1e-10);
        close(scores.get("kl").unwrap(), want[0], 1e-10);
        close(scores.get("reconstruction").unwrap(), nats, 1e-10);
    }
}

#[test]
fn the_code_is_counted_in_bits_and_rounded_in_evaluation_only() {
    let folder = tempfile::tempdir().unwrap();
    tch::manual_seed(3);
    let network = network("{name: autoencoder, args: {channels: 1, size: 20, width: 4, code: 3}}");
    let task = task("{compression: {rate: 0.01}}");
    let xs = Tensor::rand([4, 1, 20, 20], (Kind::Float, Device::Cpu));
    let encoder = network.child("encoder").unwrap();
    let raw = no_grad(|| encoder.forward_t(&xs, false)) * 4.0;
    let answer = no_grad(|| task.forward(&network, &xs, false)).unwrap();
    assert_eq!(answer.outputs.size(), xs.size(), "20 is no multiple of 8");
    let code = answer.latent.unwrap();
    assert!(code.equal(&(&raw / 4.0).round()));
    let noisy = task.forward(&network, &xs, true).unwrap().latent.unwrap();
    let noise = noisy - &raw / 4.0;
    assert!(
        f64::try_from(noise.abs().max()).unwrap() <= 0.5 && f64::try_from(noise.std(false)).unwrap() > 0.2
    );

    let code = raw.round();
    save(folder.path(), &[("code", &code), ("raw", &raw)]);
    let want = numbers(
        folder.path(),
        "code, raw = load('code').numpy(), load('raw').double()
bits = 0
for c in range(3):
    n = np.unique(code[:, c], return_counts=True)[1]
    bits -= (n * np.log2(n / n.sum())).sum()
print(bits / (4 * 400))
v = raw.transpose(0, 1).flatten(1).var(1, unbiased=False)
print(float((0.5 * torch.log2(2 * np.pi * np.e * (v + 1 / 12))).clamp(min=0).sum() * raw[:, 0].numel() / 1600))",
    );
    let outputs = xs.shallow_clone() * 0.9;
    let scores = scores(
        &*task,
        &[1, 20, 20],
        &ModelOutput { outputs: &xs * 0.9, latent: Some(code.shallow_clone()) },
        &xs,
    );
    close(scores.get("bits_per_pixel").unwrap(), want[0], 1e-12);
    assert!(want[0] <= want[1], "the normal bound holds: {want:?}");
    let mse = outputs.mse_loss(&xs, tch::Reduction::Mean).double_value(&[]);
    let loss = task.loss(&ModelOutput { outputs, latent: Some(raw) }, &xs, clock(0)).double_value(&[]);
    close(loss, mse + 0.01 * want[1], 1e-5);
}

#[test]
fn a_model_without_parts_is_told_what_it_lacks() {
    let network = network("srcnn");
    let xs = Tensor::rand([1, 1, 33, 33], (Kind::Float, Device::Cpu));
    for yaml in ["generation", "compression"] {
        let error = task(yaml).forward(&network, &xs, true).unwrap_err();
        assert!(format!("{error:#}").contains("its model has no `encoder`"), "{error:#}");
    }
    let vae = model("vae");
    assert_eq!(vae.child("decoder"), Some((&[20][..], &[1, 28, 28][..])));
    assert_eq!(vae.child("encoder").unwrap().1, [40]);
}

#[test]
fn images_that_a_network_does_not_divide_are_padded_and_cut_back() {
    let close = |a: &Tensor, b: &Tensor| {
        assert_eq!(a.size(), b.size());
        assert!(f64::try_from((a - b).abs().max()).unwrap() < 1e-6);
    };
    for (name, multiple, scale) in [
        ("{name: ffdnet-blind, args: {size: 16, width: 4, depth: 3}}", 2, 1),
        ("{name: unet, args: {size: 32, width: 4}}", 8, 1),
        ("{name: unet-milesial, args: {size: 32, width: 2}}", 16, 1),
        ("{name: autoencoder, args: {channels: 1, size: 32, width: 4}}", 8, 1),
        ("espcn", 1, 3),
        ("dncnn", 1, 1),
    ] {
        tch::manual_seed(0);
        let network = network(name);
        let xs = Tensor::rand([2, 1, 37, 45], (Kind::Float, Device::Cpu));
        let [below, right] = [37, 45].map(|side: i64| (-side).rem_euclid(multiple));
        let ys = network.forward(&xs, false);
        let padded = network.forward(&xs.replication_pad2d([0, right, 0, below]), false);
        close(&ys, &padded.narrow(2, 0, 37 * scale).narrow(3, 0, 45 * scale));
    }
}

/// A published checkpoint by its PyTorch names.
fn checkpoint(data: &Path, file: &str, folder: &Path) -> BTreeMap<String, Tensor> {
    let out = folder.join("weights.safetensors");
    let from = data.join("checkpoints").join(file);
    succeeds(&["convert", "--force", from.to_str().unwrap(), out.to_str().unwrap()]);
    Tensor::read_safetensors(out).unwrap().into_iter().collect()
}

#[test]
fn published_weights_of_a_vae_and_a_u_net_load_and_compute_what_pytorch_does() {
    const TEST: &str = "published_weights_of_a_vae_and_a_u_net_load_and_compute_what_pytorch_does";
    let Some(data) = data_dir(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let vae = network("vae");
    vae.load_state(&checkpoint(&data, "vae-mnist.legacy.pth", folder.path())).unwrap();
    let xs = Tensor::rand([3, 1, 28, 28], (Kind::Float, Device::Cpu));
    let ys = no_grad(|| vae.forward(&xs, false));
    save(folder.path(), &[("x", &xs), ("y", &ys)]);
    let twin = "
s = load_file(f)
x = load('x').flatten(1)
h = F.relu(F.linear(x, s['fc1.weight'], s['fc1.bias']))
z = F.linear(h, s['fc21.weight'], s['fc21.bias'])
h = F.relu(F.linear(z, s['fc3.weight'], s['fc3.bias']))
y = torch.sigmoid(F.linear(h, s['fc4.weight'], s['fc4.bias'])).view(3, 1, 28, 28)";
    let weights = folder.path().join("weights.safetensors");
    let compare = |twin: &str| {
        let file = format!("from safetensors.torch import load_file\nf = '{}'", weights.display());
        numbers(
            folder.path(),
            &format!("{file}\n{twin}\nprint(float((y - load('y')).abs().max() / y.abs().max()))"),
        )[0]
    };
    let difference = compare(twin);
    assert!(difference < 1e-5, "the VAE differs by {difference}");

    let unet = network("{name: unet, args: {channels: 4, classes: 1, size: 32}}");
    unet.load_state(&checkpoint(&data, "unet.pth", folder.path())).unwrap();
    let xs = Tensor::rand([2, 4, 40, 32], (Kind::Float, Device::Cpu)) * 200.0;
    let ys = no_grad(|| unet.forward(&xs, false));
    save(folder.path(), &[("x", &xs), ("y", &ys)]);
    let twin = "
def block(i, o, k=3): return [nn.Conv2d(i, o, k, padding=k // 2), nn.BatchNorm2d(o), nn.ReLU()]
down = lambda i, o, k=3: nn.Sequential(*block(i, o, k), *block(o, o, k), nn.MaxPool2d(3, 2, 1))
up = lambda i, o: nn.Sequential(*block(i, o), *block(o, o), nn.ConvTranspose2d(o, o, 3, 2, 1, 1))
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = down(4, 32, 7), down(32, 64), down(64, 128)
        self.upconv3, self.upconv2, self.upconv1 = up(128, 64), up(128, 32), up(64, 1)
    def forward(self, x):
        a = self.conv1(x); b = self.conv2(a); c = self.upconv3(self.conv3(b))
        d = self.upconv2(torch.cat([c, b], 1))
        return self.upconv1(torch.cat([d, a], 1))
net = UNet().eval()
net.load_state_dict(load_file(f), strict=True)
with torch.no_grad(): y = net(load('x'))";
    let difference = compare(twin);
    assert!(difference < 1e-4, "the U-Net differs by {difference}");
}

fn finish(folder: &Path, name: &str, config: &str) -> serde_json::Value {
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, config).unwrap();
    let output = folder.join(name);
    succeeds(&["train", path.to_str().unwrap(), "--output", output.to_str().unwrap()]);
    let stdout = succeeds(&["eval", output.to_str().unwrap(), "--json"]);
    serde_json::from_str(stdout.lines().next().unwrap_or_default())
        .or_else(|_| serde_json::from_str(&stdout))
        .unwrap()
}

fn find<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(map) => map
            .get(key)
            .filter(|found| found.is_number())
            .or_else(|| map.values().find_map(|value| find(value, key))),
        serde_json::Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

#[test]
fn a_vae_and_a_compressor_learn_from_drawn_pictures() {
    let home = tempfile::tempdir().unwrap();
    let data = "data: {train: {shapes: {count: 600, size: 28, noise: 0}}, test: {shapes: {count: 100, size: 28, noise: 0}}, \
                batch_size: 20, normalize: none}\nthreads: 1\n";
    let vae = |epochs: u32| {
        format!(
            "model: {{name: vae, args: {{hidden: 64, code: 6}}}}\ntask: {{generation: {{kl_warmup_steps: 20}}}}\n{data}\
             optimizer: {{adam: {{lr: 2.0e-3}}}}\ntrain: {{epochs: {epochs}, checkpoint: {{every_steps: 7}}}}\n"
        )
    };
    let elbo = |epochs| {
        let result = finish(home.path(), &format!("vae{epochs}"), &vae(epochs));
        find(&result, "elbo").unwrap().as_f64().unwrap()
    };
    let (early, late) = (elbo(1), elbo(4));
    assert!(late > early + 10.0 && late < 0.0, "ELBO {early} after one epoch, {late} after four");

    let compressor = format!(
        "model: {{name: autoencoder, args: {{channels: 1, size: 28, width: 16, code: 8}}}}\n\
         task: {{compression: {{rate: 1.0e-4}}}}\n{data}optimizer: {{adam: {{lr: 2.0e-3}}}}\ntrain: {{epochs: 4}}\n"
    );
    let result = finish(home.path(), "compressor", &compressor);
    let [psnr, rate] = ["psnr", "bits_per_pixel"].map(|name| find(&result, name).unwrap().as_f64().unwrap());
    assert!(psnr > 12.0 && rate > 0.01 && rate < 3.0, "{psnr} dB at {rate} bits per pixel");
}

#[test]
fn reconstruction_of_small_images_runs_through_the_whole_program() {
    let home = tempfile::tempdir().unwrap();
    let config = "model: {name: espcn, args: {size: 14, scale: 2}}
task: {reconstruction: {degrade: {super_resolution: {scale: 2, input: small}}, loss: charbonnier}}
data: {train: {shapes: {count: 600, size: 28, noise: 0}}, test: {shapes: {count: 100, size: 28, noise: 0}}, batch_size: 20, normalize: none}
threads: 1
optimizer: {adam: {lr: 4.0e-3}}
schedule: {cosine: {}}
train: {epochs: 15}
";
    let result = finish(home.path(), "espcn", config);
    let [psnr, bicubic] =
        ["psnr", "psnr_degraded"].map(|name| find(&result, name).unwrap().as_f64().unwrap());
    assert!(psnr > bicubic, "{psnr} dB beside bicubic's {bicubic} dB");
}

#[test]
fn macro_f1_is_scikit_learns_also_where_the_network_knows_classes_that_never_come() {
    let home = tempfile::tempdir().unwrap();
    // Four outputs; the fourth class is neither there nor predicted.
    python(&format!(
        "
import numpy as np, torch
rng = np.random.default_rng(0)
ys = rng.integers(0, 3, 90)
xs = np.eye(3)[ys] + rng.normal(size=(90, 3))
np.save('{0}/xs.npy', xs); np.save('{0}/ys.npy', ys)
w = torch.zeros(4, 3); w[:3] = torch.eye(3)
torch.save({{'fc.weight': w, 'fc.bias': torch.tensor([0., 0., 0., -100.])}}, '{0}/w.pth')
",
        home.path().display()
    ));
    let config = home.path().join("c.yaml");
    let text = "
device: cpu
model: {layers: {fc: {linear: {out_features: 4}}}, input: [3]}
task: classification
data: {train: {npy: {xs: xs.npy, ys: ys.npy}}, test: {npy: {xs: xs.npy, ys: ys.npy}}, normalize: none}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
";
    let text = text.replace("xs.npy,", &format!("{}/xs.npy,", home.path().display()));
    fs::write(&config, text.replace("ys: ys.npy", &format!("ys: {}/ys.npy", home.path().display()))).unwrap();
    let weights = home.path().join("w.pth");
    let told =
        succeeds(&["eval", config.to_str().unwrap(), "--weights", weights.to_str().unwrap(), "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let wanted = numbers(
        home.path(),
        "
from sklearn.metrics import f1_score
import numpy as np
xs, ys = load('xs'), load('ys')
print(f1_score(ys, xs.argmax(1), average='macro'))
",
    );
    let ours = find(&told, "macro_f1").and_then(serde_json::Value::as_f64).unwrap();
    close(ours, wanted[0], 1e-12);
}

#[test]
fn a_hit_among_the_first_five_is_one_and_a_sixth_place_is_none() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().display();
    // Seven classes, and the truth on every place from the first to the seventh, twice.
    let (mut xs, mut ys) = (Vec::new(), Vec::new());
    for sample in 0..14i64 {
        let (truth, place) = (sample * 3 % 7, sample % 7);
        xs.extend((0..7).map(|class| -((class - truth + place).rem_euclid(7) as f64)));
        ys.push(truth);
    }
    Tensor::from_slice(&xs).view([14, 7]).write_npy(home.path().join("xs.npy")).unwrap();
    Tensor::from_slice(&ys).write_npy(home.path().join("ys.npy")).unwrap();
    let eye = Tensor::eye(7, (Kind::Float, Device::Cpu));
    let weights = [("fc.weight", eye), ("fc.bias", Tensor::zeros([7], (Kind::Float, Device::Cpu)))];
    Tensor::write_safetensors(&weights, home.path().join("w.safetensors")).unwrap();
    let set = format!("{{npy: {{xs: {at}/xs.npy, ys: {at}/ys.npy}}}}");
    let text = format!(
        "device: cpu\nmodel: {{layers: {{fc: {{linear: {{out_features: 7}}}}}}, input: [7]}}\ntask: classification\n\
         data: {{train: {set}, test: {set}, normalize: none}}\noptimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 1}}\n"
    );
    let config = home.path().join("c.yaml");
    fs::write(&config, text).unwrap();
    let weights = home.path().join("w.safetensors");
    let told =
        succeeds(&["eval", config.to_str().unwrap(), "--weights", weights.to_str().unwrap(), "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    for (name, share) in [("accuracy", 2.0 / 14.0), ("top5_accuracy", 10.0 / 14.0)] {
        assert_eq!(find(&told, name).and_then(serde_json::Value::as_f64), Some(share), "{told}");
    }
}

#[test]
fn the_loss_of_batches_together_is_that_of_one_large_batch() {
    let options = (Kind::Double, Device::Cpu);
    let (outputs, ys) = (Tensor::rand([5, 1, 8, 8], options), Tensor::rand([5, 1, 8, 8], options));
    let latent = (Tensor::randn([5, 3, 2, 2], options) * 4.0).round();
    let logits = Tensor::randn([5, 3, 8, 8], options);
    let classes = Tensor::randint(4, [5, 8, 8], (Kind::Int64, Device::Cpu)) - 1;
    let compressed = ModelOutput { outputs, latent: Some(latent) };
    let segmented = ModelOutput::from(logits);
    for (yaml, answer, ys) in [
        ("{compression: {rate: 0.3}}", &compressed, &ys),
        ("segmentation", &segmented, &classes),
        ("{segmentation: {class_weights: [1, 2, 5], dice: 0}}", &segmented, &classes),
    ] {
        let task = task(yaml);
        let part = |tensor: &Tensor, from: i64, len: i64| tensor.narrow(0, from, len);
        let sums = [(0, 1), (1, 3), (4, 1)].map(|(from, len)| {
            let latent = answer.latent.as_ref().map(|latent| part(latent, from, len));
            let some = ModelOutput { outputs: part(&answer.outputs, from, len), latent };
            task.sums(&some, &part(ys, from, len)).unwrap()
        });
        let [first, second, third] = sums;
        let joint = task.joint_loss(&(first + second + third)).double_value(&[]);
        close(joint, task.loss(answer, ys, None).double_value(&[]), 1e-12);
    }
    assert!(task("{compression: {rate: 0}}").sums(&compressed, &ys).is_none(), "a mean over samples");
}
