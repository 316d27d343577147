//! Tables as people have them: text columns, decimal commas, other delimiters, columns of one name, labels of
//! mixed spelling.

use std::fs;

use crate::common::{run, write_config};

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
