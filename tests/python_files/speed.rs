//! Time to load a 100 MB file and sum its tensors beside PyTorch, by hand:
//! `cargo test --release -- --ignored loading --nocapture`.

use std::process::Command;
use std::time::Instant;

use super::{read, sample, script};
use crate::common::python_path;

const REPEATS: usize = 9;
const FILE: &str = "TIKHONOV_SPEED_FILE";

/// Loads and sums once per call; a file that is only mapped into memory has not been read yet. Prints (first,
/// best of 10) in seconds.
const PYTHON: &str = "
import sys, time, torch
from safetensors.torch import load_file
file = sys.argv[1]; times = []
for _ in range(10):
    t = time.perf_counter()
    s = load_file(file) if file.endswith('.safetensors') else torch.load(file, weights_only=True)
    n = sum(float(v.sum()) for v in s.values()); times.append(time.perf_counter() - t); del s
print('TIMES', times[0], min(times))";

#[test]
#[ignore = "a measurement, not a test"]
fn loading_a_file_of_100_mb_against_pytorch() {
    if let Ok(file) = std::env::var(FILE) {
        let times: Vec<f64> = (0..10).map(|_| seconds(&file)).collect();
        println!("TIMES {} {}", times[0], times.iter().copied().fold(f64::INFINITY, f64::min));
        return;
    }
    // 25 tensors of 4 MB and some small ones, as a ResNet has.
    let (folder, _) = script(
        "state = OrderedDict()
for i in range(25): state[f'{i}.weight'] = torch.randn(1024, 1024); state[f'{i}.bias'] = torch.randn(1024)
torch.save(state, 'zip.pt'); torch.save(state, 'legacy.pt', _use_new_zipfile_serialization=False)
from safetensors.torch import save_file
save_file(state, 'a.safetensors')",
    );
    // On one core our reading threads are one thread too.
    for cores in ["0", "0-3"] {
        for name in ["zip.pt", "legacy.pt", "a.safetensors"] {
            let file = sample(&folder, name).display().to_string();
            let mut times: [Vec<[f64; 3]>; 2] = Default::default();
            for _ in 0..REPEATS {
                let mut ours = pinned(cores, &std::env::current_exe().unwrap());
                ours.args(["--ignored", "--nocapture", "loading_a_file"]).env(FILE, &file);
                let mut theirs = pinned(cores, &python_path());
                theirs.args(["-c", PYTHON, &file]);
                for (times, command) in times.iter_mut().zip([ours, theirs]) {
                    times.push(measured(command));
                }
            }
            for (which, what) in ["first load", "best of 10 loads", "whole process"].into_iter().enumerate() {
                let [ours, theirs] = times.each_ref().map(|times| median(times, which));
                println!(
                    "cores {cores:4} {name:14} {what:17} {:7.1} ms, PyTorch {:7.1} ms: {:.2} times its time",
                    ours * 1e3,
                    theirs * 1e3,
                    ours / theirs
                );
            }
        }
    }
}

fn seconds(file: &str) -> f64 {
    let start = Instant::now();
    let weights = read(file);
    let sum: f64 = weights.tensors.iter().map(|(_, tensor)| tensor.sum(None).double_value(&[])).sum();
    assert!(sum.is_finite());
    start.elapsed().as_secs_f64()
}

fn pinned(cores: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program).env("OMP_NUM_THREADS", "1");
    command
}

/// First load, best load, and the process with ten loads from start to end.
fn measured(mut command: Command) -> [f64; 3] {
    let start = Instant::now();
    let output = command.output().unwrap();
    let whole = start.elapsed().as_secs_f64();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| {
        let (_, numbers) = line.split_once("TIMES ")?;
        numbers.split(' ').map(|word| word.parse().ok()).collect::<Option<Vec<f64>>>()
    });
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    [line[0], line[1], whole]
}

fn median(times: &[[f64; 3]], which: usize) -> f64 {
    let mut times: Vec<f64> = times.iter().map(|times| times[which]).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
