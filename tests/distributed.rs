//! Several processes that share a run, on gloo: the same weights as one process, one decision for all, and what becomes
//! of the others when one fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{outcome, python, python_path, records, run, saved, succeeds, tikhonov, write_config};
use crate::pretend_cuda::difference;

const CNN: &str = "{input: [1, 16, 16], layers: {conv: {conv2d: {out_channels: 4, kernel_size: 3}}, \
                   bn: batch_norm2d, _relu: relu, _pool: {adaptive_avg_pool2d: {output_size: 2}}, _flat: flatten, \
                   fc: {linear: {out_features: 10}}}}";
const PLAIN: &str = "{input: [1, 16, 16], layers: {conv: {conv2d: {out_channels: 4, kernel_size: 3}}, _relu: relu, \
                     _pool: {adaptive_avg_pool2d: {output_size: 2}}, _flat: flatten, fc: {linear: {out_features: 10}}}}";

/// A config on drawn shapes: 203 samples to learn from in batches of 8.
fn config(model: &str, rest: &str) -> String {
    format!(
        "seed: 3\nthreads: 1\nmodel: {model}\ndata:\n  train: {{shapes: {{count: 203, size: 16}}}}\n  test: {{shapes: \
         {{count: 40, size: 16}}}}\n  batch_size: 8\n{rest}"
    )
}

struct Home(tempfile::TempDir, String);

impl Home {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = write_config(folder.path(), text);
        Self(folder, config)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args<'a>(&'a self, output: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        [&["train", &self.1, "--quiet", "--output", output.to_str().unwrap()], more].concat()
    }

    /// Trains by so many processes of this machine.
    fn by(&self, ranks: usize, name: &str, more: &[&str]) -> PathBuf {
        let (output, devices) = (self.at(name), vec!["cpu"; ranks].join(","));
        succeeds(&self.args(&output, &[&["--devices", &devices], more].concat()));
        output
    }

    /// Trains by one process.
    fn alone(&self, name: &str, more: &[&str]) -> PathBuf {
        let output = self.at(name);
        succeeds(&self.args(&output, &[&["--device", "cpu"], more].concat()));
        output
    }
}

/// The parameters' largest difference; running statistics are those of rank 0's samples alone, as in PyTorch.
fn parameters_differ(one: &Path, two: &Path) -> f64 {
    let trimmed = |run: &Path| {
        let out = run.join("parameters");
        let folder = out.join("checkpoints/last");
        fs::create_dir_all(&folder).unwrap();
        let tensors = tch::Tensor::read_safetensors(run.join("checkpoints/last/model.safetensors")).unwrap();
        let kept: Vec<_> = tensors
            .iter()
            .filter(|(name, _)| !name.contains("running") && !name.contains("num_batches"))
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        tch::Tensor::write_safetensors(&kept, folder.join("model.safetensors")).unwrap();
        out
    };
    difference(&trimmed(one), &trimmed(two))
}

#[test]
fn ranks_learn_what_one_process_learns_that_accumulates_their_batches() {
    // 5 epochs: 65 steps of two ranks, the last of an epoch with one batch of three samples for one of them alone.
    let sgd = "task: classification\npenalty: {l2: 1.0e-3, l1: 1.0e-4}\noptimizer: {sgd: {lr: 0.05, momentum: 0.9}}\n\
               train: {epochs: 5, clip: {norm: 1.0}, log_every: 7}\n";
    let adam = "task: classification\npenalty: {decoupled: 0.1}\noptimizer: {adamw: {lr: 0.003}}\nschedule: {cosine: {}}\n\
                train: {epochs: 3, accumulate: 2, ema: {decay: 0.9}}\n";
    let weighted = "task: classification\nbalance: {loss: [0.2, 1, 3, 0.5, 1, 1, 2, 1, 1, 1]}\noptimizer: {sgd: {lr: 0.05}}\ntrain: {epochs: 2}\n";
    let gradient = "task: classification\npenalty: {input_gradient: 0.1}\noptimizer: {sgd: {lr: 0.05}}\ntrain: {epochs: 2}\n";
    let sam = "task: classification\noptimizer: {sgd: {lr: 0.05}}\ntrain: {epochs: 2, sam: {rho: 0.05}}\n";
    let recomputed =
        "task: classification\noptimizer: {sgd: {lr: 0.05}}\ntrain: {epochs: 2, checkpoint_activations: 2}\n";
    for (name, model, rest, ranks, accumulate) in [
        ("sgd", CNN, sgd, 2, 2),
        ("four", CNN, sgd, 4, 4),
        ("adam", PLAIN, adam, 2, 4),
        ("three", PLAIN, weighted, 3, 3),
        ("gradient", PLAIN, gradient, 2, 2),
        ("sam", PLAIN, sam, 2, 2),
        ("recomputed", PLAIN, recomputed, 2, 2),
    ] {
        let home = Home::new(&config(model, rest));
        let together = home.by(ranks, "together", &[]);
        let alone = home.alone("alone", &["--set", &format!("train.accumulate={accumulate}")]);
        let apart = parameters_differ(&together, &alone);
        assert!(apart < 1e-6, "{name}: the weights differ by {apart:e}");
        for kind in ["step", "epoch"] {
            let [ours, theirs] = [&together, &alone].map(|run| records(run, kind));
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (own, their) in ours.iter().zip(&theirs) {
                let [own, their] = [own, their].map(|record| record["loss"].as_f64().unwrap());
                assert!((own - their).abs() < 1e-5, "{name}: {kind} loss {own} and {their}");
            }
        }
        let log = |rank: usize| together.join(format!("ranks/{rank}/log.txt")).exists();
        assert!((1..ranks).all(log) && !log(ranks), "each rank but the first has a log of its own");
    }
}

#[test]
fn losses_that_are_no_mean_over_samples_are_those_of_all_ranks_together() {
    // Dice of a whole batch: a function of sums over all of its pixels.
    let pictures = tempfile::tempdir().unwrap();
    let script = format!(
        "import numpy as np, os\nfrom PIL import Image\nr = np.random.RandomState(0)\n\
         for n in ('im', 'mk'): os.makedirs('{0}/' + n)\n\
         for i in range(13):\n    m = r.rand(16, 16) < r.rand()\n    \
         Image.fromarray((m * 150 + r.rand(16, 16) * 100).astype('uint8')).save(f'{0}/im/{{i}}.png')\n    \
         Image.fromarray(m.astype('uint8')).save(f'{0}/mk/{{i}}.png')\n",
        pictures.path().display()
    );
    python(&script);
    let images = format!(
        "{{images: {{root: {0}/im, mode: grey, patch: 16, mask: {{root: {0}/mk, classes: [a, b]}}}}}}",
        pictures.path().display()
    );
    let model = "{input: [1, 16, 16], layers: {a: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}, _t: tanh, \
                 b: {conv2d: {out_channels: 2, kernel_size: 1}}}}";
    let text = format!(
        "threads: 1\nmodel: {model}\ntask: {{segmentation: {{class_weights: [0.3, 2]}}}}\ndata: {{train: {images}, batch_size: 2}}\n\
         optimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 4}}\n"
    );
    let home = Home::new(&text);
    let together = home.by(2, "together", &[]);
    let alone = home.alone("alone", &["--set", "train.accumulate=2"]);
    let apart = difference(&together, &alone);
    assert!(apart < 1e-6, "the weights differ by {apart:e}");
}

const JOB: &str = "task: classification\npenalty: {l2: 1.0e-3}\noptimizer: {sgd: {lr: 0.05, momentum: 0.9}}\n\
                   train: {epochs: 400, log_every: 1, checkpoint: {every_steps: 4}}\n";

/// Starts the ranks without a launcher; `more` are the arguments of single ranks.
fn ranks(home: &Home, output: &Path, port: u16, more: [&[&str]; 2]) -> [Child; 2] {
    std::array::from_fn(|rank| {
        tikhonov()
            .args(home.args(output, &[&["--device", "cpu"], more[rank]].concat()))
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("LOCAL_WORLD_SIZE", "2")
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("TIKHONOV_DIST_TIMEOUT", "20")
            .env("TORCHELASTIC_ERROR_FILE", output.with_extension(format!("error{rank}")))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    })
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until a run has made some steps.
fn underway(output: &Path, steps: usize) {
    let began = Instant::now();
    let lines = || fs::read_to_string(output.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    while lines() < steps {
        assert!(began.elapsed() < Duration::from_secs(60), "the run does not come on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn ended(children: [Child; 2]) -> [(i32, String); 2] {
    children.map(|child| {
        let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
        (code, stderr)
    })
}

#[test]
fn when_a_rank_is_killed_the_other_ends_with_8_and_names_it() {
    let home = Home::new(&config(CNN, JOB));
    let output = home.at("run");
    let mut job = ranks(&home, &output, free_port(), [&[], &[]]);
    underway(&output, 3);
    job[1].kill().unwrap();
    let killed = Instant::now();
    let [(first, stderr), _] = ended(job);
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!(first, 8, "{stderr}");
    assert!(stderr.contains("rank 1 is lost"), "{stderr}");
    let told = fs::read_to_string(output.with_extension("error0")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(told["message"]["message"].as_str().unwrap().contains("rank 1 is lost"));
    assert!(told["message"]["extraInfo"]["timestamp"].as_str().unwrap().parse::<u64>().is_ok());
    // What was saved is whole, and one process may go on with it.
    let (code, _, stderr) = run(&home.args(
        &output,
        &["--device", "cpu", "--resume", "--set", "train.accumulate=2", "--set", "train.epochs=3"],
    ));
    assert!(code == 0, "{code} {stderr}");
}

#[test]
fn a_signal_to_one_rank_stops_all_at_the_same_step_and_a_resume_ends_as_if_there_had_been_none() {
    let home = Home::new(&config(CNN, &JOB.replace("epochs: 400", "epochs: 40")));
    let whole = home.by(2, "whole", &[]);
    let output = home.at("run");
    let job = ranks(&home, &output, free_port(), [&[], &[]]);
    underway(&output, 20);
    signal(&job[1], "-TERM");
    let [(first, stderr), (second, silent)] = ended(job);
    assert_eq!((first, second), (75, 75), "{stderr}{silent}");
    assert!(stderr.contains("interrupted and saved at step") && silent.is_empty(), "{stderr}{silent}");
    home.by(2, "run", &["--resume"]);
    for part in ["model", "optimizer"] {
        assert!(saved(&whole, part) == saved(&output, part), "{part}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_processes_through_the_same_batches() {
    let home = Home::new(&config(PLAIN, &JOB.replace("epochs: 400", "epochs: 4")));
    let whole = home.alone("whole", &["--set", "train.accumulate=4"]);
    let steps = |count: u32| format!("train.epochs={count}");
    home.by(4, "run", &["--set", &steps(2)]);
    home.by(2, "run", &["--resume", "--set", "train.accumulate=2", "--set", &steps(3)]);
    let output = home.alone("run", &["--resume", "--set", "train.accumulate=4"]);
    let apart = difference(&whole, &output);
    assert!(apart < 1e-6, "{apart:e}");
    let log = fs::read_to_string(output.join("log.txt")).unwrap();
    assert!(
        log.contains("resuming with 2 processes instead of 4: a step has as many batches as before"),
        "{log}"
    );
    home.by(2, "run", &["--resume", "--set", &steps(5)]);
    let log = fs::read_to_string(output.join("log.txt")).unwrap();
    assert!(
        log.contains("resuming with 2 processes instead of 1: a step has 2 batches instead of 4"),
        "{log}"
    );
}

#[test]
fn ranks_that_were_started_differently_refuse_each_other() {
    let home = Home::new(&config(PLAIN, JOB));
    for (more, words) in [
        (["--set", "optimizer.sgd.lr=0.5"], "optimizer.sgd.lr: rank 0 has 0.05, is 0.5"),
        (["--set", "data.train.shapes.count=204"], "data.train.shapes.count: rank 0 has 203, is 204"),
    ] {
        let job = ranks(&home, &home.at("run"), free_port(), [&[], &more]);
        let [(first, stderr), (second, other)] = ended(job);
        assert_eq!((first, second), (8, 8), "{stderr}{other}");
        assert!(
            stderr.contains("rank 1") && stderr.contains(words) && other.contains(words),
            "{stderr}{other}"
        );
    }
    assert!(!home.at("run/checkpoints").exists());
    // What is wrong on one rank ends the other, too.
    let file = home.at("broken.npy").to_str().unwrap().to_owned();
    fs::write(&file, "no array").unwrap();
    let broken = ["--set", &format!("data.train={{npy: {{xs: {file}, ys: {file}}}}}")];
    let job = ranks(&home, &home.at("run"), free_port(), [&[], &broken]);
    let [(first, stderr), (second, other)] = ended(job);
    assert_eq!((first, second), (8, 3), "{stderr}{other}");
    assert!(stderr.contains("rank 1 failed") && stderr.contains(&file), "{stderr}");
}

#[test]
fn numbers_that_break_and_disks_that_are_full_end_all_ranks_with_one_code() {
    let home = Home::new(&config(PLAIN, JOB));
    let devices = ["--devices", "cpu,cpu", "--set", "optimizer.sgd.lr=1.0e30"];
    let (code, _, stderr) = run(&home.args(&home.at("nan"), &devices));
    assert!(code == 5 && stderr.contains("NaN or infinite"), "{code} {stderr}");
    let output = home.at("full");
    let args = home.args(&output, &["--devices", "cpu,cpu"]).join(" ");
    let limited = format!("ulimit -f 4; exec {} {args}", env!("CARGO_BIN_EXE_tikhonov"));
    let (code, _, stderr) = outcome(Command::new("bash").args(["-c", &limited]).output().unwrap());
    assert!(code == 7 && stderr.contains("ulimit -f"), "{code} {stderr}");
}

#[test]
fn half_an_environment_and_a_master_that_is_not_there_are_named() {
    let home = Home::new(&config(PLAIN, JOB));
    let output = home.at("run");
    let with = |variables: &[(&str, &str)]| {
        let mut command = tikhonov();
        command.args(home.args(&output, &["--device", "cpu"])).envs(variables.iter().copied());
        let (code, _, stderr) = outcome(command.env("TIKHONOV_DIST_TIMEOUT", "1").output().unwrap());
        (code, stderr)
    };
    let (code, stderr) = with(&[("RANK", "0")]);
    assert!(code == 2 && stderr.contains("WORLD_SIZE is not"), "{code} {stderr}");
    let port = free_port().to_string();
    let whole = |rank| {
        [("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())]
    };
    for (rank, words) in [("1", "rank 1 of 2 could not join"), ("0", "(1/2 ranks came)")] {
        let (code, stderr) = with(&whole(rank));
        assert!(code == 8 && stderr.contains(words) && stderr.contains(&port), "{code} {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn devices_that_do_not_go_together_are_refused() {
    let home = Home::new(&config(PLAIN, JOB));
    for (devices, words) in [
        ("cpu,cuda:0", "do not go together"),
        ("cuda:1,cuda:1", "serves one process"),
        ("auto,cpu", "`auto`"),
    ] {
        let (code, _, stderr) = run(&home.args(&home.at("run"), &["--devices", devices]));
        assert!(code == 2 && stderr.contains(words), "{stderr}");
    }
}

#[test]
fn torchrun_starts_a_job_and_what_it_starts_anew_goes_on() {
    let torchrun = python_path().with_file_name("torchrun");
    if !torchrun.exists() {
        eprintln!("SKIPPED torchrun_starts_a_job: there is no {}", torchrun.display());
        return;
    }
    let home = Home::new(&config(CNN, &JOB.replace("epochs: 400", "epochs: 30")));
    let whole = home.by(2, "whole", &[]);
    let output = home.at("run");
    let mut command = Command::new(torchrun);
    command
        .args(["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"])
        .args(["--no-python", env!("CARGO_BIN_EXE_tikhonov")])
        .args(home.args(&output, &["--device", "cpu"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let job = command.spawn().unwrap();
    underway(&output, 20);
    // The second rank, by what its command line and its environment say.
    let pattern = format!("train .*{}", output.display());
    let listed = Command::new("pgrep").args(["-f", &pattern]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let is_second = |pid: &&str| {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| {
            let all = String::from_utf8_lossy(&all).into_owned();
            all.split('\0').any(|variable| variable == "RANK=1")
        })
    };
    let second = listed.lines().find(is_second).expect("the second rank runs");
    assert!(Command::new("kill").args(["-KILL", second]).status().unwrap().success());
    let (code, _, stderr) = outcome(job.wait_with_output().unwrap());
    assert_eq!(code, 0, "{stderr}");
    for part in ["model", "optimizer"] {
        assert!(saved(&whole, part) == saved(&output, part), "{part}");
    }
}
