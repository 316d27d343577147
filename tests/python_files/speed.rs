//! Time to load a 100 MB file and sum its tensors against PyTorch's, by hand: `cargo test --release -- --ignored loading --nocapture`.

use std::time::Instant;

use super::{read, sample, script};

#[test]
#[ignore = "a measurement, not a test"]
fn loading_a_file_of_100_mb_against_pytorch() {
    // 24 tensors of 4 MB and some small ones, as a ResNet has.
    let (folder, printed) = script(
        "import time
state = OrderedDict()
for i in range(25): state[f'{i}.weight'] = torch.randn(1024, 1024); state[f'{i}.bias'] = torch.randn(1024)
torch.save(state, 'zip.pt'); torch.save(state, 'legacy.pt', _use_new_zipfile_serialization=False)
loads = {'zip.pt': lambda: torch.load('zip.pt', weights_only=True), 'legacy.pt': lambda: torch.load('legacy.pt', weights_only=True)}
try:
    from safetensors.torch import save_file, load_file
    save_file(state, 'a.safetensors'); loads['a.safetensors'] = lambda: load_file('a.safetensors')
except ImportError: pass
for name, load in loads.items():
    best = 9e9; first = None
    for _ in range(20):
        t = time.perf_counter(); s = load(); n = sum(float(v.sum()) for v in s.values()); t = time.perf_counter() - t; first = first or t; best = min(best, t); del s
    print(name, first, best)",
    );
    for line in printed.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let theirs: Vec<f64> = fields[1..].iter().map(|field| field.parse().unwrap()).collect();
        let times: Vec<f64> = (0..20)
            .map(|_| {
                let start = Instant::now();
                let weights = read(sample(&folder, fields[0]));
                // A file that is only mapped into memory has not been read yet.
                let sum: f64 =
                    weights.tensors.iter().map(|(_, tensor)| tensor.sum(None).double_value(&[])).sum();
                assert!(sum.is_finite());
                start.elapsed().as_secs_f64()
            })
            .collect();
        let ours = [times[0], times.iter().copied().fold(f64::INFINITY, f64::min)];
        for (which, ours, theirs) in [("first", ours[0], theirs[0]), ("best of 20", ours[1], theirs[1])] {
            let (name, ratio) = (fields[0], ours / theirs);
            println!(
                "{name}, {which}: {:.1} ms, PyTorch {:.1} ms: {ratio:.2} times its time",
                ours * 1e3,
                theirs * 1e3
            );
        }
    }
}
