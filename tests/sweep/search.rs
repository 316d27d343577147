//! Pruning, TPE, and sweeps that a config declares.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{LINEAR, lines, result, table};
use crate::common::{killed_at, records, run, succeeds};

/// The linear model, judged after each of 8 epochs.
const EPOCHS: [&str; 4] = ["--set", "train.epochs=8", "--set", "train.eval_every=1"];

/// Kills the sweep a moment after so many of its trials are over; resumes it until it is done.
pub fn killed_after(arguments: &[&str], output: &Path, moments: &[usize]) {
    let resumed = [arguments, &["--output", output.to_str().unwrap(), "--resume"]].concat();
    killed_at(moments, &output.join("trials.jsonl"), &resumed);
}

fn told(folder: &Path) -> Vec<(Value, Value, Value)> {
    let one = |line: &Value| (line["ending"].clone(), line["epoch"].clone(), line["score"].clone());
    lines(folder).iter().map(one).collect()
}

#[test]
fn halving_gives_trials_up_as_its_rule_says_and_keeps_to_it_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let output = home.path().join("whole");
    // The smaller the rate, the less is learnt in 8 epochs: the first is the best, and never given up.
    let fixed =
        ["sweep", &config, "--over", "optimizer.sgd.lr=0.1,0.05,0.02,0.01,0.005,0.002", "--jobs", "1"];
    let prune = ["--prune", "{halving: {warmup: 2, factor: 2}}"];
    let arguments = [fixed.as_slice(), &EPOCHS, &prune].concat();
    let (code, stdout, stderr) =
        run(&[arguments.as_slice(), &["--output", output.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{stderr}");
    let told_whole = told(&output);
    let endings: Vec<_> = told_whole.iter().map(|one| (one.0.as_str().unwrap(), one.1.as_u64())).collect();
    // At the rung of epoch 2: one place among two and three, two among four and five, three among six.
    let pruned = ("pruned", Some(2));
    assert_eq!(endings, [("done", None), pruned, pruned, pruned, pruned, pruned]);
    assert!(stdout.contains("pruned") && stdout.contains("* best: optimizer.sgd.lr=0.1"), "{stdout}");
    assert_eq!(result(&output)["points"][1]["pruned"], 1);
    assert!(stderr.contains("pruned after epoch 2"), "{stderr}");
    // The score is the one after that epoch, as the run itself recorded it.
    let epochs = records(&output.join("trials/0001"), "epoch");
    assert_eq!((epochs.len(), &epochs[1]["validation"]["mse"]), (2, &told_whole[1].2));

    let killed = home.path().join("killed");
    killed_after(&arguments, &killed, &[0, 2, 4]);
    assert_eq!(told(&killed), told_whole);
    assert_eq!(result(&killed), result(&output));
}

#[test]
fn the_median_rule_spares_the_first_and_the_better_half() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let output = home.path().join("sweep");
    let fixed = ["sweep", &config, "--over", "optimizer.sgd.lr=0.01,0.02,0.03,0.005,0.1", "--jobs", "1"];
    let prune = ["--prune", "{median: {warmup: 2, startup: 3}}", "--output", output.to_str().unwrap()];
    succeeds(&[fixed.as_slice(), &EPOCHS, &prune].concat());
    let endings: Vec<_> = told(&output).into_iter().map(|one| (one.0, one.1)).collect();
    let done = |ending: &(Value, Value)| ending.0 == "done";
    assert!(endings[..3].iter().all(done) && done(&endings[4]), "{endings:?}");
    assert_eq!(endings[3], ("pruned".into(), 3.into()), "in the first epoch after the warm-up");
}

#[test]
fn tpe_is_the_same_after_a_kill_and_each_seed_has_its_own() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let fixed =
        ["sweep", &config, "--over", "penalty.l2=1e-4:10:log:2", "--over", "optimizer.sgd.lr=1e-3:0.1:log:2"];
    let search = ["--search", "tpe", "--trials", "16", "--jobs", "1", "--set", "train.epochs=30"];
    let arguments = [fixed.as_slice(), &search].concat();
    let [whole, killed, other] = ["whole", "killed", "other"].map(|name| home.path().join(name));
    let sweep = |output: &Path, more: &[&str]| {
        succeeds(&[&arguments, more, &["--output", output.to_str().unwrap()]].concat());
    };
    sweep(&whole, &[]);
    let points = |folder: &Path| lines(folder).iter().map(|line| line["point"].clone()).collect::<Vec<_>>();
    assert_eq!(points(&whole).len(), 16);
    killed_after(&arguments, &killed, &[3, 11, 13]);
    assert_eq!(points(&killed), points(&whole));
    assert_eq!(result(&killed), result(&whole));
    sweep(&other, &["--set", "seed=1"]);
    assert_ne!(points(&other)[..5], points(&whole)[..5]);
}

#[test]
fn a_sweep_that_the_config_declares_is_one_of_the_command_line_and_no_matter_to_train() {
    let home = tempfile::tempdir().unwrap();
    table(home.path());
    let config = home.path().join("declared.yaml");
    let table = home.path().join("table.csv");
    let section = "
sweep:
  over: {penalty.l2: '1e-2:1:log:3', optimizer.sgd.lr: [0.1, 0.05]}
  folds: 3
  seeds: 2
  prune: {median: {warmup: 20}}
  final_fit: none
";
    let text = LINEAR.replace("TABLE", table.to_str().unwrap()).replace("500", "20") + section;
    fs::write(&config, &text).unwrap();
    let config = config.to_str().unwrap();
    let (declared, asked, trained) =
        (home.path().join("declared"), home.path().join("asked"), home.path().join("trained"));
    succeeds(&["sweep", config, "--output", declared.to_str().unwrap()]);
    assert_eq!(lines(&declared).len(), 36);
    assert!(!declared.join("final").exists());
    // The command line wins.
    let over = ["--over", "penalty.l2=0.1", "--folds", "2", "--seeds", "1"];
    succeeds(&[&["sweep", config, "--output", asked.to_str().unwrap()], over.as_slice()].concat());
    assert_eq!(lines(&asked).len(), 2);
    succeeds(&["train", config, "--output", trained.to_str().unwrap()]);
    assert!(!fs::read_to_string(trained.join("config.yaml")).unwrap().contains("sweep"));

    for (wrong, part) in [
        ("  over: {penalty.l2: [1]}\n  sedes: 2\n", "sedes"),
        ("  over: {penalty.l2: 1e-3}\n", "sweep.over"),
        ("  over: {penalty.l2: [1]}\n  folds: 1\n", "sweep.folds"),
        ("  over: {penalty.l2: [1]}\n  prune: {median: {wramup: 1}}\n", "wramup"),
    ] {
        let broken = home.path().join("broken.yaml");
        fs::write(&broken, text.split("sweep:").next().unwrap().to_owned() + "sweep:\n" + wrong).unwrap();
        let (code, _, stderr) = run(&["sweep", broken.to_str().unwrap(), "--output", "/nonexistent/x"]);
        assert!(code == 2 && stderr.contains(part) && stderr.contains("broken.yaml:"), "{code}: {stderr}");
    }
}
