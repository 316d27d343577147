//! What convert writes, Python loads.

use tch::{Kind, Tensor};
use tikhonov::pytorch::writer;

use super::{digest, read, sample, script};
use crate::common::{python, run};

fn convert(args: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = run(&[&["convert"], args].concat());
    (code, stdout + &stderr)
}

#[test]
fn a_converted_state_dict_opens_with_weights_only_and_equals_the_original() {
    let (folder, printed) = script(
        "names = 'bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128 float8_e4m3fn float8_e5m2'.split()
state = OrderedDict((n, (torch.randn(3, 5) * 50).to(getattr(torch, n))) for n in names)
state['ünïcode'] = torch.tensor(3.5); state['empty'] = torch.zeros(0, 3)
state['tied'] = state['float32']; state['turned'] = state['float32'].t(); state['half'] = state['float64'][1:, ::2]
torch.save(state, 'in.pth'); show(state)",
    );
    let (input, output) = (sample(&folder, "in.pth"), sample(&folder, "out.pt"));
    let (code, text) = convert(&[input.to_str().unwrap(), output.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(digest(&read(&output).tensors), printed);
    let loaded = python(&format!(
        "{}
state = torch.load({output:?}, weights_only=True)
assert type(state) is OrderedDict
assert state['tied'].data_ptr() == state['float32'].data_ptr() == state['turned'].data_ptr()
assert torch.load({output:?}, weights_only=True, mmap=True)['tied'].shape == (3, 5)
z = zipfile.ZipFile({output:?})
assert z.testzip() is None
show(state)",
        super::SHOW
    ));
    assert_eq!(loaded, printed);
}

#[test]
fn a_converted_safetensors_file_holds_the_same_bytes_and_metadata() {
    let (folder, printed) = script(
        "m = Net(); torch.save({'net': m.state_dict(), 'epoch': 4}, 'in.pth'); show(dict(sorted(m.state_dict().items())))",
    );
    let (input, output) = (sample(&folder, "in.pth"), sample(&folder, "out.safetensors"));
    assert_eq!(convert(&[input.to_str().unwrap(), output.to_str().unwrap()]).0, 0);
    // The format is plain enough to check without the package: length, JSON, bytes.
    let loaded = python(&format!(
        "{}
import json
raw = open({output:?}, 'rb').read(); n = int.from_bytes(raw[:8], 'little'); head = json.loads(raw[8:8+n])
assert head.pop('__metadata__') == {{'epoch': '4', 'format': 'pt'}} and n % 8 == 0
for name, t in sorted(head.items()):
    a, b = t['data_offsets']
    dtype = {{'F32': 'float32', 'I64': 'int64'}}[t['dtype']]
    print(name, dtype, t['shape'], hashlib.sha256(raw[8+n+a:8+n+b]).hexdigest())",
        super::SHOW
    ));
    assert_eq!(loaded, printed);
    let back = sample(&folder, "back.pt");
    assert_eq!(convert(&[output.to_str().unwrap(), back.to_str().unwrap()]).0, 0);
    let mut lines: Vec<_> = digest(&read(&back).tensors).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines.join("\n") + "\n", printed);
}

#[test]
fn convert_strips_renames_and_narrows_and_says_when_a_rule_fits_nothing() {
    let (folder, printed) = script(
        "m = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)))
torch.save(m.state_dict(), 'in.pth')
show({'layer_' + k[7:]: v.bfloat16() if v.is_floating_point() else v for k, v in m.state_dict().items()})",
    );
    let (input, output) = (sample(&folder, "in.pth"), sample(&folder, "out.pt"));
    let (input, out) = (input.to_str().unwrap(), output.to_str().unwrap());
    let (code, text) = convert(&[input, out, "--strip", "module.", "--rename", r"^(\d)=>layer_$1", "--bf16"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(digest(&read(&output).tensors), printed);

    for (rule, message) in [
        (["--strip", "net."], "fits no name"),
        (["--rename", "zzz=>y"], "fits no name"),
        (["--rename", r".*=>same"], "two tensors are called"),
        (["--rename", "(=>x"], "unclosed group"),
    ] {
        let (code, text) = convert(&[&[input, out, "--force"], &rule[..]].concat());
        assert!(code == 2 && text.contains(message), "{code} {text}");
    }
    let (code, text) = convert(&[input, out]);
    assert!(code == 2 && text.contains("--force replaces it"), "{text}");
}

#[test]
fn convert_never_writes_over_its_input_and_leaves_no_partial_file() {
    let (folder, _) = script("torch.save({'w': torch.ones(1)}, 'in.pt'); os.symlink('in.pt', 'link.pt')");
    let (input, link) = (sample(&folder, "in.pt"), sample(&folder, "link.pt"));
    let before = std::fs::read(&input).unwrap();
    for output in [&input, &link] {
        let (code, text) = convert(&[input.to_str().unwrap(), output.to_str().unwrap()]);
        assert!(code == 2 && text.contains("would replace the input"), "{text}");
    }
    assert_eq!(std::fs::read(&input).unwrap(), before);
    let missing = sample(&folder, "no/such/out.pt");
    assert_eq!(convert(&[input.to_str().unwrap(), missing.to_str().unwrap()]).0, 7);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_tensor_that_is_not_contiguous_is_written_with_its_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    let base = Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).view([2, 3, 4]);
    let state = vec![
        ("x".to_owned(), base.permute([2, 0, 1])),
        ("y".to_owned(), Tensor::ones([1, 1], (Kind::Half, tch::Device::Cpu)).expand([3, 4], false)),
    ];
    writer::write(&path, &state).unwrap();
    let printed = python(&format!(
        "import torch; s = torch.load({path:?}, weights_only=True)
print(torch.equal(s['x'], torch.arange(24.).view(2, 3, 4).permute(2, 0, 1)), torch.equal(s['y'], torch.ones(3, 4).half()))"
    ));
    assert_eq!(printed, "True True\n");
}

#[test]
#[ignore = "writes nine gigabytes and needs five of memory"]
fn a_file_beyond_four_gigabytes_is_written_and_read_in_zip64() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    let big = Tensor::full([(1 << 32) + 5], 3, (Kind::Uint8, tch::Device::Cpu));
    let state = vec![("big".to_owned(), big), ("small".to_owned(), Tensor::from_slice(&[1.5f32]))];
    writer::write(&path, &state).unwrap();
    drop(state);
    let printed = python(&format!(
        "import torch; s = torch.load({path:?}, weights_only=True, mmap=True)
print(s['big'].shape[0], s['big'][-1].item(), s['small'].item()); torch.save(dict(s), {:?})",
        folder.path().join("y.pt"),
    ));
    assert_eq!(printed, "4294967301 3 1.5\n");
    for file in ["x.pt", "y.pt"] {
        let weights = read(folder.path().join(file));
        assert_eq!(weights.tensors[0].1.size(), [(1 << 32) + 5]);
        assert_eq!(weights.tensors[0].1.get(1 << 32).int64_value(&[]), 3);
        assert_eq!(weights.tensors[1].1.double_value(&[0]), 1.5);
    }
}
