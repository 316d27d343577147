//! What people are told at the end of a run, of a sweep and of an evaluation, and how it fits their terminal.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::common::{python, read_json, run, succeeds, write_config};

/// Two columns of other scales that make `y`, and one that does not.
fn table(folder: &Path) -> PathBuf {
    let mut text = String::from("area,age,noise,y\n");
    for i in 0..60 {
        let (area, age, noise) =
            (f64::from(i * 37 % 60) * 4.0, f64::from(i * 17 % 53), f64::from(i * 7 % 11) / 100.0);
        text += &format!("{area},{age},{noise},{}\n", 2.0 * area - 3.0 * age + 5.0);
    }
    fs::write(folder.join("table.csv"), text).unwrap();
    folder.join("table.csv")
}

fn regression(folder: &Path, rest: &str) -> String {
    let text = format!(
        "device: cpu\nthreads: 1\ndtype: float64\nmodel: {{name: linear, args: {{features: 3, outputs: 1}}}}\n\
         task: {{regression: {{loss: half_mse}}}}\ndata: {{train: {{csv: {{file: {}, target: y}}}}, batch_size: 60{rest}}}\n\
         optimizer: {{sgd: {{lr: 0.3, momentum: 0.5}}}}\npenalty: {{l1: 0.5}}\n\
         train: {{epochs: 300, eval_every: 300, log_every: 100, checkpoint: {{every_epochs: 300}}}}\n",
        table(folder).display()
    );
    write_config(folder, &text)
}

#[test]
fn a_linear_run_ends_with_its_coefficients_by_name_in_units_of_the_table() {
    let home = tempfile::tempdir().unwrap();
    let config = regression(home.path(), "");
    let out = home.path().join("run");
    let stdout =
        succeeds(&["train", &config, "--set", "penalty=", "--quiet", "--output", out.to_str().unwrap()]);
    let text = fs::read_to_string(out.join("coefficients.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows: Vec<(String, f64)> = (reader.records().map(Result::unwrap))
        .map(|row| (row[1].to_owned(), row[2].parse().unwrap()))
        .collect();
    let names: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    assert_eq!(names, ["intercept", "area", "age", "noise"]);
    for (row, wanted) in rows.iter().zip([5.0, 2.0, -3.0, 0.0]) {
        assert!((row.1 - wanted).abs() < 1e-5, "{text}");
    }
    assert!(stdout.contains("coefficients (last, epoch 300)"), "{stdout}");
    // With a lasso the column that says nothing is exactly 0, and that is told.
    let lasso = home.path().join("lasso");
    let stdout = succeeds(&["train", &config, "--quiet", "--output", lasso.to_str().unwrap()]);
    assert!(
        stdout.contains("area") && stdout.contains("and 1 exactly 0") && !stdout.contains("  noise"),
        "{stdout}"
    );
    let page = home.path().join("page.html");
    succeeds(&["report", out.to_str().unwrap(), lasso.to_str().unwrap(), "-o", page.to_str().unwrap()]);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<h2>Coefficients</h2>") && page.contains(">area</th>"), "the report has them too");
    // A network of more than one layer has none.
    let mlp = home.path().join("mlp");
    let sets =
        ["--set", "model={name: mlp, args: {shape: [3], classes: 1}}", "--set", "train.epochs=1", "--quiet"];
    let stdout =
        succeeds(&[&["train", &config, "--output", mlp.to_str().unwrap()], sets.as_slice()].concat());
    assert!(!stdout.contains("coefficients") && !mlp.join("coefficients.csv").exists(), "{stdout}");
}

#[test]
fn a_run_is_replaced_with_force_and_nothing_but_a_run() {
    let home = tempfile::tempdir().unwrap();
    let config = regression(home.path(), "");
    let out = home.path().join("run");
    let out = out.to_str().unwrap();
    let args = ["train", &config, "--set", "train.epochs=2", "--output", out];
    succeeds(&args);
    fs::write(format!("{out}/notes.txt"), "mine").unwrap();
    let (code, _, stderr) = run(&args);
    assert!(code == 2 && stderr.contains("--force replaces it"), "{stderr}");
    let (code, _, stderr) = run(&[&args[..], &["--force", "--seed", "5"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("is replaced; not of a run, and left there: notes.txt"), "{stderr}");
    assert_eq!(fs::read_to_string(format!("{out}/notes.txt")).unwrap(), "mine");
    assert!(fs::read_to_string(format!("{out}/config.yaml")).unwrap().starts_with("seed: 5\n"));
    let log = fs::read_to_string(format!("{out}/log.txt")).unwrap();
    assert_eq!(log.matches("epoch 2/2").count(), 1, "{log}");
    // Checkpoints of which nobody knows whose they are stay.
    fs::remove_file(format!("{out}/config.yaml")).unwrap();
    let (code, _, stderr) = run(&[&args[..], &["--force"]].concat());
    assert!(code == 2 && stderr.contains("holds a run already"), "{stderr}");
}

#[test]
fn eval_takes_the_validation_set_where_there_is_no_test_set_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let config = regression(home.path(), ", validation: {fraction: 0.25}");
    let out = home.path().join("run");
    let out = out.to_str().unwrap();
    succeeds(&["train", &config, "--set", "train.epochs=2", "--quiet", "--output", out]);
    let (code, stdout, stderr) = run(&["eval", out]);
    assert!(code == 0 && stdout.contains("on validation (15 samples)"), "{stdout}{stderr}");
    assert!(stderr.contains("has no test set: the scores are of the validation set"), "{stderr}");
    let (code, _, stderr) = run(&["eval", out, "--split", "test"]);
    assert!(code == 2 && stderr.contains("has no test set; try --split validation"), "{stderr}");
    let (code, _, stderr) = run(&["eval", "runs/nothing-here"]);
    assert!(code == 2 && stderr.contains("there is no config or run runs/nothing-here"), "{stderr}");
}

#[test]
fn a_generated_line_answers_for_a_table() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let out = out.to_str().unwrap();
    succeeds(&[
        "train",
        "articles/2-line-exponential",
        "--set",
        "train.epochs=100",
        "--quiet",
        "--output",
        out,
    ]);
    let table = home.path().join("x.csv");
    fs::write(&table, "x,other\n0,1\n2,1\n").unwrap();
    let stdout = succeeds(&["predict", out, table.to_str().unwrap(), "--format", "json"]);
    let values: Vec<f64> = stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["y0"].as_f64().unwrap())
        .collect();
    assert!((values[0] - 5.0).abs() < 0.5 && (values[1] - 11.0).abs() < 0.5, "{values:?}");
    let (code, _, stderr) = run(&["predict", out, "photo.png"]);
    assert!(code == 2 && stderr.contains("one .csv with the columns x"), "{stderr}");
}

#[test]
fn a_sweep_says_what_its_choice_is_worth_and_its_path_is_in_the_report() {
    let home = tempfile::tempdir().unwrap();
    let config = regression(home.path(), ", validation: {fraction: 0.25}");
    let out = home.path().join("sweep");
    let out = out.to_str().unwrap();
    let over = ["--over", "penalty.l1=10:0.01:log:4", "--path", "--jobs", "1"];
    let stdout = succeeds(&[&["sweep", &config, "--output", out], over.as_slice()].concat());
    assert!(
        stdout.contains("best penalty.l1 0.01 is at the edge of what was tried, 0.01 to 10: widen it below"),
        "{stdout}"
    );
    assert!(stdout.contains("--seeds 3 tells"), "{stdout}");
    let result = read_json(format!("{out}/result.json"));
    assert_eq!(result["remarks"].as_array().unwrap().len(), 2, "{result}");
    let page = home.path().join("page.html");
    succeeds(&["report", out, "-o", page.to_str().unwrap()]);
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains("aria-label=\"coefficients\"") && page.contains(">area</text>"),
        "the path is drawn"
    );
    assert!(page.contains("at the edge of what was tried"), "and the remarks stand there");
}

/// What a command shows on a terminal of so many columns: the last state of each line.
fn on_terminal(columns: usize, args: &[&str]) -> Vec<String> {
    let args = json!([&[env!("CARGO_BIN_EXE_tikhonov")], args].concat());
    let told = python(&format!(
        "
import fcntl, json, os, pty, re, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 40, {columns}, 0, 0))
    os.execv({args}[0], {args})
out = b''
while True:
    try: part = os.read(fd, 65536)
    except OSError: break
    if not part: break
    out += part
os.waitpid(pid, 0)
text = re.sub(r'\\x1b\\[[0-9;?]*[A-Za-z]', '\\n', out.decode()).replace('\\r', '\\n')
print(json.dumps([line for line in text.split('\\n') if line.strip()]))
"
    ));
    serde_json::from_str(told.lines().last().unwrap()).unwrap()
}

#[test]
fn lines_and_tables_fit_narrow_terminals_and_wide_letters_keep_their_columns() {
    let home = tempfile::tempdir().unwrap();
    for (class, shade) in [("郁金香", 40u8), ("rose", 200)] {
        let folder = home.path().join("flowers").join(class);
        fs::create_dir_all(&folder).unwrap();
        for at in 0..12u8 {
            image::GrayImage::from_pixel(8, 8, image::Luma([shade + at]))
                .save(folder.join(format!("{at}.png")))
                .unwrap();
        }
    }
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {{name: mlp, args: {{shape: [1, 8, 8], classes: 2, hidden: 4}}}}\ntask: classification\n\
         data: {{train: {{folder: {{root: {}, size: 8, mode: grey}}}}, validation: {{fraction: 0.25}}, batch_size: 6}}\n\
         optimizer: {{sgd: {{lr: 0.01}}}}\npenalty: {{l2: 0.001}}\ntrain: {{epochs: 4}}\n",
        home.path().join("flowers").display()
    );
    let config = write_config(home.path(), &text);
    let out = home.path().join("runs/flowers");
    let out = out.to_str().unwrap();
    let wide = on_terminal(200, &["train", &config, "--output", out]);
    assert!(
        wide.iter()
            .any(|line| line.contains("epoch 4/4") && line.contains("‖w‖") && line.contains("samples/s")),
        "{wide:?}"
    );
    let narrow = on_terminal(60, &["train", &config, "--output", out, "--force"]);
    // A line is filled with spaces up to the bar that follows it.
    let epochs: Vec<&str> = (narrow.iter().filter(|line| line.contains("epoch 4/4 ·")))
        .map(|line| line.split("   ").next().unwrap_or_default())
        .collect();
    assert!(
        !epochs.is_empty() && epochs.iter().all(|line| line.contains("loss") && line.contains("accuracy")),
        "{narrow:?}"
    );
    assert!(
        epochs.iter().all(|line| !line.contains("‖w‖") && console::measure_text_width(line) <= 60),
        "{epochs:?}"
    );
    let log = fs::read_to_string(format!("{out}/log.txt")).unwrap();
    assert!(
        log.lines().any(|line| line.contains("epoch 4/4") && line.contains("‖w‖")),
        "the log has all of it: {log}"
    );

    let root = home.path().join("runs");
    let table = on_terminal(60, &["runs", root.to_str().unwrap()]);
    assert!(table[0].contains("best") && !table[0].contains("samples/s"), "{table:?}");
    assert!(table.iter().all(|line| console::measure_text_width(line) <= 60), "{table:?}");

    let told = succeeds(&["eval", out, "--split", "validation"]);
    let rows: Vec<&str> = told.lines().skip_while(|line| !line.contains("recall")).take(3).collect();
    assert!(rows.iter().any(|row| row.contains("郁金香")) && rows.len() == 3, "{told}");
    let widths: Vec<usize> = rows.iter().map(|row| console::measure_text_width(row)).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{told}");
    assert!(Path::new(out).join("plots/confusion.png").is_file());
}

#[test]
fn arguments_of_a_shipped_model_that_are_left_out_are_those_of_the_data_and_odd_labels_are_named() {
    let home = tempfile::tempdir().unwrap();
    let config = |model: &str| {
        let text = format!(
            "device: cpu\nthreads: 1\nmodel: {model}\ntask: classification\n\
             data: {{train: {{shapes: {{count: 30, size: 20, classes: 3}}}}, batch_size: 15}}\n\
             optimizer: {{sgd: {{lr: 0.01}}}}\ntrain: {{epochs: 1}}\n"
        );
        write_config(home.path(), &text)
    };
    let out = home.path().join("run").display().to_string();
    let (code, _, stderr) = run(&["train", &config("{name: small-cnn}"), "--output", &out]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("`classes` is 3, as in the data (`small-cnn` has 10 where"), "{stderr}");
    assert!(stderr.contains("`size` is 20, as in the data"), "{stderr}");
    let kept = fs::read_to_string(home.path().join("run/config.yaml")).unwrap();
    assert!(kept.contains("classes: 3") && kept.contains("size: 20"), "{kept}");
    // What the config says stays, and is compared with the data.
    let (code, _, stderr) = run(&[
        "train",
        &config("{name: small-cnn, args: {classes: 2, size: 20}}"),
        "--output",
        &out,
        "--force",
    ]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("3 classes and the network 2 outputs"), "{stderr}");

    for (labels, wanted) in [("[1, 2, 3, 1, 2, 3]", "begin at 1"), ("[0, 1, 2, 255, 1, 2]", "and 255")] {
        python(&format!(
            "import numpy as np\nnp.save('{0}/xs.npy', np.zeros((6, 1, 8, 8), np.uint8))\nnp.save('{0}/ys.npy', np.array({labels}))",
            home.path().display()
        ));
        let text = format!(
            "device: cpu\nmodel: {{name: small-cnn, args: {{classes: 3}}}}\ntask: classification\n\
             data: {{train: {{npy: {{xs: {0}/xs.npy, ys: {0}/ys.npy}}}}, batch_size: 3}}\n\
             optimizer: {{sgd: {{lr: 0.01}}}}\ntrain: {{epochs: 1}}\n",
            home.path().display()
        );
        let (code, _, stderr) =
            run(&["train", &write_config(home.path(), &text), "--output", &out, "--force"]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(wanted), "{stderr}");
    }
}
