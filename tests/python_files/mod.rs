//! Files that Python wrote are read bit for bit, hostile ones refused; what we write Python loads.

mod forms;
mod hostile;
mod mutations;
mod speed;
mod written;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::Tensor;
use tikhonov::libtorch::bytes;
use tikhonov::pytorch::weights::{Weights, dtype, read_weights};

use crate::common::{data_dir, python, run, succeeds};

/// `show(state_dict)` prints what [`digest`] returns; `P` is the test's folder.
pub const SHOW: &str = r#"
import torch, hashlib, collections, argparse, os, zipfile
from collections import OrderedDict
torch.manual_seed(0)
def show(state):
    for k, t in state.items():
        flat = t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''
        print(k, str(t.dtype)[6:], list(t.shape), hashlib.sha256(raw).hexdigest())
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.head = torch.nn.Linear(4, 2)
        self.register_buffer('kept', torch.arange(3))
        self.register_buffer('dropped', torch.arange(5), persistent=False)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.note = 'not a tensor'
        self.twin = self.head
    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"#;

/// One line per tensor: name, dtype, shape, sha256 of its elements in row-major order.
pub fn digest(tensors: &[(String, Tensor)]) -> String {
    let mut lines = String::new();
    for (name, tensor) in tensors {
        let hash = bytes::with(&tensor.contiguous(), |bytes| Sha256::digest(bytes)).unwrap();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        lines += &format!("{name} {} {:?} {hex}\n", dtype(tensor.kind()).unwrap().name(), tensor.size());
    }
    lines
}

/// Runs a script with [`SHOW`] in a fresh folder, which it knows as `P`. TorchScript wants the source in a
/// file.
pub fn script(body: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("show.py"), SHOW).unwrap();
    let start = format!("import sys, os\nP = {:?}\nos.chdir(P)\nsys.path.insert(0, P)", folder.path());
    let end = "import shutil; shutil.rmtree('__pycache__', ignore_errors=True); os.remove('show.py')";
    let printed = python(&format!("{start}\nfrom show import *\n{body}\n{end}"));
    (folder, printed)
}

pub fn read(path: impl AsRef<Path>) -> Weights {
    let path = path.as_ref();
    read_weights(path, None).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()))
}

pub fn read_error(path: impl AsRef<Path>) -> String {
    match read_weights(path.as_ref(), None) {
        Ok(_) => panic!("{} was accepted", path.as_ref().display()),
        Err(error) => {
            assert_eq!(tikhonov::util::exit_code::code(&error), 4, "{error:#}");
            format!("{error:#}")
        }
    }
}

/// The script writes `a.pt` and shows its state; it must be read equal.
fn reads_equal(body: &str) -> Weights {
    let (folder, printed) = script(body);
    let weights = read(folder.path().join("a.pt"));
    assert!(!printed.is_empty());
    assert_eq!(digest(&weights.tensors), printed, "structure: {}", weights.structure);
    weights
}

#[test]
fn every_real_checkpoint_is_read_as_its_table_says_and_bit_equal_to_pytorch() {
    let Some(data) = data_dir("every_real_checkpoint") else { return };
    let folder = data.join("checkpoints");
    // File, key of the weights, tensors, values.
    let files = [
        ("dncnn-s-25.legacy.pth", "", 77, 557_952),
        ("dncnn-s-15.legacy.pth", "", 77, 557_952),
        ("resnet20-cifar10.legacy.th", "state_dict", 97, 271_098),
        ("lenet-mnist.nested.pth", "model", 10, 61_610),
        ("mnist-convnet.pt", "", 20, 376_940),
        ("mnist-cnn.legacy.pt", "", 8, 431_080),
        ("vae-mnist.legacy.pth", "", 10, 652_824),
        ("unet.pth", "", 90, 539_593),
    ];
    for (file, key, tensors, values) in files {
        let path = folder.join(file);
        let weights = read(&path);
        assert_eq!(weights.key, key, "{file}");
        assert_eq!(weights.tensors.len(), tensors, "{file}");
        assert_eq!(weights.tensors.iter().map(|(_, t)| t.numel()).sum::<usize>(), values, "{file}");
        let (_, printed) = script(&format!(
            "s = torch.load({path:?}, map_location='cpu', weights_only=False)\nshow(s[{key:?}] if {key:?} else s)"
        ));
        assert_eq!(digest(&weights.tensors), printed, "{file}");
    }
    let path = folder.join("mnist-convnet.safetensors");
    let (_, printed) = script(&format!("from safetensors.torch import load_file\nshow(load_file({path:?}))"));
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&digest(&read(&path).tensors)), sorted(&printed), "{}", path.display());
    assert_eq!(read(folder.join("resnet20-cifar10.legacy.th")).metadata["best_prec1"], 91.78000183105469);
    assert!(read_error(folder.join("damaged.pt")).contains("U+FFFD"));
}

#[test]
fn every_dtype_is_read_bit_for_bit_from_both_containers() {
    let dtypes = "
names = 'bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128'.split()
state = OrderedDict((n, (torch.randn(3, 5) * 50).to(getattr(torch, n))) for n in names)
state['scalar'] = torch.tensor(float('nan')); state['empty'] = torch.zeros(0, 3); state['conj'] = state['complex64'].conj()
state['neg'] = torch.randn(4, dtype=torch.complex64).conj().imag
";
    reads_equal(&format!(
        "{dtypes}
for n in 'float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz complex32'.split():
    state[n] = torch.randn(7).to(getattr(torch, n))
torch.save(state, 'a.pt'); show(state)"
    ));
    reads_equal(&format!(
        "{dtypes}\ntorch.save(state, 'a.pt', _use_new_zipfile_serialization=False); show(state)"
    ));
}

#[test]
fn a_dtype_without_a_tch_kind_and_quantized_or_sparse_tensors_are_refused_by_name_and_inspect_lists_them() {
    let (folder, _) = script(
        "torch.save({'a': torch.zeros(2), 'q': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, 'q.pt')
torch.save({'a': torch.zeros(2), 's': torch.eye(3).to_sparse()}, 's.pt')
torch.save({'csr': torch.eye(3).double().to_sparse_csr(), 'meta': torch.empty(4, 5, device='meta')}, 'only.pt')
import struct; header = b'{\"a\":{\"dtype\":\"F8_E8M0\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}'
open('e8.safetensors', 'wb').write(struct.pack('<Q', len(header)) + header + b'abc')",
    );
    let error = |file| read_error(folder.path().join(file));
    assert!(error("q.pt").contains("`q` is a quantized tensor"), "{}", error("q.pt"));
    assert!(error("s.pt").contains("`s` is a sparse tensor"), "{}", error("s.pt"));
    assert!(error("e8.safetensors").contains("`a` is of a dtype"), "{}", error("e8.safetensors"));
    for (file, tensors, line) in [
        ("q.pt", 1, "q  [2]  qint8  is a quantized tensor"),
        ("s.pt", 1, "s  [3, 3]  float32  is a sparse tensor"),
        ("only.pt", 0, "csr  [3, 3]  float64  is a sparse tensor"),
        ("only.pt", 0, "meta  [4, 5]  float32  is a tensor without data"),
        ("e8.safetensors", 1, "a  [2]  F8_E8M0  is of a dtype"),
    ] {
        let (code, stdout, stderr) = run(&["inspect", folder.path().join(file).to_str().unwrap()]);
        assert!(code == 0 && stdout.contains(line), "{file}: {code} {stdout}{stderr}");
        assert!(stdout.contains(&format!("holds      {tensors} tensors")), "{stdout}");
    }
    let path = folder.path().join("q.pt");
    let (_, stdout, _) = run(&["inspect", path.to_str().unwrap(), "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&shown["tensors"][1]["name"], &shown["tensors"][1]["shape"][0]), (&"q".into(), &2.into()));
    // A folder with weights stands for them.
    std::fs::create_dir_all(folder.path().join("run/checkpoints/last")).unwrap();
    std::fs::write(folder.path().join("run/checkpoints/last/model.safetensors"), b"\x02\0\0\0\0\0\0\0{}")
        .unwrap();
    for place in ["run", "run/checkpoints/last"] {
        let (code, stdout, stderr) = run(&["inspect", folder.path().join(place).to_str().unwrap()]);
        assert!(code == 0 && stdout.contains("last/model.safetensors"), "{place}: {stdout}{stderr}");
    }
    assert_eq!(run(&["inspect", folder.path().join("run/checkpoints").to_str().unwrap()]).0, 4);
}

#[test]
fn tied_tensors_share_memory_and_strided_views_keep_their_values() {
    for new in ["True", "False"] {
        let weights = reads_equal(&format!(
            "base = torch.randn(6, 4)
state = OrderedDict(a=base, b=base, t=base.t(), row=base[2], column=base[:, 1], every=base[::2, 1::2],
    expanded=torch.randn(3, 1).expand(3, 5), image=torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
torch.save(state, 'a.pt', _use_new_zipfile_serialization={new}); show(state)"
        ));
        let tensor = |name: &str| &weights.tensors.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(tensor("a").data_ptr(), tensor("b").data_ptr());
        assert_eq!(tensor("t").stride(), [1, 4]);
        assert_eq!(tensor("row").data_ptr() as usize, tensor("a").data_ptr() as usize + 2 * 4 * 4);
        assert_eq!(tensor("image").stride(), [48, 1, 12, 3]);
    }
}

#[test]
fn nested_weights_are_found_and_a_key_forces_another_choice() {
    let weights = reads_equal(
        "m = torch.nn.Linear(3, 2)
opt = torch.optim.Adam(m.parameters()); m(torch.ones(1, 3)).sum().backward(); opt.step()
ema = {k: v * 2 for k, v in m.state_dict().items()}
torch.save({'epoch': 7, 'optimizer': opt.state_dict(), 'wrap': {'params_ema': ema, 'net': m.state_dict()}, 'acc': 0.5}, 'a.pt')
show(ema)",
    );
    assert_eq!(
        (weights.key.as_str(), &weights.others[..]),
        ("wrap.params_ema", &[("wrap.net".into(), 2)][..])
    );
    assert_eq!((&weights.metadata["epoch"], &weights.metadata["acc"]), (&7.into(), &0.5.into()));

    let (folder, printed) = script(
        "torch.save({'a.b': {'x': torch.ones(1)}, 'list': [torch.zeros(2), {'y': torch.ones(3)}]}, 'a.pt')
show({'x': torch.ones(1)}); show({'y': torch.ones(3)})",
    );
    let path = folder.path().join("a.pt");
    let digests = ["a.b", "list.1"].map(|key| digest(&read_weights(&path, Some(key)).unwrap().tensors));
    assert_eq!(digests.concat(), printed);
    let error = format!("{:#}", read_weights(&path, Some("a.c")).err().unwrap());
    assert!(error.contains("no key `a.c`") && error.contains("a.b, list"), "{error}");
}

#[test]
fn a_module_that_was_pickled_whole_gives_its_state_dict_without_its_class() {
    for new in ["True", "False"] {
        let save = format!("torch.save(x, 'a.pt', _use_new_zipfile_serialization={new})");
        let weights = reads_equal(&format!("m = Net(); x = m; {save}; show(m.state_dict())"));
        assert_eq!(weights.structure, "bare pickled module");
        let weights = reads_equal(&format!(
            "m = torch.nn.DataParallel(Net()); x = {{'model': m, 'epoch': 3}}; {save}; show(m.state_dict())"
        ));
        assert_eq!(weights.structure, "pickled module under `model`");
    }
}

#[test]
fn a_scripted_module_gives_its_state_dict_without_being_run() {
    let weights =
        reads_equal("m = torch.jit.script(Net()); m.save('a.pt'); show(torch.jit.load('a.pt').state_dict())");
    assert_eq!(weights.structure, "bare scripted module");
    reads_equal(
        "m = torch.jit.trace(Net().eval(), torch.ones(1, 3, 8, 8)); m.save('a.pt'); show(torch.jit.load('a.pt').state_dict())",
    );
}

#[test]
fn every_pickle_protocol_is_read_from_both_containers() {
    let (folder, printed) = script(
        "state = Net().state_dict(); show(state)
for protocol in 2, 3, 4, 5:
    for zip in True, False:
        torch.save({'state_dict': state, 'note': 'x' * 300, 'data': b'y' * 300, 'big': 1 << 80}, f'{protocol}{zip}.pt',
                   pickle_protocol=protocol, _use_new_zipfile_serialization=zip)",
    );
    for protocol in 2..=5 {
        for zip in ["True", "False"] {
            let weights = read(folder.path().join(format!("{protocol}{zip}.pt")));
            assert_eq!(digest(&weights.tensors), printed, "protocol {protocol}, zip {zip}");
            assert_eq!(weights.metadata["data"], "<300 bytes>");
            assert_eq!(weights.metadata["big"], "<integer of 88 bits>");
        }
    }
}

#[test]
fn what_stands_beside_the_weights_is_shown_and_unknown_classes_stay_names() {
    let (folder, _) = script(
        "import numpy, pathlib, enum
class Mode(enum.Enum):
    FAST = 1
class Settings(dict): pass
torch.save({'model': Net().state_dict(), 'args': argparse.Namespace(lr=0.1, name='run', nested=[1, (2, 3)]),
  'np': numpy.float64(1.5), 'np32': numpy.float32(0.25), 'npi': numpy.int64(-3), 'npb': numpy.bool_(True), 'nd': numpy.zeros(3),
  'device': torch.device('cpu'), 'dtype': torch.float16, 'path': pathlib.PurePosixPath('/x'), 'mode': Mode.FAST, 'none': None,
  'set': {1}, 'frozen': frozenset([2]), 'complex': 1+2j, 'nan': float('nan'), 'settings': Settings(a=1), 'size': torch.Size([1, 2]),
  'default': collections.defaultdict(list, {'k': [1]}), 'bytes': bytearray(b'ab'), 'best': torch.tensor(3.0)}, 'a.pt')",
    );
    let path = folder.path().join("a.pt");
    let stdout = succeeds(&["inspect", path.to_str().unwrap(), "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let expected = serde_json::json!({
        "args": {"class": "<argparse.Namespace>", "lr": 0.1, "name": "run", "nested": [1, [2, 3]]},
        "np": 1.5, "np32": 0.25, "npi": -3, "npb": true, "nd": "<tensor float64 [3]>",
        "device": "<torch.device>", "dtype": "<torch.float16>", "path": "<pathlib.PurePosixPath>", "mode": "<__main__.Mode>",
        "none": null, "set": [1], "frozen": [2], "complex": "1+2j", "nan": "NaN",
        "settings": {"class": "<__main__.Settings>", "a": 1}, "size": [1, 2], "default": {"k": [1]}, "bytes": "<2 bytes>",
        "best": "<tensor float32 []>",
    });
    assert_eq!(shown["metadata"], expected);
    assert_eq!(shown["structure"], "state_dict under `model`");
    let kept = shown["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "kept").unwrap();
    assert_eq!((&kept["min"], &kept["mean"], &kept["max"]), (&0.0.into(), &1.0.into(), &2.0.into()));
}

#[test]
fn inspect_counts_nan_and_shows_infinity() {
    let (folder, _) = script("torch.save({'w': torch.tensor([float('nan'), 1., 3., float('inf')])}, 'a.pt')");
    let (code, stdout, _) = run(&["inspect", folder.path().join("a.pt").to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(stdout.contains("NaN        1 values"), "{stdout}");
    let row = stdout.lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(row, "w [4] float32 1.00000 inf inf 1");
}

#[test]
fn an_archive_that_was_packed_again_with_deflate_or_zip64_is_read() {
    reads_equal(
        "state = Net().state_dict(); torch.save(state, 'b.pt')
src = zipfile.ZipFile('b.pt')
with zipfile.ZipFile('a.pt', 'w', zipfile.ZIP_DEFLATED) as dst:
    for name in src.namelist(): dst.writestr(name.split('/', 1)[1], src.read(name))
show(state)",
    );
    // Local headers as of an entry whose size was not known to be small.
    reads_equal(
        "state = Net().state_dict(); torch.save(state, 'b.pt')
src = zipfile.ZipFile('b.pt')
with zipfile.ZipFile('a.pt', 'w') as dst:
    for name in src.namelist():
        with dst.open(name, 'w', force_zip64=True) as out: out.write(src.read(name))
show(state)",
    );
}

pub fn sample(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}
