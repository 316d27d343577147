//! Networks that Python exported with torch.export: trained as ours, exported back, refused by name.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tikhonov::pytorch::weights::read_weights;

use crate::common::{python, run, succeeds};
use crate::model::difference;
use crate::scripted::{config, text};

/// Python's start: modules of `names` in `folder`, and how they are exported.
const PRELUDE: &str = "
import sys, torch, warnings
import torch.nn.functional as F
from torch import nn
warnings.simplefilter('ignore')
torch.manual_seed(0)
AUTO = torch.export.Dim.AUTO
def save(name, net, x, free=(0,), decompose=False, mode=False):
    program = torch.export.export(net.train(mode), (x,), dynamic_shapes=({dim: AUTO for dim in free},))
    if decompose:
        program = program.run_decompositions()
    torch.export.save(program, f'{folder}/{name}.pt2')
";

/// Runs `body` after the prelude, with the twins of the shipped models at hand.
fn export(folder: &Path, body: &str) {
    let twins = include_str!("model/twins.py").replace("\nmain(sys.argv[1])", "");
    python(&format!("{twins}\nfolder = {folder:?}\n{PRELUDE}\n{body}"));
}

#[test]
fn an_exported_network_trains_resumes_and_goes_back_as_one_of_ours_would() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    export(
        folder,
        "net = SmallCNN(4)\ntorch.save(net.state_dict(), folder + '/net.pth')\nx = torch.rand(2, 1, 20, 20)\nsave('net', net, x)\n\
         save('lowered', net, x, decompose=True)\nsave('training', net, x, mode=True)",
    );
    let at = |name: &str| text(&folder.join(name));
    let exported = config(folder, "exported.yaml", &json!({"exported": at("net.pt2")}));
    let ours = json!({"name": "small-cnn", "args": {"size": 20, "width": 4}, "init_from": at("net.pth")});
    let ours = config(folder, "ours.yaml", &ours);
    let summary = |config: &str| -> Value {
        serde_json::from_str(&succeeds(&["summary", config, "--json"])).expect("JSON")
    };
    let (theirs, known) = (summary(&exported), summary(&ours));
    for key in ["parameters", "groups", "trainable", "buffers", "output"] {
        assert_eq!(theirs[key], known[key], "{key}");
    }
    let table = succeeds(&["summary", &exported]);
    assert!(table.contains("block1.0.conv") && table.contains("Conv2d"), "{table}");

    let weights = |run: &str| {
        let file = folder.join(run).join("checkpoints/last/model.safetensors");
        (fs::read(&file).expect("the weights"), read_weights(&file, None).expect("they are read").tensors)
    };
    succeeds(&["train", &ours, "--output", &at("ours")]);
    succeeds(&["train", &exported, "--output", &at("a")]);
    let agree = |run: &str| {
        for ((name, ours), (other, theirs)) in weights("ours").1.iter().zip(&weights(run).1) {
            assert_eq!(name, other);
            let apart = difference(ours, theirs);
            assert!(apart < 1e-4, "{run}: {name}: {apart}");
        }
    };
    agree("a");
    // Batch norms come back to training from every form.
    for name in ["lowered", "training"] {
        let config =
            config(folder, &format!("{name}.yaml"), &json!({"exported": at(&format!("{name}.pt2"))}));
        succeeds(&["train", &config, "--output", &at(name)]);
        agree(name);
    }
    succeeds(&["train", &exported, "--output", &at("c"), "--set", "train.epochs=1"]);
    fs::remove_file(at("net.pt2")).expect("it goes");
    succeeds(&["train", &at("c"), "--resume", "--set", "train.epochs=2"]);
    assert!(weights("a").0 == weights("c").0, "resumed weights differ");

    // Back to Python.
    for (format, file) in [("pt2", "back.pt2"), ("torchscript", "back.pt"), ("state-dict", "back.pth")] {
        succeeds(&["export", &at("a"), "--to", format, "--checkpoint", "last", "-o", &at(file)]);
    }
    let printed = python(&format!(
        "import torch, warnings\nwarnings.simplefilter('ignore')\nprogram = torch.export.load({:?}); script = torch.jit.load({:?})\n\
         state = torch.load({:?}, weights_only=True); first = torch.load({:?})\n\
         assert list(program.state_dict) == list(script.state_dict()) == list(state) == list(first)\n\
         assert all(torch.equal(v, state[k]) for k, v in program.state_dict.items())\n\
         x = torch.rand(3, 1, 20, 20)\nprint(torch.allclose(program.module()(x), script.eval()(x), atol=1e-6))",
        at("back.pt2"),
        at("back.pt"),
        at("back.pth"),
        at("net.pth")
    ));
    assert_eq!(printed, "True\n");
    // What we exported is taken in again.
    let again = config(folder, "again.yaml", &json!({"exported": at("back.pt2")}));
    assert_eq!(summary(&again)["parameters"], known["parameters"]);
}

#[test]
fn programs_of_many_operators_are_read_as_libtorch_reads_them() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    export(
        folder,
        "
class Former(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ln, self.fc, self.drop = nn.LayerNorm(8), nn.Linear(8, 10), nn.Dropout(0.2)
        self.scale = torch.tensor([0.5, 2.0])
        self.register_buffer('shift', torch.arange(8.0))
    def forward(self, x):
        n, _, h, w = x.shape
        x = x.mean(1).reshape(n, h * w // 8, 8) + self.shift + self.table(torch.arange(3))[2]
        x = x + self.att(x, x, x, need_weights=False)[0]
        a, b = self.drop(F.gelu(self.fc(self.ln(x)), approximate='tanh')).chunk(2, -1)
        return torch.cat([a * self.scale[0], b * self.scale[1]], -1).amax(1)
class Sizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(1, 4, 3, 2, 1), nn.PReLU(4)
        self.norm, self.fc = nn.GroupNorm(2, 4), nn.Linear(4, 3)
    def forward(self, x):
        y = F.interpolate(self.norm(self.prelu(self.conv(x))), size=x.shape[2:], mode='bilinear', antialias=True)
        y = F.hardtanh(y[:, :, : x.shape[2] // 2], -1.0, float('inf')).permute(0, 2, 3, 1)
        y = y.to(torch.float64).to(torch.float32).clamp(min=-3)
        return F.log_softmax(self.fc(y).flatten(1, 2).max(1).values, dim=1)
save('former', Former(), torch.rand(2, 1, 8, 8))
save('sizes', Sizes(), torch.rand(2, 1, 8, 8), free=(0, 2, 3))
",
    );
    for (name, output) in [("former", json!([10])), ("sizes", json!([3]))] {
        let file = text(&folder.join(format!("{name}.pt2")));
        let config = config(folder, &format!("{name}.yaml"), &json!({"exported": file}));
        // Opening compares it with libtorch's own interpreter.
        let summary: Value = serde_json::from_str(&succeeds(&["summary", &config, "--json"])).expect("JSON");
        assert_eq!(summary["output"], output, "{name}");
        let names: Vec<_> = read_weights(Path::new(&file), None).expect("weights").tensors;
        let rows = summary["trainable"].as_u64().expect("a count");
        let learnt = names.iter().filter(|(name, _)| name != "shift");
        assert_eq!(learnt.map(|(_, tensor)| tensor.numel() as u64).sum::<u64>(), rows, "{name}");
    }
}

#[test]
fn the_sides_that_python_left_free_stay_free() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    export(
        folder,
        "
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
    def forward(self, x):
        return self.second(F.relu(self.first(x))) + x
save('net', Net(), torch.rand(2, 1, 8, 8), free=(0, 2, 3))
",
    );
    let (first, second) = (text(&folder.join("net.pt2")), text(&folder.join("again.pt2")));
    let model = json!({"exported": first}).to_string();
    let said = succeeds(&["export", &first, "--model", &model, "--to", "pt2", "-o", &second]);
    assert!(said.contains("any batch, height and width"), "{said}");
    let printed = python(&format!(
        "import torch, warnings\nwarnings.simplefilter('ignore')\nfirst, second = (torch.export.load(f).module() for f in ({first:?}, {second:?}))\n\
         for size in [(1, 1, 8, 8), (3, 1, 20, 14), (2, 1, 9, 31)]:\n    x = torch.randn(size)\n    assert torch.equal(first(x), second(x)), size\nprint('good')"
    ));
    assert_eq!(printed, "good\n");
}

#[test]
fn a_program_that_cannot_be_trained_is_refused_with_its_reason() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    export(
        folder,
        "
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x, y):
        return self.fc(x) + y
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(x), x
class Cond(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.fc(x), lambda x: -self.fc(x), (x,))
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.b(self.a(x))
class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.register_buffer('steps', torch.zeros(1))
    def forward(self, x):
        self.steps.add_(1)
        return self.fc(x)
class Nothing(nn.Module):
    def forward(self, x):
        return x * 2
x = torch.rand(2, 4)
torch.export.save(torch.export.export(nn.Linear(4, 2), (x,)), folder + '/fixed.pt2')
torch.export.save(torch.export.export(Two(), (x, torch.rand(2, 2)), dynamic_shapes=({0: AUTO}, {0: AUTO})), folder + '/two.pt2')
save('pair', Pair(), x)
save('cond', Cond(), x)
save('tied', Tied(), x)
save('counts', Counts(), x)
save('nothing', Nothing(), x)
torch.jit.script(nn.Linear(4, 2)).save(folder + '/script.pt2')
save('good', nn.Linear(4, 2), x)
data = bytearray(open(folder + '/good.pt2', 'rb').read())
data[data.index(b'weight_0') + 90] ^= 255
open(folder + '/damaged.pt2', 'wb').write(data)
",
    );
    for (name, message) in [
        ("fixed", "its batch is fixed to 2; export it with a free one"),
        ("two", "it takes more than one tensor"),
        ("pair", "it answers several tensors"),
        ("cond", "no operator of ATen"),
        ("tied", "are one tensor: untie them"),
        ("counts", "changes `steps`"),
        ("nothing", "no parameters to train"),
        ("script", "what torch.jit.save wrote is for `torchscript`"),
        ("damaged", "damaged.pt2"),
        ("absent", "absent.pt2"),
    ] {
        let file = text(&folder.join(format!("{name}.pt2")));
        let config = config(folder, "c.yaml", &json!({"exported": file}));
        let (code, _, stderr) = run(&["summary", &config]);
        assert!(code == 4 && stderr.contains(message), "{name}: {code} {stderr}");
    }
    let good = text(&folder.join("good.pt2"));
    let config = config(folder, "c.yaml", &json!({"torchscript": good, "input": [4]}));
    let (code, _, stderr) = run(&["summary", &config]);
    assert!(code == 4 && stderr.contains("say `exported`"), "{code} {stderr}");
}
