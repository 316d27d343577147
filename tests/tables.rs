//! Tables as people have them: text columns, decimal commas, other delimiters, columns of one name, labels of
//! mixed spelling.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{python, read_json, run, succeeds, write_config};

struct Table(tempfile::TempDir);

impl Table {
    fn new(text: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("table.csv"), text).unwrap();
        Self(folder)
    }

    /// Trains on the table with these keys of `csv`; (exit code, stdout, stderr).
    fn train(&self, keys: &str, inputs: usize, task: &str) -> (i32, String, String) {
        let folder = self.0.path().display();
        let text = format!(
            "device: cpu\nmodel: {{name: linear, args: {{features: {inputs}, outputs: OUT}}}}\ntask: {task}\n\
             data: {{train: {{csv: {{file: {folder}/table.csv, {keys}}}}}, batch_size: 4}}\noptimizer: {{sgd: {{lr: 0.1}}}}\n\
             train: {{epochs: 1}}\noutput: {folder}/run\n"
        );
        let text = text.replace("OUT", if task == "regression" { "1" } else { "2" });
        run(&["train", &write_config(self.0.path(), &text)])
    }

    fn refused(text: &[u8], keys: &str, parts: &[&str]) {
        let (code, _, stderr) = Self::new(text).train(keys, 2, "regression");
        assert!([2, 3].contains(&code), "{code}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "`{part}` is missing: {stderr}");
        }
    }
}

#[test]
fn two_columns_of_one_name_are_refused_at_once_unless_neither_is_used() {
    let text = b"x,x,y\n1,2,3\n2,3,4\n3,4,5\n";
    Table::refused(text, "target: y", &["two columns called `x`"]);
    let (code, _, stderr) =
        Table::new(b"x,z,y,z\n1,2,3,0\n2,3,4,0\n").train("target: y, features: [x]", 1, "regression");
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn text_is_left_out_by_exclude_and_becomes_inputs_by_one_hot() {
    let text = b"city,x,y\nGraz,1,3\nLinz,2,4\nGraz,3,5\nWien,0,1\n";
    Table::refused(
        text,
        "target: y",
        &["table.csv:2: column `city` holds `Graz`", "exclude: [city]", "one_hot: {city: "],
    );
    let (code, _, stderr) = Table::new(text).train("target: y, exclude: [city]", 1, "regression");
    assert_eq!(code, 0, "{stderr}");
    Table::refused(text, "target: y, exclude: [citi]", &["there is no column `citi`", "did you mean `city`"]);
    Table::refused(text, "target: y, exclude: [city], features: [x]", &["give it or `features`"]);
    Table::refused(
        text,
        "target: y, one_hot: {city: [Graz, Linz]}",
        &["holds `Wien`, which `one_hot` does not list"],
    );
    Table::refused(text, "target: y, one_hot: {town: [Graz]}", &["there is no column `town`"]);

    let table = Table::new(text);
    let (code, _, stderr) = table.train("target: y, one_hot: {city: [Graz, Linz, Wien]}", 4, "regression");
    assert_eq!(code, 0, "{stderr}");
    // What was trained on is found again, in whatever order the columns stand.
    let other = table.0.path().join("other.csv");
    fs::write(&other, "x,city\n1,Graz\n2,Wien\n").unwrap();
    let run_folder = table.0.path().join("run");
    let predict = |file: &std::path::Path| {
        run(&["predict", run_folder.to_str().unwrap(), file.to_str().unwrap(), "--format", "csv"])
    };
    let (code, stdout, stderr) = predict(&other);
    assert_eq!((code, stdout.lines().count()), (0, 3), "{stderr}");
    fs::write(&other, "city,x\nGraz,1\nWien,2\n").unwrap();
    assert_eq!(predict(&other).1, stdout);
    fs::write(&other, "city,x\nLintz,1\n").unwrap();
    let (code, _, stderr) = predict(&other);
    assert!(code == 3 && stderr.contains("did you mean `Linz`"), "{stderr}");
}

#[test]
fn decimal_commas_are_read_where_they_are_declared() {
    let text = b"a;b;y\n0,5;-1,25;3\n1;2,0;4,5\n";
    let (code, _, stderr) =
        Table::new(text).train("target: y, delimiter: ';', decimal: ','", 2, "regression");
    assert_eq!(code, 0, "{stderr}");
    Table::refused(text, "target: y, delimiter: ';'", &["holds `0,5`", "say `decimal: \",\"`"]);
    Table::refused(text, "target: y", &["did you mean `delimiter: \";\"`?"]);
    Table::refused(b"a;y\n1.234,5;3\n", "target: y, delimiter: ';', decimal: ','", &["holds `1.234,5`"]);
    Table::refused(text, "target: y, decimal: ','", &["and not the delimiter"]);
    Table::refused(b"sep=,\na,y\n1,2\n", "target: y", &["is Excel's: remove it"]);
}

#[test]
fn other_encodings_and_labels_written_in_two_ways_are_refused() {
    let utf16: Vec<u8> = "\u{feff}x,y\n1,2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    Table::refused(&utf16, "target: y", &["is UTF-16; save it as UTF-8"]);
    let labels = b"x,z,y\n1,2,1\n2,3,1.0\n3,4,0\n";
    let (code, _, stderr) = Table::new(labels).train("target: y, classes: true", 2, "classification");
    assert!(code == 3 && stderr.contains("`1` and `1.0` are one number written in two ways"), "{stderr}");
}

#[test]
fn an_index_without_a_name_and_names_of_pictures_are_no_inputs() {
    let index = b",x,y\n0,1,3\n1,2,4\n2,3,5\n";
    Table::refused(index, "target: y", &["column 1 has no name", "`exclude: [\"\"]`"]);
    let (code, _, stderr) = Table::new(index).train("target: y, exclude: [\"\"]", 1, "regression");
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = Table::new(index).train("target: y, features: [\"\", x]", 2, "regression");
    assert_eq!(code, 0, "{stderr}");
    let pictures = b"image,y\n0.png,0\n1.png,1\n";
    Table::refused(pictures, "target: y", &["column `image` holds `0.png`", "`table: {file: FILE"]);
    // A network of another width is told which columns there are.
    let wide = b"a,b,c,y\n1,2,3,4\n2,3,4,5\n";
    Table::refused(wide, "target: y", &["wants samples of shape [2]", "[3] (the columns a, b, c)"]);
}

/// Two targets of other scales, neither of which a learning rate or λ would suit as it is.
fn prices(folder: &Path) -> PathBuf {
    let mut text = String::from("area,age,price,share\n");
    for i in 0..40 {
        let (area, age) = (f64::from(i * 37 % 40) * 4.0, f64::from(i * 17 % 23));
        let price = 250_000.0 + 1500.0 * area - 900.0 * age + f64::from(i * 7 % 11) * 1000.0;
        let share = 0.5 + 0.001 * age + f64::from(i * 5 % 13) * 0.0001;
        text += &format!("{area},{age},{price},{share}\n");
    }
    let path = folder.join("prices.csv");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn normalize_target_is_scikit_learns_transformed_target_regressor() {
    let home = tempfile::tempdir().unwrap();
    let table = prices(home.path());
    let (table, out) = (table.to_str().unwrap(), home.path().join("run"));
    let out = out.to_str().unwrap();
    let text = format!(
        "device: cpu\nthreads: 1\ndtype: float64\nmodel: {{name: linear, args: {{features: 2, outputs: 2}}}}\n\
         task: {{regression: {{loss: half_mse}}}}\n\
         data: {{train: {{csv: {{file: {table}, target: [price, share]}}}}, test: {{csv: {{file: {table}, target: [price, share]}}}}, \
         batch_size: 40, normalize_target: auto}}\n\
         optimizer: {{sgd: {{lr: 0.5, momentum: 0.5}}}}\npenalty: {{l2: 0.1}}\n\
         train: {{epochs: 400, eval_every: 400, log_every: 400, checkpoint: {{every_epochs: 400}}}}\n"
    );
    let config = write_config(home.path(), &text);
    succeeds(&["train", &config, "--quiet", "--output", out]);
    let predicted = succeeds(&["predict", out, table, "--format", "csv"]);
    fs::write(home.path().join("predicted.csv"), predicted).unwrap();
    let [raw, whole] = ["raw.pt", "whole.pt"].map(|name| home.path().join(name));
    let export = ["export", out, "--to", "torchscript", "-o"];
    let told = succeeds(&[export.as_slice(), &[raw.to_str().unwrap()]].concat());
    assert!(told.contains("(y - target_mean) / target_std") && told.contains("--preprocess"), "{told}");
    let told = succeeds(&[export.as_slice(), &[whole.to_str().unwrap(), "--preprocess"]].concat());
    assert!(!told.contains("target_mean"), "{told}");
    let source = home.path().join("net.py");
    succeeds(&["export", out, "--to", "python", "-o", source.to_str().unwrap()]);
    assert!(fs::read_to_string(source).unwrap().contains("\nTARGET_STD = ["), "the source says it too");
    // λ = alpha / (n · targets), as docs/penalties.md has it.
    let script = r#"
import csv, json, os, sys, numpy as np, torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
os.chdir("HOME")
rows = np.loadtxt("prices.csv", delimiter=",", skiprows=1)
x, y = rows[:, :2], rows[:, 2:]
ridge = make_pipeline(StandardScaler(), Ridge(alpha=8.0))
wanted = TransformedTargetRegressor(ridge, transformer=StandardScaler()).fit(x, y).predict(x)
def same(ours, theirs, what, rtol=1e-9):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, err_msg=what)
same(np.loadtxt("predicted.csv", delimiter=",", skiprows=1, usecols=(-2, -1)), wanted, "predict")
scores = json.load(open("run/result.json"))["last"]["test"]
same(scores["mse"], mean_squared_error(y, wanted), "mse")
same(scores["mae"], mean_absolute_error(y, wanted), "mae")
same(scores["r2"], r2_score(y, wanted), "r2")
loss = 0.5 * np.mean(((wanted - y) / y.std(0)) ** 2)
same(scores["loss"], loss, "the loss is of what is learnt")
table = {(r["output"], r["feature"]): float(r["coefficient"]) for r in csv.DictReader(open("run/coefficients.csv"))}
of = lambda o: table[o, "intercept"] + x[:, 0] * table[o, "area"] + x[:, 1] * table[o, "age"]
same(np.stack([of("y0"), of("y1")], 1), wanted, "coefficients")
raw, whole = torch.jit.load("raw.pt"), torch.jit.load("whole.pt")
mean, std, tm, ts = (np.array(getattr(raw, n)) for n in ["mean", "std", "target_mean", "target_std"])
answer = raw(torch.tensor((x - mean) / std)).detach().numpy()
same(answer * ts + tm, wanted, "exported, with the numbers that the file has")
same(whole(torch.tensor(x)).detach().numpy(), wanted, "exported with --preprocess", 1e-6)
assert not hasattr(whole, "target_std")
print("ok")
"#;
    assert_eq!(python(&script.replace("HOME", home.path().to_str().unwrap())).trim(), "ok");
    // In float32 the targets are scaled before they are shortened.
    let narrow = home.path().join("narrow");
    let narrow = narrow.to_str().unwrap();
    succeeds(&["train", &config, "--quiet", "--output", narrow, "--set", "dtype=float32"]);
    let r2 = |run: &str| read_json(format!("{run}/result.json"))["last"]["test"]["r2"].as_f64().unwrap();
    assert!((r2(narrow) - r2(out)).abs() < 1e-6, "{} {}", r2(narrow), r2(out));
    // The numbers stand in the run's config; resumed, it stays at them.
    assert!(
        fs::read_to_string(format!("{out}/config.yaml")).unwrap().contains("normalize_target:\n    mean:")
    );
    let (code, _, stderr) =
        run(&["train", &config, "--output", out, "--resume", "--set", "train.epochs=401"]);
    assert!(code == 0 && !stderr.contains("normalize_target"), "{stderr}");
    let evaluated = succeeds(&["eval", out, "--json"]);
    assert!(evaluated.contains("\"r2\":0.9689"), "{evaluated}");
}

#[test]
fn normalize_target_wants_a_regression_and_as_many_numbers_as_targets() {
    let text = b"x,z,y\n1,2,3\n2,3,4\n3,4,5\n";
    let table = Table::new(text);
    let folder = table.0.path();
    let config = format!(
        "device: cpu\nmodel: {{name: linear, args: {{features: 2, outputs: 1}}}}\ntask: regression\n\
         data: {{train: {{csv: {{file: {}/table.csv, target: y}}}}}}\noptimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 1}}\n",
        folder.display()
    );
    let config = write_config(folder, &config);
    let refused = |sets: &[&str], parts: &[&str]| {
        let out = folder.join("run");
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> =
            ["train", &config, "--output", out.to_str().unwrap()].into_iter().chain(sets).collect();
        let (code, _, stderr) = run(&args);
        assert_eq!(code, 2, "{stderr}");
        parts.iter().for_each(|part| assert!(stderr.contains(part), "`{part}` is missing: {stderr}"));
    };
    refused(
        &["data.normalize_target=auto", "task=classification"],
        &["normalize_target", "is for the numbers that `task: regression`"],
    );
    refused(
        &["data.normalize_target={mean: [1, 2], std: [1, 2]}"],
        &["normalize_target: 2 numbers for 1 columns of targets"],
    );
    refused(&["data.normalize_target={mean: [1], std: [0]}"], &["data.normalize_target.std.0", "above 0"]);
    refused(&["data.normalize_target=yes"], &["`auto`, `none`"]);
}
