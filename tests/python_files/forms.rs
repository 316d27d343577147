//! The other forms in which Python users keep weights: keys that are no text, numpy arrays, parts, shards,
//! archives of torch.export, parametrizations, whole modules. Each is read as what it is, or named for what
//! it is.

use std::path::Path;

use super::{digest, read, read_error, script};
use crate::common::{python, run, succeeds};

/// The network of [`NET`].
const MODEL: &str = "{input: [1, 8, 8], layers: {conv1: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}, bn1: batch_norm2d, \
                     _relu: relu, _flat: flatten, fc: {linear: {out_features: 3}}}}";

const NET: &str = "
class Small(torch.nn.Module):
    def __init__(self, eps=1e-5, padding=1, stride=1, mode='zeros', pool=None):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 4, 3, padding=padding, stride=stride, padding_mode=mode)
        self.bn1 = torch.nn.BatchNorm2d(4, eps=eps)
        if pool: self.pool = pool
        self.fc = torch.nn.Linear(256, 3)
    def forward(self, x): return self.fc(torch.relu(self.bn1(self.conv1(x))).flatten(1))
net = Small().eval(); sd = net.state_dict()
";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `tikhonov export FILE` for [`MODEL`] with `options`; exit code and everything printed.
fn fits(file: &Path, options: &[&str]) -> (i32, String) {
    let output = file.with_extension("out.safetensors");
    let args =
        ["export", text(file), "--model", MODEL, "--to", "safetensors", "--force", "-o", text(&output)];
    let (code, stdout, stderr) = run(&[&args, options].concat());
    (code, stdout + &stderr)
}

#[test]
fn keys_that_are_no_text_are_listed_reached_and_converted_and_never_dropped() {
    let (folder, _) = script(
        "a, b = torch.ones(1), torch.zeros(2)
torch.save({0: a, 1: b}, 'int.pth')
torch.save({'x': a, 3: b, b'bytes': a, (1, 'two'): b, None: a, 0.5: b, True: a}, 'mixed.pth')
torch.save({b'conv.weight': a, b'conv.bias': b}, 'bytes.pth')
torch.save({0: {'w': a}, 1: {'w': b, 'v': a}}, 'folds.pth')
torch.save({'layers': {0: {'w': a}, 1: {'w': b}}}, 'nested.pth')
torch.save({1: a, '1': b}, 'twins.pth')
torch.save({'state': {0: {'exp_avg': a}}, 'param_groups': []}, 'optimizer.pth')",
    );
    let names = |file: &str| {
        read(folder.path().join(file)).tensors.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(names("int.pth"), ["0", "1"]);
    assert_eq!(names("mixed.pth"), ["x", "3", "bytes", "(1, two)", "None", "0.5", "True"]);
    assert_eq!(names("bytes.pth"), ["conv.weight", "conv.bias"]);
    assert!(read_error(folder.path().join("twins.pth")).contains("two tensors are called `1`"));
    assert!(read_error(folder.path().join("optimizer.pth")).contains("holds no tensors"));

    let folds = folder.path().join("folds.pth");
    let shown = succeeds(&["inspect", text(&folds)]);
    assert!(
        shown.contains("state_dict under `1`") && shown.contains("also 0: 1 tensors (--key '0'"),
        "{shown}"
    );
    let out = folder.path().join("out.pth");
    let said = succeeds(&["convert", text(&folds), text(&out), "--key", "0"]);
    assert!(said.contains("1 tensors"), "{said}");
    assert_eq!(names("out.pth"), ["w"]);
    let nested = folder.path().join("nested.pth");
    let said = succeeds(&["convert", text(&nested), text(&out), "--force"]);
    assert!(said.contains("not converted: 1 tensors under `layers.1`"), "{said}");
    succeeds(&["convert", text(&nested), text(&out), "--force", "--key", "layers"]);
    assert_eq!(names("out.pth"), ["0.w", "1.w"]);
}

#[test]
fn what_is_beside_at_the_root_is_offered_under_a_key_that_can_be_typed() {
    let (folder, _) = script(
        "torch.save({'net': {'a': torch.ones(1), 'b': torch.ones(1)}, 'rng': torch.ones(3)}, 'a.pth')",
    );
    let path = folder.path().join("a.pth");
    let shown = succeeds(&["inspect", text(&path)]);
    assert!(shown.contains("also ., the file's root: 1 tensors (--key '.'"), "{shown}");
    let shown = succeeds(&["inspect", text(&path), "--key", "."]);
    assert!(shown.contains("bare state_dict") && shown.contains("rng"), "{shown}");
}

#[test]
fn numpy_arrays_are_read_as_tensors_whatever_the_protocol_and_the_order() {
    for protocol in [2, 4, 5] {
        let (folder, printed) = script(&format!(
            "import numpy as np
dtypes = 'bool uint8 int8 int16 int32 int64 float16 float32 float64 complex64 complex128'.split()
state = OrderedDict((n, (np.random.randn(3, 5) * 50).astype(n)) for n in dtypes)
state['fortran'] = np.asfortranarray(np.arange(6.0).reshape(2, 3)); state['scalar'] = np.array(7); state['empty'] = np.zeros((0, 3))
state['turned'] = np.arange(6.0).reshape(2, 3).T
for new in True, False:
    torch.save({{'model': state, 'rng': np.random.get_state(), 'epoch': np.int64(3)}}, f'{{new}}.pt', pickle_protocol={protocol},
               _use_new_zipfile_serialization=new)
torch.save({{'x': np.arange(3, dtype='>f4'), 'y': torch.ones(1)}}, 'big.pt')
show({{k: torch.from_numpy(np.ascontiguousarray(v)).reshape(v.shape) for k, v in state.items()}})",
        ));
        for file in ["True.pt", "False.pt"] {
            let weights = read(folder.path().join(file));
            assert_eq!(digest(&weights.tensors), printed, "protocol {protocol}, {file}");
            assert_eq!(weights.structure, "state_dict of numpy arrays under `model`");
            assert_eq!(weights.metadata["epoch"], 3);
            assert_eq!(weights.others, []);
        }
        assert!(
            read_error(folder.path().join("big.pt")).contains("`x` is a numpy array of another byte order")
        );
    }
}

#[test]
fn unsigned_integers_are_read_where_they_fit_and_what_is_not_needed_refuses_nothing() {
    let (folder, _) = script(
        "from safetensors.torch import save_file
import struct
u = {n: torch.tensor([0, 1, 2**b - 1 if b < 64 else 2**63 - 1], dtype=getattr(torch, n)) for n, b in [('uint16', 16), ('uint32', 32), ('uint64', 64)]}
torch.save(u, 'u.pt'); save_file(u, 'u.safetensors')
torch.save({'a': torch.ones(1), 'huge': torch.tensor([2**63], dtype=torch.uint64)}, 'huge.pt')
torch.save({'a': torch.ones(1), 'q': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, 'q.pt')",
    );
    for file in ["u.pt", "u.safetensors"] {
        let weights = read(folder.path().join(file));
        for (name, last) in [("uint16", 65535), ("uint32", 4_294_967_295), ("uint64", i64::MAX)] {
            let (_, tensor) = weights.tensors.iter().find(|(found, _)| found == name).unwrap();
            assert_eq!(tensor.int64_value(&[2]), last, "{file}");
        }
        let shown = succeeds(&["inspect", text(&folder.path().join(file))]);
        assert!(shown.contains("uint16  [3]    uint16"), "{shown}");
    }
    let out = folder.path().join("out.pt");
    let said = succeeds(&["convert", text(&folder.path().join("u.pt")), text(&out)]);
    assert!(said.contains("`uint16` is uint16 in the file and was written as int32"), "{said}");
    assert!(read_error(folder.path().join("huge.pt")).contains("`huge`"));
    let q = folder.path().join("q.pt");
    let refused = run(&["convert", text(&q), text(&out), "--force"]);
    assert!(
        refused.0 == 4 && refused.2.contains("quantized") && refused.2.contains("ignore"),
        "{}",
        refused.2
    );
    let said = succeeds(&["convert", text(&q), text(&out), "--force", "--ignore", "q*"]);
    assert!(said.contains("not converted: 1 tensors that --ignore names"), "{said}");
    let (code, _, stderr) =
        run(&["convert", text(&q), text(&out), "--force", "--ignore", "q", "--ignore", "aa"]);
    assert!(code == 2 && stderr.contains("did you mean `a`"), "{code} {stderr}");
}

#[test]
fn a_key_that_stands_twice_and_a_name_that_safetensors_keeps_are_refused() {
    let (folder, _) = script(
        "torch.save({'__metadata__': torch.ones(1), 'x': torch.ones(1)}, 'm.pth')
import struct
def write(name, header, data):
    open(name, 'wb').write(struct.pack('<Q', len(header)) + header + data)
one = b'{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}'
write('twice.safetensors', b'{\"a\":' + one % (0, 1) + b',\"a\":' + one % (0, 1) + b'}', b'x')
write('meta.safetensors', b'{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"},\"a\":' + one % (0, 1) + b'}', b'x')
import numpy, zipfile, io
def npy(x):
    f = io.BytesIO(); numpy.save(f, x); return f.getvalue()
import warnings; warnings.simplefilter('ignore')
z = zipfile.ZipFile('twice.npz', 'w')
z.writestr('xs.npy', npy(numpy.zeros((4, 3), 'float32'))); z.writestr('xs.npy', npy(numpy.ones((4, 3), 'float32')))
z.writestr('ys.npy', npy(numpy.zeros(4, 'int64'))); z.close()
open('c.yaml', 'w').write('model: {input: [3], layers: [linear: {out_features: 2}]}\\ntask: classification\\ndata: {train: {npy: {file: ' + P + '/twice.npz, xs: xs, ys: ys}}}\\noptimizer: {sgd: {lr: 0.1}}\\ntrain: {epochs: 1}\\noutput: run\\n')",
    );
    assert!(read_error(folder.path().join("twice.safetensors")).contains("`a` stands in it twice"));
    assert!(read_error(folder.path().join("meta.safetensors")).contains("`k` stands in it twice"));
    let (input, out) = (folder.path().join("m.pth"), folder.path().join("m.safetensors"));
    let (code, _, stderr) = run(&["convert", text(&input), text(&out)]);
    assert!(code == 4 && stderr.contains("`__metadata__`") && !out.exists(), "{code} {stderr}");
    succeeds(&["convert", text(&input), text(&out), "--rename", "__metadata__=>meta"]);
    succeeds(&["convert", text(&input), text(&folder.path().join("m.pt"))]);
    let config = folder.path().join("c.yaml");
    let output = folder.path().join("run");
    let (code, _, stderr) = run(&["train", text(&config), "--output", text(&output)]);
    assert!(code == 3 && stderr.contains("two arrays of the archive have one name"), "{code} {stderr}");
}

#[test]
fn archives_of_torch_export_shards_of_hugging_face_and_folders_of_dcp_are_read_bit_for_bit() {
    let (folder, printed) = script(&format!(
        "{NET}
import json, warnings, torch.distributed.checkpoint as dcp, contextlib, io, logging; warnings.simplefilter('ignore')
from safetensors.torch import save_file
logging.disable(logging.WARNING)
with contextlib.redirect_stdout(io.StringIO()):
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 8),)), 'a.pt2')
    dcp.save({{'model': sd, 'optimizer': {{'m': torch.ones(3), 'v': torch.ones(3)}}, 'step': 7}}, checkpoint_id='dcp')
    dcp.save(sd, checkpoint_id='bare')
for kind, save, name in [('st', save_file, 'model-{{}}.safetensors'), ('bin', torch.save, 'pytorch_model-{{}}.bin')]:
    os.mkdir(kind)
    parts = [dict(list(sd.items())[:4]), dict(list(sd.items())[4:])]
    for i, part in enumerate(parts): save(part, os.path.join(kind, name.format(i)))
    index = 'model.safetensors.index.json' if kind == 'st' else 'pytorch_model.bin.index.json'
    json.dump({{'metadata': {{}}, 'weight_map': {{k: name.format(i) for i, part in enumerate(parts) for k in part}}}}, open(os.path.join(kind, index), 'w'))
os.mkdir('one'); save_file(sd, 'one/model.safetensors')
show(sd)"
    ));
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for (file, structure) in [
        ("a.pt2", "bare state_dict"),
        ("st", "named tensors of 2 shards"),
        ("st/model.safetensors.index.json", "named tensors of 2 shards"),
        ("bin", "named tensors of 2 shards"),
        ("one", "named tensors"),
        ("dcp", "state_dict under `model`"),
        ("dcp/__0_0.distcp", "state_dict under `model`"),
        ("bare", "state_dict"),
    ] {
        let path = folder.path().join(file);
        let weights = read(&path);
        assert_eq!(sorted(&digest(&weights.tensors)), sorted(&printed), "{file}");
        assert_eq!(weights.structure, structure, "{file}");
        let (code, said) = fits(&path, &[]);
        assert!(code == 0 && said.contains("9 of 9 tensors"), "{file}: {said}");
        assert_eq!(run(&["inspect", text(&path)]).0, 0, "{file}");
    }
    // A shard that is not the index's.
    std::fs::copy(folder.path().join("st/model-0.safetensors"), folder.path().join("st/model-1.safetensors"))
        .unwrap();
    assert!(read_error(folder.path().join("st")).contains("lacks `"));
    std::fs::remove_file(folder.path().join("bin/pytorch_model-1.bin")).unwrap();
    assert!(read_error(folder.path().join("bin")).contains("pytorch_model-1.bin"));
    let damaged = folder.path().join("dcp/__0_0.distcp");
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&damaged, bytes).unwrap();
    assert!(read_error(folder.path().join("dcp")).contains("__0_0.distcp"));
}

#[test]
fn a_tensor_that_dcp_saved_in_pieces_is_put_together() {
    let (folder, printed) = script(
        "import pickle, io
from torch.distributed.checkpoint.metadata import *
from torch.distributed.checkpoint.filesystem import _StorageInfo
whole = torch.randn(5, 4); os.mkdir('d')
pieces = [((0, 0), whole[:3]), ((3, 0), whole[3:, :1]), ((3, 1), whole[3:, 1:])]
storage, chunks = {}, []
for i, (at, piece) in enumerate(pieces):
    f = io.BytesIO(); torch.save(piece.clone(), f); name = f'__{i}_0.distcp'
    open('d/' + name, 'wb').write(b'pad' + f.getvalue())
    storage[MetadataIndex('w', torch.Size(at), i)] = _StorageInfo(name, 3, len(f.getvalue()))
    chunks.append(ChunkStorageMetadata(torch.Size(at), piece.shape))
about = TensorStorageMetadata(TensorProperties(dtype=torch.float32), whole.shape, chunks)
pickle.dump(Metadata({'w': about}, {'w': ('w',)}, storage), open('d/.metadata', 'wb'))
storage.popitem(); os.mkdir('e')
pickle.dump(Metadata({'w': about}, {'w': ('w',)}, storage), open('e/.metadata', 'wb'))
for f in os.listdir('d'):
    if f.endswith('distcp'): os.link('d/' + f, 'e/' + f)
show({'w': whole})",
    );
    assert_eq!(digest(&read(folder.path().join("d")).tensors), printed);
    assert!(read_error(folder.path().join("e")).contains("its pieces hold 14 values"));
}

#[test]
fn what_is_of_another_program_is_named_for_what_it_is() {
    let (folder, _) = script(&format!(
        "{NET}
import tarfile, numpy, zipfile
torch.jit.freeze(torch.jit.script(Net().eval())).save('frozen.pt')
torch.save(sd, 'sd.pth'); t = tarfile.open('a.tar', 'w'); t.add('sd.pth'); t.close()
open('sys_info', 'wb').write(b'x'); t = tarfile.open('old.tar', 'w'); t.add('sys_info'); t.close()
open('x.gguf', 'wb').write(b'GGUF' + bytes(60))
open('x.onnx', 'wb').write(bytes([8, 8, 0x12, 7]) + b'pytorch' + bytes(60))
open('x.json', 'w').write('{{}}')
numpy.savez('x.npz', a=numpy.zeros(3))
z = zipfile.ZipFile('script0.pt', 'w'); z.writestr('net/model.json', '{{}}'); z.writestr('net/tensors/0', b'x'); z.close()
z = zipfile.ZipFile('aoti.pt2', 'w'); z.writestr('net/archive_format', 'pt2'); z.close()"
    ));
    for (file, message) in [
        ("frozen.pt", "frozen TorchScript program, whose weights are constants"),
        ("a.tar", "a tar archive (its first entry is `sd.pth`): unpack it first"),
        ("old.tar", "before 0.1.10"),
        ("x.gguf", "GGUF"),
        ("x.onnx", "ONNX"),
        ("x.json", "JSON"),
        ("x.npz", "a .npz archive of numpy arrays"),
        ("script0.pt", "before 1.1, which PyTorch 2 does not read either"),
        ("aoti.pt2", "without weights"),
    ] {
        let error = read_error(folder.path().join(file));
        assert!(error.contains(message), "{file}: {error}");
    }
}

#[test]
fn parts_are_joined_by_their_keys_a_tree_is_taken_whole_and_what_is_too_much_is_ignored() {
    let (folder, _) = script(&format!(
        "{NET}
body = {{k: v for k, v in sd.items() if not k.startswith('fc')}}; head = {{k: v for k, v in sd.items() if k.startswith('fc')}}
torch.save({{'body': body, 'head': head}}, 'parts.pth')
tree = {{}}
for k, v in sd.items(): tree.setdefault(k.split('.')[0], {{}})[k.split('.')[1]] = v
torch.save(tree, 'tree.pth')
more = dict(sd); more['aux.weight'] = torch.ones(2); more['criterion.w'] = torch.ones(1); more['n_averaged'] = torch.tensor(3)
torch.save(more, 'more.pth')
import numpy
numpy.save('xs.npy', numpy.zeros((8, 1, 8, 8), 'float32')); numpy.save('ys.npy', numpy.arange(8) % 3)"
    ));
    let file = |name: &str| folder.path().join(name);
    let (code, said) = fits(&file("parts.pth"), &[]);
    assert!(code == 4 && said.contains("`head` (2); several keys join parts"), "{said}");
    let (code, said) = fits(&file("parts.pth"), &["--key", "body", "--key", "head"]);
    assert!(code == 0 && said.contains("9 of 9 tensors from the state_dict under `body + head`"), "{said}");
    let (code, said) = fits(&file("parts.pth"), &["--key", "body", "--key", "body"]);
    assert!(code == 4 && said.contains("give only one of these keys"), "{said}");
    let (code, said) = fits(&file("tree.pth"), &["--key", "."]);
    assert!(code == 0 && said.contains("9 of 9"), "{said}");
    let (code, said) = fits(&file("more.pth"), &[]);
    assert!(code == 4 && said.contains("3 unexpected") && said.contains("--ignore PATTERN"), "{said}");
    let ignore = ["--ignore", "aux*", "--ignore", "criterion.*", "--ignore", "n_averaged"];
    let (code, said) = fits(&file("more.pth"), &ignore);
    assert!(code == 0 && said.contains("3 tensors of the file are left out"), "{said}");
    let (code, said) = fits(&file("more.pth"), &["--ignore", "auxx.*"]);
    assert!(code == 2 && said.contains("`auxx.*` fits no tensor"), "{said}");
    // The same in a config.
    let config = format!(
        "model: {{input: [1, 8, 8], layers: {}, init_from: {{file: {:?}, INIT}}}}\ntask: classification\n\
         data: {{train: {{npy: {{xs: {:?}, ys: {:?}}}}}}}\noptimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 1}}\n",
        &MODEL["{input: [1, 8, 8], layers: ".len()..MODEL.len() - 1],
        "FILE",
        file("xs.npy"),
        file("ys.npy")
    );
    for (name, init) in [
        ("parts.pth", "key: [body, head]"),
        ("tree.pth", "key: ."),
        ("more.pth", "ignore: ['aux*', 'criterion.*', n_averaged]"),
    ] {
        let text_of = config.replace("FILE", text(&file(name))).replace("INIT", init);
        std::fs::write(file("c.yaml"), text_of).unwrap();
        // A dry run fits the weights to the network.
        let (code, stdout, stderr) =
            run(&["train", text(&file("c.yaml")), "--dry-run", "--output", text(&file("run"))]);
        assert!(code == 0, "{name}: {stdout}{stderr}");
        let without = std::fs::read_to_string(file("c.yaml")).unwrap().replace(init, "partial: false");
        std::fs::write(file("c.yaml"), without).unwrap();
        assert_eq!(run(&["train", text(&file("c.yaml")), "--dry-run"]).0, 4, "{name}");
    }
}

#[test]
fn pruned_and_normalised_weights_are_computed_as_pytorch_does() {
    let (folder, _) = script(&format!(
        "{NET}
from torch.nn.utils import prune, weight_norm, spectral_norm, parametrizations as P
import copy, warnings; warnings.simplefilter('ignore')
def fresh():
    n = Small(); n.train()
    return n
def plain(n):
    n.eval(); x = torch.zeros(1, 1, 8, 8); n(x)
    own = dict(n.state_dict())
    return {{k: (getattr(n.get_submodule(k.rsplit('.', 1)[0]), k.rsplit('.', 1)[1])).detach() for k in sd}}
nets = {{}}
n = fresh(); prune.l1_unstructured(n.conv1, 'weight', 0.5); prune.random_unstructured(n.fc, 'bias', 0.4); nets['prune'] = n
n = fresh(); weight_norm(n.conv1); weight_norm(n.fc, dim=None); nets['old'] = n
n = fresh(); P.weight_norm(n.conv1); P.weight_norm(n.fc, dim=1); nets['new'] = n
n = fresh(); spectral_norm(n.conv1); spectral_norm(n.fc); nets['oldspectral'] = n
n = fresh(); P.spectral_norm(n.conv1); P.spectral_norm(n.fc); nets['spectral'] = n
for name, n in nets.items():
    with torch.no_grad():
        for p in n.parameters(): p.add_(torch.rand_like(p) * 0.01 * (1 if name != 'prune' else 0))
    n(torch.randn(3, 1, 8, 8)); torch.save(n.state_dict(), name + '.pth')
    n.load_state_dict(torch.load(name + '.pth'))
    torch.save(plain(n), name + '.plain.pth')
broken = nets['old'].state_dict(); del broken['conv1.weight_g']; torch.save(broken, 'broken.pth')
n = fresh(); torch.nn.utils.parametrize.register_parametrization(n.fc, 'weight', torch.nn.Identity()); torch.save(n.state_dict(), 'unknown.pth')"
    ));
    for (part, how) in [
        ("prune", "pruning"),
        ("old", "weight_norm"),
        ("new", "weight_norm"),
        ("oldspectral", "spectral_norm"),
        ("spectral", "spectral_norm"),
    ] {
        let path = folder.path().join(format!("{part}.pth"));
        let (code, said) = fits(&path, &[]);
        assert!(code == 0 && said.contains(&format!("computed as {how} says")), "{part}: {said}");
        let weights = read(path.with_extension("out.safetensors"));
        // Python's own: pruning bit for bit; what a norm or σ divides to the last bit or two, for the sum in
        // it may order its terms otherwise (memory that begins elsewhere is enough).
        let truth = read(folder.path().join(format!("{part}.plain.pth")));
        assert_eq!(weights.tensors.len(), 9, "{part}");
        for (name, wanted) in truth.tensors {
            let (_, found) = weights.tensors.iter().find(|(found, _)| *found == name).unwrap();
            let apart = (found - &wanted).abs().max().double_value(&[]);
            let allowed =
                if how == "pruning" { 0.0 } else { 2e-7 * wanted.abs().max().double_value(&[]).max(1.0) };
            assert!(apart <= allowed, "{part}, {name}: {apart}");
        }
    }
    let (code, said) = fits(&folder.path().join("broken.pth"), &[]);
    assert!(code == 4 && said.contains("conv1.weight_v"), "{said}");
    let (code, said) = fits(&folder.path().join("unknown.pth"), &[]);
    assert!(code == 4 && said.contains("parametrize.remove_parametrizations"), "{said}");
}

#[test]
fn a_pickled_module_with_other_arguments_than_the_configs_is_refused_by_name() {
    let (folder, _) = script(&format!(
        "{NET}
import show as _s; Small.__module__ = 'net'; _s.Small = Small; sys.modules['net'] = _s
torch.save(Small(), 'same.pth')
torch.save(torch.nn.DataParallel(Small(padding='same')), 'parallel.pth')
torch.save({{'model': Small(eps=1e-3), 'epoch': 3}}, 'eps.pth')
torch.save(Small(mode='reflect'), 'mode.pth')
torch.save(Small(stride=2, padding=5), 'stride.pth')
m = Small(); m.bn1.momentum = None; torch.save(m, 'momentum.pth')
m = Small(); m.bn1 = torch.nn.InstanceNorm2d(4, affine=True, track_running_stats=True); torch.save(m, 'instance.pth')
m = Small(pool=torch.nn.MaxPool2d(2)); torch.save(m, 'pool.pth')"
    ));
    let file = |name: &str| folder.path().join(name);
    for name in ["same.pth", "parallel.pth"] {
        let (code, said) = fits(&file(name), &[]);
        assert!(code == 0, "{name}: {said}");
    }
    for (name, difference) in [
        ("eps.pth", "bn1 (BatchNorm2d): eps is 0.001 in the file, 1e-5 in the config"),
        ("mode.pth", "conv1 (Conv2d): padding_mode is \"reflect\" in the file, \"zeros\" in the config"),
        ("stride.pth", "conv1 (Conv2d): stride is (2, 2) in the file, 1 in the config"),
        ("stride.pth", "conv1 (Conv2d): padding is (5, 5) in the file, 1 in the config"),
        ("momentum.pth", "bn1 (BatchNorm2d): momentum is None in the file, 0.1 in the config"),
        ("instance.pth", "bn1 is a InstanceNorm2d in the file, BatchNorm2d in the config"),
    ] {
        let (code, said) = fits(&file(name), &[]);
        assert!(code == 4 && said.contains(difference), "{name}: {code} {said}");
    }
    // Layers without tensors are met under their names.
    let pooled = |kernel: u32| {
        let output = file("pool.out.safetensors");
        let layers = format!(
            "bn1: batch_norm2d, pool: {{max_pool2d: {{kernel_size: {kernel}, stride: 1, padding: 1}}}}"
        );
        let model = MODEL.replace("bn1: batch_norm2d", &layers);
        let (code, stdout, stderr) = run(&[
            "export",
            text(&file("pool.pth")),
            "--model",
            &model,
            "--to",
            "safetensors",
            "--force",
            "-o",
            text(&output),
        ]);
        (code, stdout + &stderr)
    };
    let (code, said) = pooled(3);
    assert!(
        code == 4 && said.contains("pool (MaxPool2d): kernel_size is 2 in the file, 3 in the config"),
        "{said}"
    );
    let shown = succeeds(&["inspect", text(&file("eps.pth"))]);
    assert!(
        shown.contains("bn1  torch.nn.modules.batchnorm.BatchNorm2d") && shown.contains("eps=0.001"),
        "{shown}"
    );
    let shown = succeeds(&["inspect", text(&file("eps.pth")), "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let conv = shown["modules"].as_array().unwrap().iter().find(|module| module["path"] == "conv1").unwrap();
    assert_eq!(conv["attributes"]["padding"], serde_json::json!([1, 1]));
}

#[test]
fn averaged_weights_go_before_the_raw_ones_except_where_the_optimizers_state_is_wanted() {
    let (folder, _) = script(
        "a, b = {'w': torch.ones(2)}, {'w': torch.zeros(2)}
for raw, ema in [('state_dict', 'state_dict_ema'), ('params', 'params_ema'), ('model', 'ema'), ('net', 'model_ema')]:
    torch.save({raw: a, ema: b}, raw + '.pth')",
    );
    for (raw, ema) in
        [("state_dict", "state_dict_ema"), ("params", "params_ema"), ("model", "ema"), ("net", "model_ema")]
    {
        let weights = read(folder.path().join(format!("{raw}.pth")));
        assert_eq!((weights.key.as_str(), &weights.others[..]), (ema, &[(raw.to_owned(), 1)][..]));
        let part = tikhonov::pytorch::weights::Part { raw: true, ..Default::default() };
        let path = folder.path().join(format!("{raw}.pth"));
        assert_eq!(tikhonov::pytorch::weights::read_part(&path, &part).unwrap().key, raw);
    }
}

#[test]
fn a_run_is_converted_in_the_order_of_its_network() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let layers = &MODEL["{input: [1, 8, 8], layers: ".len()..MODEL.len() - 1];
    std::fs::write(
        &config,
        format!(
            "model: {{input: [1, 16, 16], layers: {layers}}}\ntask: classification\nthreads: 1\n\
             data: {{train: {{shapes: {{count: 30, size: 16, classes: 3}}}}}}\noptimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 1}}\n"
        ),
    )
    .unwrap();
    let (output, out) = (folder.path().join("run"), folder.path().join("out.pth"));
    succeeds(&["train", text(&config), "--output", text(&output)]);
    succeeds(&["convert", text(&output), text(&out)]);
    let printed = python(&format!("import torch; print(' '.join(torch.load({out:?})))"));
    assert!(printed.starts_with("conv1.weight conv1.bias bn1.weight bn1.bias bn1.running_mean"), "{printed}");
}
