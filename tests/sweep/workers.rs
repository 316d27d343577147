//! A sweep's workers: a trial is the same there as alone, and what kills one of them costs its trial at most.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{NETWORK, lines, result};
use crate::common::{saved, succeeds, tikhonov};

fn network(home: &Path) -> String {
    let config = home.join("network.yaml");
    fs::write(&config, NETWORK).unwrap();
    config.to_str().unwrap().to_owned()
}

#[test]
fn a_trial_in_a_worker_has_the_bits_of_a_run_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let config = network(home.path());
    let output = home.path().join("sweep");
    // One worker takes all eight: other penalties, seeds and folds of the same pictures.
    let fixed = ["--over", "penalty.l2=0,1e-2", "--seeds", "2", "--folds", "2", "--final-fit", "none"];
    let more = ["--jobs", "1", "--threads", "1", "--output", output.to_str().unwrap()];
    succeeds(&[&["sweep", &config], fixed.as_slice(), &more].concat());
    for (id, l2, seed, fold) in [(0, "0", 3, 0), (3, "0", 4, 1), (6, "1e-2", 4, 0), (7, "1e-2", 4, 1)] {
        let alone = home.path().join(format!("alone-{id}"));
        let [l2, seed] = [format!("penalty.l2={l2}"), format!("seed={seed}")];
        let fold = format!("data.validation={{fold: {{of: 2, index: {fold}}}}}");
        let sets = ["--set", &l2, "--set", &seed, "--set", &fold, "--threads", "1"];
        succeeds(&[&["train", &config, "--output", alone.to_str().unwrap()], sets.as_slice()].concat());
        let trial = output.join(format!("trials/{id:04}"));
        assert!(saved(&trial, "model") == saved(&alone, "model"), "trial {id}");
        assert_eq!(result(&trial)["last"], result(&alone)["last"]);
    }
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let of_main: Vec<u32> =
        text.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // Workers are started by the threads that attend to them.
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let of_threads = tasks.flat_map(|task| {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    of_main.into_iter().chain(of_threads).collect()
}

fn kill(pid: u32) {
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Waits until `done` gives something.
fn wait<T>(child: &mut Child, what: &str, done: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(300) {
        if let Some(found) = done() {
            return found;
        }
        assert!(child.try_wait().unwrap().is_none(), "the sweep ended before {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} did not happen");
}

/// A worker that has begun to train trial `id`, as a checkpoint of it shows.
fn training(sweep: &mut Child, output: &Path, id: usize, not: Option<u32>) -> u32 {
    let pid = sweep.id();
    wait(sweep, "a trial", || {
        let begun = output.join(format!("trials/{id:04}/checkpoints/last")).exists();
        children(pid).into_iter().find(|child| begun && Some(*child) != not)
    })
}

#[test]
fn a_worker_that_is_killed_costs_nothing_once_and_its_trial_twice() {
    let home = tempfile::tempdir().unwrap();
    let config = network(home.path());
    let [undisturbed, once, twice] = ["undisturbed", "once", "twice"].map(|name| home.path().join(name));
    let start = |output: &Path, more: &[&str]| {
        let fixed = ["--over", "penalty.l2=0,1e-2,1e-1", "--jobs", "1", "--threads", "1"];
        let mut command = tikhonov();
        command
            .args(["sweep", &config])
            .args(fixed)
            .args(["--set", "train.epochs=4", "--output"])
            .arg(output);
        command.args(more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    assert!(start(&undisturbed, &[]).wait().unwrap().success());

    let mut sweep = start(&once, &[]);
    kill(training(&mut sweep, &once, 0, None));
    assert!(sweep.wait().unwrap().success());
    assert_eq!(result(&once), result(&undisturbed));

    let mut sweep = start(&twice, &[]);
    let first = training(&mut sweep, &twice, 0, None);
    kill(first);
    kill(training(&mut sweep, &twice, 0, Some(first)));
    assert!(sweep.wait().unwrap().success());
    let endings: Vec<_> = lines(&twice).iter().map(|line| line["ending"].clone()).collect();
    assert_eq!(endings, ["crashed", "done", "done"]);
    assert_eq!(result(&twice)["points"][0]["crashed"], 1);
    // Another day there is memory for it.
    assert!(start(&twice, &["--resume"]).wait().unwrap().success());
    assert_eq!(result(&twice), result(&undisturbed));
}

#[test]
fn a_sweep_that_is_killed_leaves_no_worker_behind() {
    let home = tempfile::tempdir().unwrap();
    let config = network(home.path());
    let output = home.path().join("sweep");
    let mut sweep = tikhonov()
        .args(["sweep", &config, "--over", "penalty.l2=0,1e-2", "--jobs", "2", "--threads", "1"])
        .args(["--set", "train.epochs=1000", "--output", output.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    training(&mut sweep, &output, 0, None);
    training(&mut sweep, &output, 1, None);
    let workers = children(sweep.id());
    assert!(workers.len() >= 2, "{workers:?}");
    sweep.kill().unwrap();
    sweep.wait().unwrap();
    let is_alive = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        name.contains("sweep-worker")
    };
    let began = Instant::now();
    while workers.iter().any(is_alive) {
        assert!(began.elapsed() < Duration::from_secs(60), "workers outlive their sweep");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_workers_memory_does_not_grow_from_trial_to_trial() {
    let home = tempfile::tempdir().unwrap();
    let config = network(home.path());
    let output = home.path().join("sweep");
    let mut sweep = tikhonov()
        .args(["sweep", &config, "--over", "penalty.l2=1e-4:1e-1:log:24", "--jobs", "1", "--threads", "1"])
        .args(["--set", "train.epochs=1", "--output", output.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = sweep.id();
    // The most memory that the worker ever had, in KiB, when so many trials were over.
    let peak = |sweep: &mut Child, trials: usize| {
        wait(sweep, "the trials", || {
            let over = fs::read_to_string(output.join("trials.jsonl")).map_or(0, |text| text.lines().count());
            let worker = *children(pid).first()?;
            let status = fs::read_to_string(format!("/proc/{worker}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            let peak: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
            (over >= trials).then_some(peak)
        })
    };
    let (early, late) = (peak(&mut sweep, 4), peak(&mut sweep, 22));
    assert!(sweep.wait().unwrap().success());
    assert!(late < early + early / 50, "{early} KiB after 4 trials, {late} KiB after 22");
}
