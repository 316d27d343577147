//! `train.monitor`: which score decides the best epoch, early stopping, plateau and sweeps.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{read_json, records, run, succeeds, write_config};

/// One feature in which a common and a rare class overlap, with as many of both to learn from: the best
/// threshold for the macro-averaged F1 lies elsewhere than that for accuracy, and is reached later.
struct Overlapping(tempfile::TempDir);

impl Overlapping {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, common, rare) in [("train", 40, 40), ("validation", 60, 20)] {
            let mut table = String::from("x,y\n");
            for i in 0..common {
                writeln!(table, "{:.4},common", -1.0 + 1.5 * (f64::from(i) + 0.5) / f64::from(common))
                    .unwrap();
            }
            for i in 0..rare {
                writeln!(table, "{:.4},rare", (f64::from(i) + 0.5) / f64::from(rare)).unwrap();
            }
            fs::write(folder.path().join(format!("{name}.csv")), table).unwrap();
        }
        let data = folder.path().display();
        let part = |name: &str| format!("{{csv: {{file: {data}/{name}.csv, target: y, classes: true}}}}");
        write_config(
            folder.path(),
            &format!(
                "device: cpu\nthreads: 1\nseed: 3\nmodel: {{name: linear, args: {{features: 1, outputs: 2}}}}\n\
                 task: classification\ndata: {{train: {}, validation: {}, batch_size: 80, normalize: none}}\n\
                 optimizer: {{sgd: {{lr: 0.5}}}}\ntrain: {{epochs: 8}}\n",
                part("train"),
                part("validation")
            ),
        );
        Self(folder)
    }

    fn config(&self) -> String {
        self.0.path().join("config-under-test.yaml").to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Trains with these keys set; the run folder.
    fn train(&self, name: &str, sets: &[&str]) -> PathBuf {
        let output = self.path(name);
        let (config, folder) = (self.config(), output.to_str().unwrap().to_owned());
        let mut args = vec!["train", &config, "--output", &folder, "--resume"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        succeeds(&args);
        output
    }
}

fn values(run: &Path, score: &str) -> Vec<f64> {
    records(run, "epoch").iter().map(|record| record["validation"][score].as_f64().unwrap()).collect()
}

/// The epoch of the largest, from 1.
fn largest(values: &[f64]) -> u64 {
    let first = (0..values.len()).reduce(|a, b| if values[b] > values[a] { b } else { a });
    first.unwrap() as u64 + 1
}

fn state(run: &Path) -> Value {
    read_json(run.join("checkpoints/last/state.json"))
}

#[test]
fn the_monitored_score_decides_the_best_epoch_early_stopping_and_what_is_reported() {
    let data = Overlapping::new();
    let default = data.train("default", &[]);
    let (accuracy, f1) = (values(&default, "accuracy"), values(&default, "macro_f1"));
    assert_eq!((largest(&accuracy), largest(&f1)), (2, 3), "{accuracy:?} {f1:?}");
    assert_eq!(state(&default)["best"]["metric"], "accuracy");
    assert_eq!(state(&default)["best"]["epoch"], 2);

    let by_f1 = data.train("f1", &["train.monitor=macro_f1"]);
    let best = &state(&by_f1)["best"];
    assert_eq!(
        (&best["metric"], &best["higher_is_better"], &best["epoch"]),
        (&"macro_f1".into(), &true.into(), &3.into())
    );
    assert_eq!(read_json(by_f1.join("result.json"))["best"]["epoch"], 3);
    assert!(fs::read_link(by_f1.join("checkpoints/best")).unwrap().ends_with("epoch-0003"));
    // The line of an epoch shows the loss and the monitored score.
    let log = fs::read_to_string(by_f1.join("log.txt")).unwrap();
    assert!(
        log.contains(&format!(" macro_f1 {:.4}", f1[2])) && !log.contains("validation accuracy"),
        "{log}"
    );

    // Less is better of the loss: its best epoch is the last.
    let by_loss = data.train("loss", &["train.monitor=loss"]);
    assert_eq!(state(&by_loss)["best"]["epoch"], 8);

    let stopping = ["train.early_stopping={patience: 1}", "train.monitor=macro_f1"];
    assert_eq!(records(&data.train("early", &stopping[..1]), "epoch").len(), 3);
    assert_eq!(records(&data.train("later", &stopping), "epoch").len(), 4);

    let listed = succeeds(&["runs", data.0.path().to_str().unwrap(), "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let row = |name: &str| listed.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    assert_eq!((&row("f1")["metric"], &row("f1")["best_epoch"]), (&"macro_f1".into(), &3.into()));
    assert_eq!((&row("default")["metric"], &row("default")["best_epoch"]), (&"accuracy".into(), &2.into()));
    assert_eq!((&row("loss")["higher_is_better"], &row("loss")["best_epoch"]), (&false.into(), &8.into()));
    let page = data.path("report.html");
    succeeds(&["report", by_f1.to_str().unwrap(), "-o", page.to_str().unwrap()]);
    assert!(fs::read_to_string(page).unwrap().contains("best macro_f1"));
}

#[test]
fn a_plateau_watches_the_monitored_score_in_its_direction() {
    let data = Overlapping::new();
    let plateau = "schedule={plateau: {patience: 0, factor: 0.5, threshold: 0}}";
    let run = data.train("run", &[plateau, "train.monitor=macro_f1"]);
    let f1 = values(&run, "macro_f1");
    let rates: Vec<f64> = records(&run, "epoch").iter().map(|r| r["lr"].as_f64().unwrap()).collect();
    for after in 1..f1.len() - 1 {
        let best = f1[..after].iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(rates[after + 1] < rates[after], f1[after] <= best, "{f1:?} {rates:?}");
    }
    assert!(rates.last().unwrap() < &rates[0], "{rates:?}");
    assert!(fs::read_to_string(run.join("config.yaml")).unwrap().contains("mode: max"));
    let config = data.config();
    let sets = ["--set", "schedule={plateau: {mode: min}}", "--set", "train.monitor=macro_f1", "--dry-run"];
    let (code, _, stderr) = self::run(&[&["train", &config][..], &sets].concat());
    assert!(code == 2 && stderr.contains("of which more is better: say `mode: max`"), "{stderr}");
}

#[test]
fn a_sweep_judges_and_prunes_by_the_monitored_score() {
    let data = Overlapping::new();
    let (config, output) = (data.config(), data.path("sweep"));
    let args = [
        "sweep",
        &config,
        "--output",
        output.to_str().unwrap(),
        "--over",
        "penalty.l2=0.5,0.001",
        "--jobs",
        "1",
    ];
    let monitor = ["--set", "train.monitor=macro_f1", "--prune", "{median: {warmup: 1, startup: 1}}"];
    succeeds(&[&args[..], &monitor].concat());
    let design = read_json(output.join("sweep.json"));
    assert_eq!((&design["metric"], &design["higher_is_better"]), (&"macro_f1".into(), &true.into()));
    for line in fs::read_to_string(output.join("reports.jsonl")).unwrap().lines() {
        let report: Value = serde_json::from_str(line).unwrap();
        let trial = output.join(format!("trials/{:04}", report["trial"].as_u64().unwrap()));
        let f1 = values(&trial, "macro_f1");
        assert_eq!(report["value"].as_f64().unwrap(), f1[report["epoch"].as_u64().unwrap() as usize - 1]);
    }
    let trial = fs::read_to_string(output.join("trials.jsonl")).unwrap();
    let trial: Value = serde_json::from_str(trial.lines().next().unwrap()).unwrap();
    assert_eq!(trial["score"], trial["scores"]["macro_f1"]);

    // The final fit has no validation set, and so nothing to monitor.
    let folds = data.path("folds");
    let args = [
        "sweep",
        &config,
        "--output",
        folds.to_str().unwrap(),
        "--over",
        "penalty.l2=0.5,0.001",
        "--folds",
        "2",
    ];
    succeeds(&[&args[..], &["--set", "train.monitor=macro_f1", "--jobs", "1"]].concat());
    assert!(folds.join("final/result.json").exists());
    let (code, _, stderr) = run(&["sweep", &config, "--over", "penalty.l2=0.5,0.001", "--metric", "acuracy"]);
    assert!(
        code == 2 && stderr.contains("--metric: ") && stderr.contains("did you mean `accuracy`"),
        "{stderr}"
    );
}

#[test]
fn a_score_that_the_task_does_not_report_is_refused_with_the_nearest() {
    let data = Overlapping::new();
    let config = data.config();
    let refused = |sets: &[&str], parts: &[&str]| {
        let mut args = vec!["train", &config, "--dry-run"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let (code, _, stderr) = run(&args);
        assert_eq!(code, 2, "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "`{part}` is missing: {stderr}");
        }
    };
    refused(
        &["train.monitor=makro_f1"],
        &["classification has no score `makro_f1`", "did you mean `macro_f1`?"],
    );
    refused(&["train.monitor=psnr"], &["Its scores are loss, accuracy, top5_accuracy, macro_f1"]);
    refused(&["train.monitor=top5_accuracy"], &["classification of 2 classes has no score `top5_accuracy`"]);
    refused(
        &["train.monitor=macro_f1", "data.validation=null"],
        &["train.monitor=macro_f1: looks at the validation set"],
    );
    let unet = "model={name: unet, args: {size: 32, classes: 2, width: 4}}";
    refused(
        &[unet, "task=segmentation", "train.monitor=dice_2"],
        &["segmentation of 2 classes has no score"],
    );
    refused(&["task=segmentation", "train.monitor=dice"], &["mean_dice", "dice_{class}"]);
}

#[test]
fn a_resume_by_another_score_says_so_and_chooses_the_best_anew() {
    let data = Overlapping::new();
    let run = data.train("run", &["train.epochs=3"]);
    assert_eq!(state(&run)["best"]["metric"], "accuracy");
    data.train("run", &["train.epochs=6", "train.monitor=macro_f1"]);
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    for line in [
        "resuming with another train.monitor: was null, is \"macro_f1\"",
        "the best so far was chosen by accuracy: by macro_f1 it is chosen anew among the epochs to come",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    let best = &state(&run)["best"];
    assert_eq!(best["metric"], "macro_f1");
    assert_eq!(best["epoch"].as_u64().unwrap(), 3 + largest(&values(&run, "macro_f1")[3..]));
    // The same score, named: nothing is chosen anew.
    let named = data.train("named", &["train.epochs=3"]);
    data.train("named", &["train.epochs=4", "train.monitor=accuracy"]);
    assert_eq!(state(&named)["best"]["epoch"], 2);
}
