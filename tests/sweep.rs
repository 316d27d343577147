//! `tikhonov sweep`: cross-validation against scikit-learn, sweeps that are killed, trials that diverge.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{python, read_json, run, succeeds};

mod path;
mod search;
mod workers;

const LINEAR: &str = "
device: cpu
dtype: float64
model: {name: linear, args: {features: 4, outputs: 1}}
task: {regression: {loss: half_mse}}
data:
  train: {csv: {file: TABLE, target: y}}
  validation: {fold: {of: 6, index: 0, shuffle: false}}
  batch_size: 60
  normalize: none
optimizer: {sgd: {lr: 0.09}}
train: {epochs: 500, eval_every: 500, log_every: 500, checkpoint: {every_epochs: 500}}
";

/// 60 rows of four features, one of which means nothing; and a linear config for them.
fn table(folder: &Path) -> String {
    let csv = folder.join("table.csv");
    python(&format!(
        "
import numpy as np
rng = np.random.default_rng(0)
x = rng.normal(size=(60, 4)); y = x @ [1.5, -2, 0.5, 0] + 1 + rng.normal(size=60)
np.savetxt({csv:?}, np.c_[x, y], delimiter=',', header='a,b,c,d,y', comments='', fmt='%.17g')
"
    ));
    let config = folder.join("linear.yaml");
    fs::write(&config, LINEAR.replace("TABLE", csv.to_str().unwrap())).unwrap();
    config.to_str().unwrap().to_owned()
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("trials.jsonl")).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["trial"].as_u64());
    lines
}

fn result(folder: &Path) -> Value {
    read_json(folder.join("result.json"))
}

/// Sweeps `key`, and compares each fold's score, the means and the choice with scikit-learn's on the same
/// folds.
fn agrees_with_scikit_learn(key: &str, estimator: &str, tolerance: f64) {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let output = home.path().join("sweep");
    let over = format!("{key}=1e-3:10:log:5");
    let stdout =
        succeeds(&["sweep", &config, "--over", &over, "--folds", "6", "--output", output.to_str().unwrap()]);

    // n rows with the mean loss ½·MSE: Ridge's alpha is n·λ, Lasso's is λ itself.
    let printed = python(&format!(
        "
import numpy as np, json
from sklearn.linear_model import Ridge, Lasso
from sklearn.model_selection import KFold, GridSearchCV
t = np.loadtxt({:?}, delimiter=',', skiprows=1); x, y = t[:, :4], t[:, 4]
lambdas = np.logspace(-3, 1, 5)
grid = {estimator}
grid.fit(x, y)
scores = np.array([-grid.cv_results_[f'split{{f}}_test_score'] for f in range(6)]).T
print(json.dumps([scores.tolist(), int(grid.best_index_)]))
",
        home.path().join("table.csv")
    ));
    let expected: Value = serde_json::from_str(&printed).unwrap();
    let trials = lines(&output);
    assert_eq!(trials.len(), 30);
    for trial in &trials {
        let (point, fold) =
            (trial["trial"].as_u64().unwrap() as usize / 6, trial["fold"].as_u64().unwrap() as usize);
        let (ours, theirs) = (trial["score"].as_f64().unwrap(), expected[0][point][fold].as_f64().unwrap());
        assert!(
            (ours - theirs).abs() <= tolerance * theirs,
            "point {point}, fold {fold}: {ours} and {theirs}"
        );
    }
    let result = result(&output);
    let best = result["best"]["point"][key].as_f64().unwrap();
    let lambdas = [1e-3, 1e-2, 0.1, 1.0, 10.0];
    assert_eq!(best, lambdas[expected[1].as_u64().unwrap() as usize]);
    assert!(result["one_standard_error"]["point"][key].as_f64().unwrap() >= best);
    assert!(stdout.contains("* best") && stdout.contains("strongest within one standard error"), "{stdout}");
    // The last fit learns from all 60 rows.
    let log = fs::read_to_string(output.join("final/log.txt")).unwrap();
    assert!(log.contains("train: 60 samples"), "{log}");
    let curve = fs::read_to_string(output.join("curve.svg")).unwrap();
    assert!(curve.matches("<circle").count() == 5 && curve.contains(key), "five points");
    let picture = image::open(output.join("curve.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (800, 512));
}

#[test]
fn ridge_by_cross_validation_is_scikit_learns_fold_by_fold() {
    let estimator = "GridSearchCV(Ridge(tol=1e-12), {'alpha': 50 * lambdas}, scoring='neg_mean_squared_error', cv=KFold(6))";
    agrees_with_scikit_learn("penalty.l2", estimator, 1e-6);
}

#[test]
fn the_lasso_by_cross_validation_is_scikit_learns_fold_by_fold() {
    let estimator = "GridSearchCV(Lasso(tol=1e-12, max_iter=100000), {'alpha': lambdas}, scoring='neg_mean_squared_error', cv=KFold(6))";
    agrees_with_scikit_learn("penalty.l1", estimator, 1e-4);
}

/// Dropout, augmentation and two seeds: all that a resume could get wrong.
const NETWORK: &str = "
seed: 3
device: cpu
model: {name: small-cnn, args: {channels: 1, size: 28, classes: 10, width: 4, dropout: 0.2}}
task: classification
data:
  train: {shapes: {count: 600, size: 28}}
  validation: {fraction: 0.2}
  batch_size: 25
  augment: [{flip: {horizontal: true}}]
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 2, checkpoint: {every_steps: 5}}
";

#[test]
fn a_sweep_killed_in_the_middle_ends_with_the_table_of_an_undisturbed_one() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("network.yaml");
    fs::write(&config, NETWORK).unwrap();
    let (undisturbed, killed) = (home.path().join("undisturbed"), home.path().join("killed"));
    let fixed =
        ["sweep", config.to_str().unwrap(), "--over", "penalty.l2=0,1e-2", "--seeds", "2", "--jobs", "2"];
    let arguments = [fixed.as_slice(), &["--threads", "1"]].concat();
    let sweep = |more: &[&str]| run(&[&arguments, more].concat());
    let (code, _, stderr) = sweep(&["--output", undisturbed.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    search::killed_after(&arguments, &killed, &[0, 1, 3]);
    assert_eq!(result(&undisturbed), result(&killed));
    let scores = |folder: &Path| lines(folder).iter().map(|line| line["scores"].clone()).collect::<Vec<_>>();
    assert_eq!(scores(&undisturbed), scores(&killed));
    assert_eq!(lines(&killed).len(), 4);

    // The same folder does not take another sweep, nor the same one by accident.
    let output = killed.to_str().unwrap();
    let (code, _, stderr) = sweep(&["--output", output]);
    assert!(code == 2 && stderr.contains("holds a sweep already"), "{stderr}");
    let (code, _, stderr) = sweep(&["--output", output, "--resume", "--set", "train.epochs=3"]);
    assert!(code == 2 && stderr.contains("differs in its config:"), "{stderr}");
}

#[test]
fn a_trial_that_diverges_is_recorded_and_the_others_go_on() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let output = home.path().join("sweep");
    let stdout = succeeds(&[
        "sweep",
        &config,
        "--over",
        "optimizer.sgd.lr=0.1,1e6",
        "--set",
        "train.epochs=100",
        "--output",
        output.to_str().unwrap(),
    ]);
    assert!(stdout.contains("diverged") && stdout.contains("* best: optimizer.sgd.lr=0.1"), "{stdout}");
    let endings: Vec<_> = lines(&output).iter().map(|line| line["ending"].clone()).collect();
    assert_eq!(endings, ["done", "diverged"]);
    assert!(!output.join("final").exists(), "without folds nothing more is trained");
    let csv = fs::read_to_string(output.join("trials.csv")).unwrap();
    assert!(
        csv.starts_with("trial,optimizer.sgd.lr,seed,fold,ending,epoch,mse,seconds\n0,0.1,0,,done,,"),
        "{csv}"
    );
}

#[test]
fn a_list_may_hold_ranges_and_another_design_is_told_what_differs_and_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let output = home.path().join("sweep");
    let sweep = |over: &str| {
        let fixed =
            ["sweep", &config, "--resume", "--set", "train.epochs=2", "--output", output.to_str().unwrap()];
        run(&[&fixed[..], &["--over", over]].concat())
    };
    let (code, _, stderr) = sweep("penalty.l2=0,1e-5:1e-1:log:3");
    assert_eq!(code, 0, "{stderr}");
    let tried: Vec<_> =
        lines(&output).iter().map(|line| line["point"]["penalty.l2"].as_f64().unwrap()).collect();
    assert_eq!(tried, [0.0, 1e-5, 1e-3, 1e-1]);
    let (code, _, stderr) = sweep("penalty.l2=0,1");
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("differs in its axes:") && stderr.contains("--output FOLDER"), "{stderr}");
    assert!(stderr.contains("the command that began it"), "{stderr}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_runs() {
    let home = tempfile::tempdir().unwrap();
    let config = table(home.path());
    let output = home.path().join("sweep");
    let refused = |options: &[&str], part: &str| {
        let fixed = ["sweep", &config, "--output", output.to_str().unwrap()];
        let (code, _, stderr) = run(&[&fixed, options].concat());
        assert!(code == 2 && stderr.contains(part), "{options:?}: {code}: {stderr}");
        assert!(!output.exists());
    };
    refused(&["--over", "penalty.l2=1:2:3"], "expected KEY=LOW:HIGH:log:COUNT");
    refused(&["--over", "penalty.l2=-1,1"], "penalty.l2");
    refused(&["--over", "penalty.l3=1,2"], "unknown key");
    refused(&["--over", "penalty.l2=1", "--over", "penalty.l2=2"], "twice");
    refused(&["--over", "penalty.l2=1", "--set", "data.validation=null"], "--folds 5");
    refused(&["--over", "a=1:2:lin:1000", "--over", "b=1:2:lin:1000"], "--random");
    refused(&[], "nothing to vary");
    refused(&["--over", "penalty.l2=0,1", "--search", "tpe"], "--trials N");
    refused(&["--over", "penalty.l2=-1:1:lin:2", "--search", "tpe", "--trials", "20"], "penalty.l2");
    refused(&["--over", "penalty.l2=0,1", "--prune", "{halving: {factor: 1}}"], "halving.factor");
    refused(&["--over", "penalty.l2=0,1", "--devices", "cpu"], "--jobs N");
}
