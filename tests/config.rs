//! What a mistake in a config looks like, from the command line's side.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::common::{outcome, run, succeeds, tikhonov, write_config};

const GOOD: &str = "\
seed: 7
device: cpu
model: {name: small-cnn, args: {channels: 1, size: 28, classes: 10}}
task: classification
data:
  train: {shapes: {count: 100, size: 28}}
  batch_size: 10
penalty:
  l2: 5.0e-4
  groups:
    - match: \"*.bias\"
      l2: 1.0e-5
optimizer:
  sgd:
    lr: 0.1
    momentum: 0.9
schedule: cosine
train:
  epochs: 2
  clip: {norm: 1.0}
";

/// Writes `text` as run.yaml, checks it with --dry-run, and returns (exit code, stdout, stderr), the folder
/// cut off.
fn dry_run(text: &str, options: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    fs::write(&path, text).unwrap();
    let mut args = vec!["train", path.to_str().unwrap(), "--dry-run"];
    args.extend(options);
    let (code, stdout, stderr) = run(&args);
    (code, stdout, stderr.replace(&format!("{}/", folder.path().display()), ""))
}

/// The text of a mistake that must end with exit code 2.
#[track_caller]
fn refused(text: &str, options: &[&str]) -> String {
    let (code, stdout, stderr) = dry_run(text, options);
    assert_eq!(code, 2, "{stdout}{stderr}");
    assert!(stdout.is_empty(), "{stdout}");
    stderr.strip_prefix("error: ").unwrap_or(&stderr).trim_end().to_owned()
}

#[track_caller]
fn replaced(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn a_good_config_resolves_to_one_that_resolves_to_itself() {
    let (code, resolved, stderr) = dry_run(GOOD, &["--set", "optimizer.sgd.lr=0.30000000000000004"]);
    assert_eq!(code, 0, "{stderr}");
    for line in ["accumulate: 1", "nesterov: false", "lr: 0.30000000000000004", "l2: 0.0005", "log_every: 50"]
    {
        assert!(resolved.contains(line), "{line} in\n{resolved}");
    }
    let (code, again, stderr) = dry_run(&resolved, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(again, resolved);
}

#[test]
fn options_and_overrides_reach_the_resolved_config() {
    let options = ["--seed", "11", "--threads", "3", "--output", "1e3", "--set", "schedule=constant"];
    let (code, resolved, stderr) = dry_run(GOOD, &options);
    assert_eq!(code, 0, "{stderr}");
    for line in ["seed: 11", "threads: 3", "output: '1e3'", "constant: {}"] {
        assert!(resolved.contains(line), "{line} in\n{resolved}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_key() {
    let message = refused(&replaced("momentum", "momentm"), &[]);
    assert!(
        message.starts_with("run.yaml:16:5: optimizer.sgd.momentm: unknown key; did you mean `momentum`?"),
        "{message}"
    );
    let message = refused(&replaced("optimizer", "optimiser"), &[]);
    assert!(
        message.starts_with("run.yaml:13:1: optimiser: unknown key; did you mean `optimizer`?"),
        "{message}"
    );
    let message = refused(&replaced("sgd", "sdg"), &[]);
    assert!(
        message.starts_with("run.yaml:14:3: optimizer.sdg: unknown choice `sdg`; did you mean `sgd`?"),
        "{message}"
    );
    let message = refused(&replaced("cosine", "cosin"), &[]);
    assert!(message.starts_with("run.yaml:17:1: schedule: "), "{message}");
    assert!(message.contains("did you mean `cosine`?"), "{message}");
}

#[test]
fn a_missing_key_is_named() {
    let message = refused(&replaced("  epochs: 2\n", ""), &[]);
    let wanted = "run.yaml:18:1: train: how long? Say `epochs`, `steps` or `hours`, as in `epochs: 10`";
    assert_eq!(message, wanted);
}

#[test]
fn a_wrong_type_says_what_was_expected() {
    let message = refused(&replaced("lr: 0.1", "lr: fast"), &[]);
    assert_eq!(message, "run.yaml:15:5: optimizer.sgd.lr: expected a number, found the text `fast`");
    let message = refused(&replaced("epochs: 2", "epochs: 2.5"), &[]);
    assert_eq!(
        message,
        "run.yaml:19:3: train.epochs: expected a whole number, 0 or more, found the number 2.5"
    );
    let message = refused(&replaced("{norm: 1.0}", "[1.0]"), &[]);
    assert_eq!(message, "run.yaml:20:3: train.clip: expected a mapping, found a list");
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let message = refused(&replaced("epochs: 2", "epochs: 0"), &[]);
    assert_eq!(message, "run.yaml:19:3: train.epochs: must be 1 or more");
    let message = refused(&replaced("l2: 5.0e-4", "l2: -5.0e-4"), &[]);
    assert!(message.starts_with("run.yaml:9:3: penalty.l2: "), "{message}");
    let message = refused(&replaced("l2: 1.0e-5", "l2: .nan"), &[]);
    assert!(message.starts_with("run.yaml:12:7: penalty.groups.0.l2: "), "{message}");
    assert!(message.contains("NaN"), "{message}");
    let message = refused(&replaced("norm: 1.0", "norm: 0"), &[]);
    assert!(message.starts_with("run.yaml:20:10: train.clip.norm: "), "{message}");
    let message = refused(&replaced("sgd:\n    lr: 0.1\n    momentum: 0.9", "adamw: {lr: 1e-3}"), &[]);
    assert!(message.starts_with("run.yaml:9:3: penalty.l2: "), "{message}");
    assert!(message.contains("decoupled"), "{message}");
    let message = refused(&replaced("momentum", "weight_decay"), &[]);
    assert!(message.starts_with("run.yaml:16:5: optimizer.sgd.weight_decay: "), "{message}");
    assert!(message.contains("penalty: {l2: λ}"), "{message}");
}

#[test]
fn a_file_that_is_missing_or_no_config_is_named() {
    let (code, _, stderr) = run(&["train", "no-such-config.yaml", "--dry-run"]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error: there is no config no-such-config.yaml; "), "{stderr}");
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) = run(&["train", folder.path().to_str().unwrap(), "--dry-run"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("is a folder"), "{stderr}");
    let file = folder.path().join("picture.yaml");
    fs::write(&file, [0xff, 0xd8, 0xff, 0xe0]).unwrap();
    let (code, _, stderr) = run(&["train", file.to_str().unwrap(), "--dry-run"]);
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn a_mistake_in_an_override_names_the_override() {
    let message = refused(GOOD, &["--set", "optimizer.sgd.momentm=0.9"]);
    assert!(
        message.starts_with("--set optimizer.sgd.momentm=0.9: unknown key; did you mean `momentum`?"),
        "{message}"
    );
    let message = refused(GOOD, &["--set", "train.epochs=0"]);
    assert_eq!(message, "--set train.epochs=0: must be 1 or more");
    let message = refused(GOOD, &["--set", "penalty.groups.1={l2: 1}"]);
    assert!(message.starts_with("--set penalty.groups.1={l2: 1}: "), "{message}");
    let message = refused(GOOD, &["--set", "seed.x=1"]);
    assert_eq!(message, "--set seed.x=1: `seed` is the number 7, so it has no key `x`; set `seed` itself");
    let message = refused(GOOD, &["--set", "train.epochs=[1"]);
    assert!(message.starts_with("--set train.epochs=[1: "), "{message}");
    let (code, _, stderr) = dry_run(GOOD, &["--set", "epochs"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("expected KEY=VALUE"), "{stderr}");
}

#[test]
fn broken_yaml_says_where() {
    let message = refused("seed: 1\ntrain: {epochs: 2\nmodel: x\n", &[]);
    assert!(message.starts_with("run.yaml:3:"), "{message}");
    let message = refused(&format!("{GOOD}seed: 8\n"), &[]);
    assert!(message.ends_with(": the key `seed` is here twice; remove one"), "{message}");
    assert!(message.starts_with("run.yaml:"), "{message}");
    let message = refused("", &[]);
    assert_eq!(message, "run.yaml: the key `model` is missing");
}

#[test]
fn a_hostile_file_is_an_error_and_not_a_crash() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..15 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{refs}]\n");
    }
    let message = refused(&bomb, &[]);
    assert!(message.contains("too large for a config"), "{message}");
    for opening in ["[", "{a: ", "- ", "&a [*a, "] {
        refused(&opening.repeat(50_000), &[]);
    }
}

#[test]
fn every_shipped_file_is_written_out_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let stdout = succeeds(&["init", dir]);
    for name in tikhonov::util::builtin::configs() {
        let path = folder.path().join("configs").join(format!("{name}.yaml"));
        assert_eq!(fs::read_to_string(&path).unwrap(), tikhonov::util::builtin::config(name).unwrap());
        assert!(stdout.contains(path.to_str().unwrap()), "{stdout}");
    }
    let Some(name) = tikhonov::util::builtin::models().next() else { return };
    let mine = folder.path().join("models").join(format!("{name}.yaml"));
    fs::write(&mine, "mine").unwrap();
    let (code, stdout, _) = run(&["init", dir]);
    assert_eq!((code, fs::read_to_string(&mine).unwrap().as_str()), (0, "mine"));
    assert!(stdout.contains("--force"), "{stdout}");
    let (code, _, _) = run(&["init", dir, "--force"]);
    assert_eq!(code, 0);
    assert_eq!(fs::read_to_string(&mine).unwrap(), tikhonov::util::builtin::model(name).unwrap());
}

#[test]
fn the_summary_shows_which_parameter_gets_which_penalty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    fs::write(&path, GOOD).unwrap();
    let path = path.to_str().unwrap();
    let (code, text, stderr) = run(&["summary", path]);
    assert_eq!(code, 0, "{stderr}");
    let penalty_of = |name: &str| text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    assert!(penalty_of("fc.weight").unwrap().contains("l2 5e-4"), "{text}");
    assert!(penalty_of("fc.bias").unwrap().contains("l2 1e-5"), "{text}");
    assert!(penalty_of("block1.0.bn.weight").unwrap().contains("none"), "{text}");
    let (code, text, stderr) = run(&["summary", path, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let values = |index: usize| report["groups"][index]["values"].as_i64().unwrap();
    assert_eq!(report["groups"][0]["label"], "*.bias");
    assert_eq!(values(0) + values(1) + values(2), report["trainable"].as_i64().unwrap());
}

#[test]
fn the_bias_beside_a_weight_in_a_group_does_not_inherit_its_l1() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_config(folder.path(), GOOD);
    let penalty = "penalty={l1: 0.25, groups: [{match: 'fc.*', l2: 0.5}]}";
    let text = succeeds(&["summary", &path, "--set", penalty]);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(line("fc.weight").contains("l2 5e-1, l1 2.5e-1"), "{text}");
    assert!(line("fc.bias").contains("l2 5e-1") && !line("fc.bias").contains("l1"), "{text}");
}

#[test]
fn a_group_or_a_model_that_names_nothing_is_named() {
    let summary = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.yaml");
        fs::write(&path, text).unwrap();
        let (code, _, stderr) = run(&["summary", path.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        stderr.replace(&format!("{}/", folder.path().display()), "")
    };
    let message = summary(&replaced("*.bias", "fc.wieght"));
    assert!(
        message.starts_with("error: run.yaml:11:7: penalty.groups.0.match: `fc.wieght` matches no"),
        "{message}"
    );
    assert!(message.contains("fc.weight"), "{message}");
    let message = summary(&replaced("small-cnn", "smal-cnn"));
    assert!(message.starts_with("error: run.yaml:3:9: model.name: "), "{message}");
    assert!(message.contains("did you mean `small-cnn`?"), "{message}");
}

#[test]
fn the_doctor_finds_a_sound_libtorch() {
    let (code, stdout, stderr) = run(&["doctor", "--json"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["libtorch"]["version"].as_str().unwrap().split('+').next(), Some("2.11.0"));
    assert!(report["checks"].as_array().unwrap().len() >= 4);
    let cuda = &report["cuda"];
    assert_ne!(cuda["devices"].as_array().unwrap().is_empty(), cuda["reason"].is_null(), "{cuda}");
    let (_, text, _) = run(&["doctor"]);
    assert!(text.contains("convolution and its gradients on cpu"), "{text}");
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let (code, _, stderr) = run(&["train", "x", "--device", "gpu"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("expected cpu, cuda, cuda:N or auto"), "{stderr}");
}

#[test]
fn the_reader_of_the_output_may_go_away() {
    for args in [&["completions", "bash"][..], &["doctor"], &["doctor", "--json"], &["init", "--help"]] {
        let mut child = Command::new(tikhonov().get_program())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        assert!(stderr.is_empty() && status.success(), "{args:?}: {status} {stderr}");
    }
}

#[test]
fn a_report_that_does_not_get_to_stdout_ends_with_7() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["train", "quickstart", "--dry-run"][..],
        &["doctor", "--json"],
        &["runs", "--json", "."],
        &["completions", "bash"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = tikhonov().args(args).current_dir(folder.path()).stdout(full).output().unwrap();
        let (code, _, stderr) = outcome(output);
        assert!(
            code == 7 && stderr.contains("No space left") && !stderr.contains("mistake in tikhonov"),
            "{args:?}: {code} {stderr}"
        );
    }
}

#[test]
fn samples_that_the_memory_does_not_hold_are_exit_6_with_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let train = |limit: &str, count: &str| {
        let command = format!(
            "{limit} exec {} train quickstart --set data.train.shapes.count={count} --output {}/run",
            env!("CARGO_BIN_EXE_tikhonov"),
            home.path().display()
        );
        outcome(std::process::Command::new("sh").args(["-c", &command]).output().unwrap())
    };
    for (limit, count) in
        [("", "99999999999"), ("", "9999999999999999999"), ("ulimit -v 3000000;", "4000000")]
    {
        let (code, _, stderr) = train(limit, count);
        assert_eq!(code, 6, "{count}: {stderr}");
        assert!(stderr.contains("take a smaller `shapes.count`"), "{stderr}");
    }
}

#[test]
fn a_target_of_names_is_told_the_option_that_makes_classes() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("t.csv"), "a,kind\n1,iris\n2,rose\n").unwrap();
    let text = format!(
        "
device: cpu
model: {{name: linear, args: {{features: 1, outputs: 2}}}}
task: classification
data: {{train: {{csv: {{file: {}/t.csv, target: kind}}}}, batch_size: 2}}
optimizer: {{sgd: {{lr: 0.1}}}}
train: {{epochs: 1}}
output: {0}/run
",
        home.path().display()
    );
    let config = write_config(home.path(), &text);
    let (code, _, stderr) = run(&["train", &config]);
    assert!(code == 3 && stderr.contains("t.csv:2: column `kind` holds `iris`"), "{code} {stderr}");
    assert!(stderr.contains("`classes: true`"), "{stderr}");
    succeeds(&["train", &config, "--set", "data.train.csv.classes=true"]);
}

#[test]
fn a_byte_order_mark_is_read_over_and_mistakes_of_another_kind_are_told_with_every_unknown_key() {
    let (code, resolved, stderr) = dry_run(&format!("\u{feff}{GOOD}"), &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(resolved.starts_with("seed: 7\n"), "{resolved}");
    let twice =
        replaced("momentum", "momentm").replace("clip:", "clipp:").replace("epochs: 2", "epochs: two");
    let message = refused(&twice, &[]);
    let lines: Vec<_> = message.lines().map(str::trim).collect();
    assert!(
        lines[0].starts_with("run.yaml:16:5: optimizer.sgd.momentm: unknown key; did you mean `momentum`?"),
        "{message}"
    );
    assert!(lines[1].starts_with("run.yaml:19:3: train.epochs: expected a whole number"), "{message}");
    for (text, expected) in [
        (
            "hello\n",
            "run.yaml:1:1: expected a mapping of keys, such as `model: …` and `data: …`, found the text `hello`",
        ),
        (
            "- model: lenet\n",
            "run.yaml:1:1: expected a mapping of keys, such as `model: …` and `data: …`, found a list",
        ),
    ] {
        assert_eq!(refused(text, &["--output", "/tmp/x"]), expected);
    }
    let message = refused(&replaced("epochs: 2", "epochs: 99999999999999999999"), &[]);
    assert!(message.contains("the number 99999999999999999999 is too large"), "{message}");
    let message = refused(
        &replaced("{shapes: {count: 100, size: 28}}", "{shapes: {count: 100, size: 28}, max_skipped: 3}"),
        &[],
    );
    assert!(
        message
            .contains("data.train: expected exactly one choice, found `shapes` and beside it `max_skipped`"),
        "{message}"
    );
}

#[test]
fn a_tilde_at_the_start_of_a_path_is_the_home_folder() {
    let home = tempfile::tempdir().unwrap();
    let file = write_config(home.path(), &format!("{GOOD}output: ~/runs/x\n"));
    let dry = |sets: &[&str]| {
        let mut command = tikhonov();
        command.args(["train", &file, "--dry-run"]).args(sets).env("HOME", home.path());
        outcome(command.output().unwrap())
    };
    let (code, resolved, stderr) = dry(&[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(resolved.contains(&format!("output: {}/runs/x\n", home.path().display())), "{resolved}");
    let (code, _, stderr) = dry(&["--set", "output=~someone/x"]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("output: `~someone/x`: only `~/` is expanded")
            || stderr.contains("--set output=~someone/x"),
        "{stderr}"
    );
}
